"""Personal data: phones, bank cards, identity numbers and the like, told from other numbers by what makes them valid.

Each rule proposes matches with a score: what validity alone says, raised or lowered by the words around it. What
reaches ``FOUND`` counts. Rules look at most ``_AROUND`` characters beyond a match, so windows of a text with context
give what the whole text gives.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from extproc.moderation.types import Match

FOUND: Final = 0.5
_AROUND: Final = 32
_LONGEST: Final = 160
"""An e-mail address; everything else is shorter."""

_WIDE = re.compile("[０-９Ａ-Ｚａ-ｚ＠．－＋（）\u3000\u00a0\u2010-\u2015]")
_NARROW: Final = str.maketrans(
    "".join(
        chr(code)
        for code in (*range(0xFF01, 0xFF5F), 0x3000, 0xA0, *range(0x2010, 0x2016))
        if chr(code) not in "，：；！？"
    ),
    "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in ",:;!?") + "  ------",
)
_NUMBERS = re.compile(r"[0-9](?:[ .()\-:/]{0,3}[0-9]){6,}")
"""Where numbers are at all: the rules for them look nowhere else."""

_NOT_PERSONAL = re.compile(
    r"(?:订单|单号|流水|运单|快递|物流|发票|批次|批号|货号|商品|产品|型号|条码|条形码|序列|编码|编号|工单|合同|交易|时间戳|哈希|版本|"
    r"金额|价格|余额|总价|票号|车次|航班|验证码|期号|库存|参数|"
    r"(?<![a-z])(?:order|invoice|tracking|serial|sku|upc|ean|isbn|barcode|batch|part|model|item|ticket|transaction|txn|trace|"
    r"timestamp|build|version|hash|amount|price|total|request|session|commit|id|uid|uuid|seq|offset|size|bytes|count|"
    r"product|shipment|case|code|ref|reference)(?![a-z]))"
    r"(?:[ _]?(?:号码|编号|号|码|id|no\b\.?|num\b|number|code|ref))*[\s:：#=是为\"'“”(（\[]*(?:is\s|was\s)?\s*$",
    re.IGNORECASE,
)
_MONEY_BEFORE = re.compile(r"(?:[$¥￥€£]|\b(?:RMB|CNY|USD|EUR)|人民币)\s?$", re.IGNORECASE)
_UNIT_AFTER = re.compile(
    r"\s?(?:元|美元|万|亿|%|％|字节|毫秒|秒|次|吨|公里|[KMG]?B\b|bytes\b|ms\b|USD\b|CNY\b|RMB\b|dollars\b|yuan\b)",
    re.IGNORECASE,
)
_URL_BEFORE = re.compile(r"(?:https?://|www\.)[^\s\u4e00-\u9fff]*$", re.IGNORECASE)
_PHONE_WORDS = re.compile(
    r"电话|手机|座机|热线|联系|致电|拨打|来电|短信|微信|传真|号码是|机主|\b(?:phone|tel|telephone|mobile|mob|cell|call|text|sms|fax|"
    r"contact|whatsapp|wechat|dial|reach|ring)\b|(?:phone|mobile|tel)(?:_?(?:no|number))?[\"']?\s?[:=]",
    re.IGNORECASE,
)
_PHONE_LABEL = re.compile(
    r"(?:电话|手机|座机|传真|热线|\b(?:phone|tel|telephone|mobile|mob|cell|fax|call(?: (?:me|us))?|whatsapp))"
    r"(?:号码?|[ _](?:number|no\.?))?(?:[\s:：=\"'是为(（]|\b(?:is|at|on)\b)*$",
    re.IGNORECASE,
)
_CARD_WORDS = re.compile(
    r"卡号|银行卡|信用卡|储蓄卡|借记卡|账号|账户|收款|开户|付款|"
    r"\b(?:card|visa|mastercard|amex|debit|credit|account|pan|unionpay)\b|cc[:=]",
    re.IGNORECASE,
)
_ID_WORDS = re.compile(
    r"身份证|证件|身分证|公民|居民|\b(?:id ?card|identity|national id|resident|idcard|sfz)\b", re.IGNORECASE
)
_IP_WORDS = re.compile(
    r"地址|服务器|主机|网关|网段|节点|端口|登录|访问|来源|内网|外网|公网|域名|解析|"
    r"\b(?:ips?|ipv4|ipv6|address|addr|hosts?|server|dns|ping|"
    r"ssh|gateway|client|from|peer|node|remote|subnet|network|port|proxy|curl|resolver|localhost|listen(?:ing|s)?|bind|route)\b|//",
    re.IGNORECASE,
)
_VERSION_BEFORE = re.compile(
    r"(?:版本号?|固件|升级到|更新到|章节?|第|条款|图|表|"
    r"\b(?:version|ver|release|build|sdk|firmware|driver|v|section|sec|chapter|clause|"
    r"oid|upgraded? to|update to|python|chrome|node|java|android|ios|windows|linux|kernel|edge|firefox|dll|"
    r"assembly|nuget|rev))"
    r"[\s:：=#/^~\"'是为.]*(?:is\s)?\s*$",
    re.IGNORECASE,
)
_VERSION_AFTER = re.compile(r"\s?(?:版|节|章|条|小节|release\b|build\b|-(?:alpha|beta|rc|snapshot))", re.IGNORECASE)
_PLATE_WORDS = re.compile(r"车|牌|停|驾|\b(?:plate|car|vehicle|licen[cs]e)\b", re.IGNORECASE)


class PersonalData:
    """Finds personal data of these kinds; KINDS has them all. ``what`` of a match names its rule.

    All kinds are looked for whichever are wanted: what is a part of a bank card's number is no phone.
    Raises ValueError for a kind that is not known.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        unknown = [kind for kind in kinds if kind not in _RULES]
        if unknown:
            raise ValueError(f"unknown kind {unknown[0]!r}; known: {', '.join(_RULES)}")
        self._kinds = frozenset(kinds)

    @property
    def reach(self) -> int:
        return _LONGEST + 2 * _AROUND

    def find(self, text: str) -> Sequence[Match]:
        plain = text if text.isascii() or not _WIDE.search(text) else text.translate(_NARROW)
        source = _Source(plain)
        proposed = [
            Match(start, end, kind, score, what)
            for kind, rule in _RULES.items()
            for start, end, score, what in rule(source)
            if score >= FOUND
        ]
        found: list[Match] = []
        for match in sorted(proposed, key=lambda match: (match.start, -match.end)):
            if found and match.start < found[-1].end:
                if match.score > found[-1].score:
                    found[-1] = match
                continue
            found.append(match)
        return [match for match in found if match.category in self._kinds]


_Proposal = tuple[int, int, float, str]


class _Source:
    """A text with its full-width characters made narrow, and where numbers stand in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._regions: list[tuple[int, int]] = []
        for found in _NUMBERS.finditer(text):
            start, end = max(found.start() - 3, 0), min(found.end() + 8, len(text))
            if self._regions and start <= self._regions[-1][1]:
                start, _ = self._regions.pop()
            self._regions.append((start, end))

    def in_numbers(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """Its matches where numbers are."""
        for start, end in self._regions:
            yield from pattern.finditer(self.text, start, end)

    def before(self, start: int) -> str:
        """The line so far."""
        return self.text[max(start - _AROUND, 0) : start].rpartition("\n")[2]

    def after(self, end: int) -> str:
        return self.text[end : end + _AROUND // 2].partition("\n")[0]

    def said(self, words: re.Pattern[str], start: int, end: int) -> bool:
        """These words stand nearby."""
        return words.search(self.before(start)) is not None or words.search(self.after(end)) is not None

    def stands_alone(self, start: int, end: int) -> bool:
        """No letter or digit touches it, also not behind a sign that would make it part of something longer."""
        before, after = self.text[max(start - 2, 0) : start], self.text[end : end + 2]
        return not _LONGER_BEFORE.search(before) and not _LONGER_AFTER.match(after)

    def number_score(self, start: int, end: int, words: re.Pattern[str], *, score: float) -> float:
        """``score`` for a number that may be something else, seen with the words around it."""
        before = self.before(start)
        if _UNIT_AFTER.match(self.after(end)) or _MONEY_BEFORE.search(before):
            return 0.1
        if _NOT_PERSONAL.search(before):
            return 0.3
        if self.said(words, start, end):
            return max(score, 0.95)
        address = self.text[max(start - 2 * _AROUND, 0) : start]
        return 0.3 if _URL_BEFORE.search(address) else score


_LONGER_BEFORE = re.compile(r"[0-9A-Za-z_]$|[0-9A-Za-z_][.\-]$|[#\\&]$")
_LONGER_AFTER = re.compile(r"[0-9A-Za-z_]|[.\-][0-9A-Za-z_]")


# phone

_MOBILE = re.compile(r"(?:(?:\((?:\+|00)?86\)|(?:\+|00)?86)[ .-]{0,2})?(1[3-9](?:[ .-]?[0-9]){9})(?![0-9])")
_MOBILE_SEGMENTS: Final = frozenset(
    f"1{n}"
    for n in (*range(30, 54), *range(55, 60), 62, *range(65, 69), *range(70, 79), *range(80, 94), *range(95, 100))
)
_MOBILE_SHAPES: Final = frozenset(
    {
        (11,),
        (3, 4, 4),
        (3, 3, 5),
        (4, 3, 4),
        (4, 4, 3),
        (3, 8),
        (5, 6),
        (7, 4),
        (3, 2, 2, 2, 2),
        (5, 3, 3),
    }
)
_AREA: Final = r"(?:10|2[0-57-9]|[3-9][0-9]{2})"
_LANDLINE = re.compile(
    rf"(?:(?:(?:\+|00)86[ -]?|\((?:\+|00)?86\)[ -]?|86[ -])(?:\(0?{_AREA}\)|0?{_AREA})|\(0{_AREA}\)|0{_AREA})"
    rf"([ -]{{0,2}})[2-8][0-9]{{2,3}}([ -]?)[0-9]{{4}}(?:(?:-|转|ext\.? ?)[0-9]{{1,5}})?(?![0-9])"
)
_SERVICE = re.compile(r"[48]00[ -][0-9]{3}[ -]?[0-9]{4}(?![0-9])|[48]00[ -][0-9]{4}[ -][0-9]{3}(?![0-9])")
_ABROAD = re.compile(r"(?:\+|00)([1-9](?:(?:[ .-]|\)[ -]?| ?\()?[0-9]){6,14})(?![0-9])")
_NORTH_AMERICA = re.compile(
    r"(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}([.-]))[2-9][0-9]{2}[ .-][0-9]{4}(?![0-9])"
)
_LOCAL = re.compile(r"(?:0[0-9]{2,4}[ -]?[0-9]{3,4}[ -]?[0-9]{3,4}|[2-9][0-9]{2,3}[ -]?[0-9]{4})(?![0-9])")
_COUNTRIES: Final = {
    code: lengths
    for codes, lengths in (
        ("1", (10, 10)),
        ("7", (10, 10)),
        ("44 82 49 81 39 61 55 62 60 91 66 84 63 54 52 57 58 43", (7, 11)),
        ("20 27 30 31 32 33 34 36 40 41 45 46 47 48 51 53 56 64 65 90 92 93 94 95 98", (7, 10)),
        ("852 853 855 856 886 880 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 977", (7, 10)),
        (
            "211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236 237 238 239",
            (6, 10),
        ),
        ("240 241 242 243 244 245 246 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265", (6, 10)),
        ("266 267 268 269 297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 376", (6, 10)),
        ("377 378 380 381 382 383 385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590", (6, 10)),
        ("591 592 593 594 595 596 597 598 599 670 672 673 674 675 676 677 678 679 680 682 685 686 687 689", (5, 10)),
        ("850 992 993 994 995 996 998", (7, 10)),
    )
    for code in codes.split()
}


def _phone(source: _Source) -> Iterator[_Proposal]:
    text = source.text
    for found in source.in_numbers(_MOBILE):
        start, end = found.span()
        shape = tuple(map(len, re.split("[ .-]", found[1])))
        bare = _digits(found[1])
        if ("." in found[1] and shape != (3, 4, 4)) or (
            len(shape) > 1 and _GROUP_BEFORE.search(text[max(start - 6, 0) : start])
        ):
            continue
        if not _opens(text, start) or shape not in _MOBILE_SHAPES or bare[:3] not in _MOBILE_SEGMENTS:
            continue
        if not _LONGER_AFTER.match(text[end : end + 2]):
            yield start, end, source.number_score(start, end, _PHONE_WORDS, score=0.8), "cn-mobile"
    for found in source.in_numbers(_LANDLINE):
        start, end = found.span()
        if _GROUP_BEFORE.search(text[max(start - 6, 0) : start]):
            continue
        if _opens(text, start) and not _LONGER_AFTER.match(text[end : end + 2]):
            score = 0.8 if found[1] or ")" in found[0] or found[0][0] == "+" else 0.6
            yield start, end, source.number_score(start, end, _PHONE_WORDS, score=score), "cn-landline"
    for found in source.in_numbers(_SERVICE):
        if source.stands_alone(*found.span()):
            yield *found.span(), source.number_score(*found.span(), _PHONE_WORDS, score=0.7), "cn-service"
    for found in source.in_numbers(_ABROAD):
        start, end = found.span()
        bare = _digits(found[1])
        sure = found[0][0] == "+" or _PHONE_WORDS.search(source.before(start))
        if sure and _opens(text, start) and _called_abroad(bare) and not _LONGER_AFTER.match(text[end : end + 2]):
            yield start, end, source.number_score(start, end, _PHONE_WORDS, score=0.9), "e164"
    for found in source.in_numbers(_NORTH_AMERICA):
        if source.stands_alone(*found.span()):
            yield *found.span(), source.number_score(*found.span(), _PHONE_WORDS, score=0.7), "north-america"
    for found in source.in_numbers(_LOCAL):
        start, end = found.span()
        if source.stands_alone(start, end) and _PHONE_LABEL.search(source.before(start)):
            yield start, end, 0.8, "local"


def _called_abroad(bare: str) -> bool:
    for size in (1, 2, 3):
        lengths = _COUNTRIES.get(bare[:size])
        if lengths:
            rest = bare[size:]
            return lengths[0] <= len(rest) <= lengths[1] + (rest[0] == "0") and (size > 1 or rest[0] > "1")
    return False


def _opens(text: str, start: int) -> bool:
    """A phone may begin here: also right after the letters of ``Tel``, and not inside another number."""
    before = text[max(start - 8, 0) : start]
    return not _LONGER_BEFORE.search(before[-2:]) or _TEL_BEFORE.search(before) is not None


_GROUP_BEFORE = re.compile("(?<![0-9A-Za-z])[0-9A-Z]{2}[0-9]{2} $")
_TEL_BEFORE = re.compile(r"(?<![A-Za-z])(?:tel|phone|mobile|mob|ph|sms|wx|vx|call)[.-]?$", re.IGNORECASE)


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


# bank_card

_GROUPS = re.compile(r"[0-9]+(?:([ -])[0-9]+(?:\1[0-9]+)*)?")
_CARD_SHAPES: Final = frozenset(
    {(size,) for size in range(13, 20)}
    | {
        (4, 4, 4, 4),
        (4, 6, 5),
        (4, 6, 4),
        (4, 4, 4, 4, 3),
        (4, 4, 4, 4, 2),
        (4, 4, 4, 4, 1),
        (6, 13),
        (6, 10),
        (4, 4, 4, 1),
    }
    | {
        (8, 8),
        (8, 11),
        (6, 4, 4, 5),
        (4, 4, 4, 7),
        (6, 4, 4, 2),
        (6, 6, 4),
        (6, 6, 7),
        (4, 12),
        (4, 4, 8),
        (4, 5, 6),
        (4, 4, 4, 2),
    }
    | {(6, 7, 6), (5, 5, 5, 4), (4, 4, 5), (4, 15), (6, 4, 9), (4, 4, 11), (7, 12), (6, 6, 6, 1), (4, 4, 4, 3)}
)
_IBAN_BEFORE = re.compile("[A-Z]{2}[0-9]{2} $")
_ISSUERS: Final = tuple(
    (re.compile(prefix), lengths)
    for prefix, lengths in (
        ("4", {13, 16, 19}),
        ("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", {16}),
        ("3[47]", {15}),
        ("35(?:2[89]|[3-8])", {16, 17, 18, 19}),
        ("30[0-5]|3[689]", {14, 16, 19}),
        ("6011|64[4-9]|65", {16, 19}),
        ("62|81", {16, 17, 18, 19}),
        ("50|5[6-9]|6[0379]|68", {16, 18, 19}),
        ("436742|955[058]|103", {16, 18, 19}),
        ("220[0-4]", {16, 17, 18, 19}),
    )
)


def _bank_card(source: _Source) -> Iterator[_Proposal]:
    for run in source.in_numbers(_GROUPS):
        groups = [found.span() for found in re.finditer("[0-9]+", run[0])]
        sizes = [end - start for start, end in groups]
        taken = 0
        for first, size in enumerate(sizes):
            if first < taken or size < 4:
                continue
            for last in range(min(first + 5, len(sizes)), first, -1):
                shape = tuple(sizes[first:last])
                if shape not in _CARD_SHAPES:
                    continue
                start, end = run.start() + groups[first][0], run.start() + groups[last - 1][1]
                score = _card_score(source, start, end)
                if score >= FOUND:
                    taken = last
                    yield start, end, score, "luhn"
                    break


def _card_score(source: _Source, start: int, end: int) -> float:
    number = _digits(source.text[start:end])
    if _IBAN_BEFORE.search(source.text[max(start - 5, 0) : start]):
        return 0
    if not _is_card(number) or len(set(number)) < 2 or not source.stands_alone(start, end):
        return 0
    doubtful = _looks_like_id(number) or (len(number) == 13 and _is_ean(number)) or _looks_like_time(number)
    return source.number_score(start, end, _CARD_WORDS, score=0.4 if doubtful else 0.8)


def _is_card(number: str) -> bool:
    known = any(len(number) in lengths and prefix.match(number) for prefix, lengths in _ISSUERS)
    return known and _luhn(number) % 10 == 0


def _luhn(number: str) -> int:
    doubled = (int(digit) * 2 for digit in number[-2::-2])
    return sum(map(int, number[-1::-2])) + sum(digit - 9 if digit > 9 else digit for digit in doubled)


def _is_ean(number: str) -> bool:
    return sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(number)) % 10 == 0


def _looks_like_time(number: str) -> bool:
    return (
        number[:2] in ("19", "20")
        and len(number) >= 14
        and _date(number[:8]) is not None
        and int(number[8:10]) < 24
        and int(number[10:12]) < 60
    )


# cn_id

_ID = re.compile(
    r"[1-9][0-9]{5}([ -]?)(?:18|19|20)[0-9]{2}[ -]?[01][0-9][ -]?[0-3][0-9]\1[0-9]{3} ?[0-9Xx](?![0-9A-Za-z])"
    r"|[1-9][0-9]{3}([ -])[0-9]{4}\2[0-9]{4}\2[0-9]{4}\2[0-9][0-9Xx](?![0-9A-Za-z])"
    r"|[1-9][0-9]{2}([ -])[0-9]{3}\3(?:18|19|20)[0-9]{2}\3[01][0-9][0-3][0-9]\3[0-9]{3}[0-9Xx](?![0-9A-Za-z])"
)
_OLD_ID = re.compile(r"[1-9][0-9]{5}([ -]?)[0-9]{2}[01][0-9][0-3][0-9]\1[0-9]{3}(?![0-9A-Za-z])")
_PROVINCES: Final = frozenset(
    (*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82, 83)
)
_ID_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def _cn_id(source: _Source) -> Iterator[_Proposal]:
    for found in source.in_numbers(_ID):
        start, end = found.span()
        number = re.sub("[ -]", "", found[0]).upper()
        if _looks_like_id(number) and _id_sum(number) == number[-1] and _apart(source.text, start, end):
            yield start, end, 1.0, "checksum"
    for found in source.in_numbers(_OLD_ID):
        start, end = found.span()
        number = re.sub("[ -]", "", found[0])
        if int(number[:2]) in _PROVINCES and _date("19" + number[6:12]) and source.stands_alone(start, end):
            amex = _is_card(number) and not source.said(_ID_WORDS, start, end)
            yield start, end, source.number_score(start, end, _ID_WORDS, score=0.4 if amex else 0.6), "15-digit"


def _apart(text: str, start: int, end: int) -> bool:
    """No letter or digit touches it; a number this sure may follow ``ID-`` or a dot."""
    return not (text[max(start - 1, 0) : start].isascii() and text[max(start - 1, 0) : start].isalnum()) and not (
        text[end : end + 1].isascii() and text[end : end + 1].isalnum()
    )


def _looks_like_id(number: str) -> bool:
    born = _date(number[6:14]) if len(number) == 18 else None
    return born is not None and 1880 <= born.year < 2050 and int(number[:2]) in _PROVINCES


def _id_sum(number: str) -> str:
    return "10X98765432"[sum(int(digit) * weight for digit, weight in zip(number, _ID_WEIGHTS, strict=False)) % 11]


def _date(digits: str) -> date | None:
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8]))
    except ValueError:
        return None


# iban

_IBAN_HEAD = re.compile("[0-9](?<=(?<![0-9A-Za-z])[A-Za-z]{2}[0-9])[0-9]")
_IBAN = re.compile("[A-Za-z]{2}[0-9]{2}(?:[ -]?[0-9A-Za-z]){11,30}")
_IBANS: Final = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
    "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 "
    "LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 "
    "QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
_IBAN_LENGTHS: Final = {written[:2]: int(written[2:]) for written in _IBANS.split()}


def _iban(source: _Source) -> Iterator[_Proposal]:
    for head in _IBAN_HEAD.finditer(source.text):
        start = head.start() - 2
        length = _IBAN_LENGTHS.get(source.text[start : start + 2].upper())
        found = _IBAN.match(source.text, start)
        if length is None or found is None:
            continue
        written = found[0]
        places = [place for place, character in enumerate(written) if character not in " -"]
        if len(places) < length:
            continue
        end = places[length - 1] + 1
        number = re.sub("[ -]", "", written[:end]).upper()
        value = int("".join(str(int(character, 36)) for character in number[4:] + number[:4]))
        if value % 97 == 1 and not _LONGER_AFTER.match(source.text[start + end : start + end + 1]):
            yield start, start + end, 1.0, "mod-97"


# email

_LOCAL_PART: Final = r"[0-9A-Za-z.!#$%&'*+/=?^_`{|}~-]"
_EMAIL = re.compile(
    rf"(?<!{_LOCAL_PART})[0-9A-Za-z!#$%&'*+/=?^_`{{|}}~.-]{{0,63}}[0-9A-Za-z_+-]@"
    r"(?:[0-9A-Za-z](?:[0-9A-Za-z-]{0,30}[0-9A-Za-z])?\.){1,5}([A-Za-z]{2,18})(?![0-9A-Za-z@_])"
)
_DOMAINS: Final = (
    "com net org edu gov mil int info biz name mobi asia arpa aero coop museum jobs travel tel post cat pro xxx "
    "example test invalid localhost local internal corp lan home intranet onion "
    "xyz top vip club shop store online site tech cloud app dev wang ink ltd group work email live link fun art design "
    "blog wiki news space website host press pub red kim win bid loan men party trade date stream science review space "
    "academy agency studio team today tools world zone company center city digital energy engineering finance fund "
    "global health institute international law life marketing media money network one ooo page photo plus social "
    "software solutions support systems technology university video ventures works bank chat cool expert games guide "
    "guru house land market partners services school sale run rocks earth eco green care clinic dental doctor hospital "
    "google amazon apple microsoft baidu alibaba tencent ren love xin mail"
)
_TOP_LEVELS: Final = frozenset(_DOMAINS.split())
_FILES: Final = frozenset({"js", "ts"})


def _email(source: _Source) -> Iterator[_Proposal]:
    if "@" not in source.text:
        return
    for found in _EMAIL.finditer(source.text):
        start, end = found.span()
        top = found[1].lower()
        kept = found[0].lstrip("!#$%&'*/=?^`{|}~.-")
        start = end - len(kept)
        local = kept.partition("@")[0]
        if (
            not local
            or ".." in local
            or local.endswith(".")
            or (len(top) > 2 and top not in _TOP_LEVELS)
            or top in _FILES
        ):
            continue
        address = source.before(start)
        remote = (local.lower() == "git" and source.text[end : end + 1] in (":", "/")) or re.search(
            r"://[^\s/@]*$", address
        )
        yield start, end, 0.2 if remote else 0.95, "address"


# ip

_IPV4 = re.compile(r"[0-9](?<![0-9_].)(?<![0-9A-Za-z]\..)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![0-9A-Za-z_]|\.[0-9A-Za-z])")
_IPV6_HINT = re.compile(r":(?<!::)(?=[0-9A-Fa-f]{0,4}:)(?!::)")
_IPV6 = re.compile(r"[0-9A-Fa-f:]{2,39}(?:(?<=:)[0-9]{1,3}(?:\.[0-9]{1,3}){3})?(?![0-9A-Za-z_:])")
_WELL_KNOWN: Final = frozenset({"1.1.1.1", "8.8.8.8", "8.8.4.4", "1.0.0.1", "9.9.9.9", "4.2.2.2"})


def _ip(source: _Source) -> Iterator[_Proposal]:
    text = source.text
    for found in _IPV4.finditer(text) if "." in text else ():
        start, end = found.span()
        if _LONGER_BEFORE.search(text[max(start - 2, 0) : start]) and not _IP_GLUED.search(
            text[max(start - 8, 0) : start]
        ):
            continue
        if _is_ipv4(found[0]):
            yield start, end, _ipv4_score(source, start, end), "v4"
    done = 0
    for hint in _IPV6_HINT.finditer(text):
        if hint.start() < done:
            continue
        head = text[max(hint.start() - 4, done) : hint.start()]
        start = hint.start() - (len(head) - len(head.rstrip("0123456789abcdefABCDEF")))
        written = _IPV6.match(text, start)
        if written is None:
            continue
        done = written.end()
        if not _IPV6_GLUED.search(text[max(start - 1, 0) : start]) and _is_ipv6(written[0].lower()):
            yield start, done, _ipv6_score(source, start, done), "v6"


_IPV6_GLUED = re.compile("[0-9A-Za-z_:.]$")
_IP_GLUED = re.compile(r"(?<![A-Za-z])(?:ip|addr|host|server)[.-]?$", re.IGNORECASE)


def _is_ipv4(written: str) -> bool:
    try:
        return bool(IPv4Address(written))
    except AddressValueError:
        return False


def _ipv4_score(source: _Source, start: int, end: int) -> float:
    text, written = source.text, source.text[start:end]
    before, after = source.before(start), source.after(end)
    if _VERSION_BEFORE.search(before) or _VERSION_AFTER.match(after) or written.startswith("255."):
        return 0.2
    certain = written in _WELL_KNOWN or re.match(r":[0-9]{2,5}\b|/(?:[0-9]{1,2}\b|[a-z])", text[end : end + 6])
    if certain or source.said(_IP_WORDS, start, end):
        return 0.95
    return 0.8 if max(map(int, written.split("."))) >= 20 else 0.3


def _is_ipv6(written: str) -> bool:
    try:
        return bool(IPv6Address(written))
    except AddressValueError:
        return False


def _ipv6_score(source: _Source, start: int, end: int) -> float:
    groups = [group for group in source.text[start:end].split(":") if group]
    if not groups or (source.before(start).endswith("[") and re.search(r"[0-9A-Za-z_)\]]\[$", source.before(start))):
        return 0.1
    if source.said(_IP_WORDS, start, end):
        return 0.95
    digit = any(character.isdigit() for group in groups for character in group)
    return 0.9 if digit and (len(groups) >= 3 or any(len(group) == 4 for group in groups)) else 0.3


# passport

_PASSPORT = re.compile(
    r"[0-9](?:(?<=(?<![0-9A-Za-z])[A-Za-z][0-9])[0-9]|(?<=(?<![0-9A-Za-z])[A-Za-z]{2}[0-9]))[0-9]{6}(?![0-9A-Za-z])"
)
_CHINESE_PASSPORT = re.compile(r"[EG][0-9]{8}|E[A-HJ-NP-Z][0-9]{7}")
_PASSPORT_WORDS = re.compile(r"护照|通行证|\bpassports?\b", re.IGNORECASE)
_NAMED_PASSPORT = re.compile(
    r"(?:护照|passport)(?:号码|号|编号|"
    r"[ _-]?(?:number|numbers|no|num|nr|id|book|card|holder)\b\.?)*(?:[\s:：=#\"'“”是为(（]|\bis\b|\bwas\b)*"
    r"(?P<number>(?![A-Za-z]{4})[A-Za-z0-9]{6,9})(?![0-9A-Za-z])",
    re.IGNORECASE,
)


def _passport(source: _Source) -> Iterator[_Proposal]:
    text = source.text
    for found in _PASSPORT.finditer(text):
        end = found.end()
        start = end - 9
        number = text[start:end]
        if not source.stands_alone(start, end):
            continue
        said = source.said(_PASSPORT_WORDS, start, end)
        if said:
            yield start, end, 0.95, "with-words"
        elif _CHINESE_PASSPORT.fullmatch(number) and not _NOT_PERSONAL.search(source.before(start)):
            yield start, end, 0.6, "cn"
    for found in _NAMED_PASSPORT.finditer(text):
        start, end = found.span("number")
        if sum(character.isdigit() for character in text[start:end]) >= 5:
            yield start, end, 0.9, "named"


# plate

_PLATE = re.compile(
    r"[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼]\s?[A-HJ-NP-Za-hj-np-z][·•・.\- ]?"
    r"([A-HJ-NP-Za-hj-np-z0-9]{5,6}|[A-HJ-NP-Za-hj-np-z0-9]{4}[挂学警港澳领])(?![0-9A-Za-z])"
)
_NEW_ENERGY = re.compile(r"[ABCDEFGHJK][A-HJ-NP-Z0-9][0-9]{4}|[0-9]{5}[ABCDEFGHJK]", re.IGNORECASE)
_OTHER_WORDS: Final = (
    "最新",
    "全新",
    "更新",
    "创新",
    "崭新",
    "翻新",
    "刷新",
    "重新",
    "里云",
    "讯云",
    "为云",
    "度云",
    "上云",
    "东京",
    "南京",
    "北京",
    "漆黑",
)


def _plate(source: _Source) -> Iterator[_Proposal]:
    for found in _PLATE.finditer(source.text):
        start, end = found.span()
        serial = found[1]
        letters = sum(character.isascii() and character.isalpha() for character in serial)
        valid = _NEW_ENERGY.fullmatch(serial) if len(serial) == 6 else letters <= 2 and not serial.isalpha()
        if not valid:
            continue
        wordy = source.text[max(start - 2, 0) : start + 1].endswith(_OTHER_WORDS)
        said = source.said(_PLATE_WORDS, start, end)
        yield start, end, 0.95 if said else 0.3 if wordy else 0.8, "new-energy" if len(serial) == 6 else "plate"


_RULES: Final[Mapping[str, Callable[[_Source], Iterator[_Proposal]]]] = {
    "cn_id": _cn_id,
    "bank_card": _bank_card,
    "phone": _phone,
    "iban": _iban,
    "email": _email,
    "ip": _ip,
    "passport": _passport,
    "plate": _plate,
}
KINDS: Final = tuple(_RULES)
