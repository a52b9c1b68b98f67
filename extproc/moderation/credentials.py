"""Secrets that a text gives away: keys, tokens, passwords, private keys."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import re2

from extproc.moderation.patterns import SURROGATES, apart
from extproc.moderation.types import Match

_PREFIXED: Final = (
    ("openai", "api_key", r"sk-(?:proj-|svcacct-|admin-|or-v1-|ant-[a-z0-9]+-|lf-)?[0-9A-Za-z_-]{20,300}"),
    ("github", "token", r"gh[pousr]_[0-9A-Za-z]{36,255}|github_pat_[0-9A-Za-z_]{40,255}"),
    ("gitlab", "token", r"gl(?:pat|dt|rt|ptt)-[0-9A-Za-z_-]{20,64}"),
    ("aws", "api_key", r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}"),
    ("alibaba", "api_key", r"LTAI[0-9A-Za-z]{12,26}"),
    ("tencent", "api_key", r"AKID[0-9A-Za-z]{32,36}"),
    ("google", "api_key", r"AIza[0-9A-Za-z_-]{35}|GOCSPX-[0-9A-Za-z_-]{28}"),
    ("google-oauth", "token", r"ya29\.[0-9A-Za-z_-]{20,400}"),
    ("slack", "token", r"xox[abeoprs]-[0-9A-Za-z-]{10,250}|xapp-[0-9]-[0-9A-Za-z-]{10,250}"),
    ("stripe", "api_key", r"(?:sk|rk|pk)_(?:live|test)_[0-9A-Za-z]{16,250}|whsec_[0-9A-Za-z+/=]{24,64}"),
    ("sendgrid", "api_key", r"SG\.[0-9A-Za-z_-]{16,32}\.[0-9A-Za-z_-]{32,64}"),
    ("huggingface", "token", r"hf_[0-9A-Za-z]{30,64}"),
    ("npm", "token", r"npm_[0-9A-Za-z]{36}"),
    ("pypi", "token", r"pypi-[0-9A-Za-z_-]{50,250}"),
    (
        "various",
        "api_key",
        r"(?:gsk_|r8_|xai-|pplx-|nvapi-|dop_v1_|dckr_pat_|shp(?:at|ss|ca)_|lin_api_|key-)[0-9A-Za-z_-]{28,200}",
    ),
    ("jwt", "token", r"eyJ[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}"),
    ("telegram", "token", r"[0-9]{8,10}:AA[0-9A-Za-z_-]{33}"),
)
_NAMED: Final = (
    r"(?i:api[_ -]?key|apikey|access[_ -]?key(?:[_ -]?(?:id|secret))?|secret[_ -]?(?:access[_ -]?)?key|secret[_ -]?id|"
    r"client[_ -]?secret|app[_ -]?secret|auth[_ -]?token|access[_ -]?token|refresh[_ -]?token|api[_ -]?token|"
    r"bearer[_ -]?token|private[_ -]?token|secret|token|encryption[_ -]?key|signing[_ -]?key|密钥|令牌)"
)
_SET: Final = r"[\"'`]?\s{0,3}(?:=>|:=|=|:|：|是|为|(?i:\bis\b))\s{0,3}"
_PASSWORD: Final = rf"(?i:password|passwd|passphrase|pwd|密码|口令){_SET}"
_KNOWN: Final = tuple((rf"(\b{pattern})", category, what) for what, category, pattern in _PREFIXED)
_FORMS: Final = (
    *_KNOWN,
    (r"(?i:\bbearer\s{1,3})([0-9A-Za-z_.~+/-]{16,}=*)", "token", "bearer"),
    (r"(?i:\bauthorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?basic\s{1,3})([0-9A-Za-z+/]{8,}=*)", "password", "basic"),
    (rf"{_NAMED}{_SET}[\"'`“]?([0-9A-Za-z_.~+/!@#$%^&*-]{{16,}}=*)", "api_key", "named"),
    (rf"{_PASSWORD}\"([^\"\n]{{4,80}})\"", "password", "quoted"),
    (rf"{_PASSWORD}'([^'\n]{{4,80}})'", "password", "quoted"),
    (rf"{_PASSWORD}([!-~]{{6,80}})", "password", "named"),
    (
        r"(?i:\b[a-z][a-z0-9+.-]{1,30}://)[^\s:/@\"'<>]{0,64}:([^\s/\"'<>@]{1,128})@[0-9A-Za-z\[]",
        "password",
        "connection",
    ),
)
_PLACEHOLDER = re.compile(
    r"your|placeholder|changeme|redacted|dummy|<|>|\$\{|\$\(|\{\{|%\(|process\.|os\.|getenv|config\.|settings\.|"
    r"self\.|x{4,}|\*{3,}|\.{3}|…|^[$%]|\w\(|\(\)|\[\]|^(?:null|none|undefined|true|false|string|required)$",
    re.IGNORECASE,
)
_BLANKED = re.compile(r"your|placeholder|x{4,}|\*{3,}", re.IGNORECASE)
_WORDS = re.compile(r"[a-z]{1,11}(?:[ _.-][a-z]+)*", re.IGNORECASE)
_TRAILING: Final = ".,;:!?)]}\"'`&"
_PEM = re.compile(r"-----BEGIN (?:[0-9A-Z]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END (?:[0-9A-Z]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PEM_BODY = re.compile(
    r"(?:[\s\"'+>|,:-]|\\[nrt])*(?:[0-9A-Za-z+/=]{16,}(?:[\s\"'+>|,]|\\[nrt])*)+(?:[0-9A-Za-z+/=]*\Z)?"
)
_BASE64 = re.compile("[0-9A-Za-z+/=]")
_TOKEN_NAME = re.compile("token|令牌", re.IGNORECASE)
_KNOWN_NAMES: Final = frozenset(what for _, _, what in _KNOWN)


class Credentials:
    """Finds secrets; the categories are ``api_key``, ``token``, ``password`` and ``private_key``.

    A secret longer than ``reach`` characters is matched as far as that; the default holds a private key of 4096 bits.
    A stream is held back while a secret may go on, so a policy for answers may want less.
    """

    def __init__(self, *, reach: int = 4096) -> None:
        self._reach = reach
        self._forms = _compiled(_FORMS)
        self._known = _compiled(_KNOWN)

    @property
    def reach(self) -> int:
        return self._reach

    def find(self, text: str) -> Sequence[Match]:
        found = [*self._private_keys(text), *self._others(text)]
        return apart(found)

    def _private_keys(self, text: str) -> Iterator[Match]:
        for head in _PEM.finditer(text):
            limit = head.start() + self._reach
            tail = _PEM_END.search(text, head.end(), limit)
            again = text.find("-----BEGIN", head.end(), tail.start() if tail else limit)
            body = _PEM_BODY.match(text, head.end(), limit if again < 0 else again)
            if tail and again < 0 and len(_BASE64.findall(text, head.end(), tail.start())) >= 32:
                yield Match(head.start(), tail.end(), "private_key", 1.0, "pem")
            elif body:
                yield Match(head.start(), body.end(), "private_key", 0.9, "pem-open")

    def _others(self, text: str) -> Iterator[Match]:
        for found in self._forms.finditer(SURROGATES.sub("\ufffd", text)):
            number = next(number for number, group in enumerate(found.groups()) if group is not None)
            start, end = found.span(number + 1)
            _, category, what = _FORMS[number]
            value = text[start : min(end, start + self._reach)]
            if what == "named":
                value = value.rstrip(_TRAILING)
            known = self._known.match(value) if value.isascii() and what in ("named", "bearer") else None
            if known:
                number = next(number for number, group in enumerate(known.groups()) if group is not None)
                _, category, what = _KNOWN[number]
            elif what == "named" and category == "api_key" and _TOKEN_NAME.search(text[found.start() : start]):
                category = "token"
            if _is_secret(value, category, what):
                yield Match(start, start + len(value), category, 0.9, what)


def _compiled(forms: Sequence[tuple[str, str, str]]) -> Any:
    options = re2.Options()
    options.max_mem = 64 << 20
    options.log_errors = False
    return re2.compile("|".join(form for form, _, _ in forms), options)


def _is_secret(value: str, category: str, what: str) -> bool:
    """Not a placeholder, a name or a sentence."""
    if what == "connection":
        return _PLACEHOLDER.search(value) is None
    if what in ("basic", "jwt"):
        return True
    digit = any(map(str.isdigit, value))
    if what in _KNOWN_NAMES:
        return digit and _entropy(value) >= 2.5 and _BLANKED.search(value) is None
    if _PLACEHOLDER.search(value):
        return False
    if category == "password":
        strong = what == "quoted" or any(character in "0123456789!@#$%^&*" for character in value)
        return strong and len(value) >= 4 and _WORDS.fullmatch(value) is None
    least = 4.0 if "example" in value.lower() else 3.0
    return len(value) >= 16 and digit and not value.isdigit() and _entropy(value) >= least


def _entropy(value: str) -> float:
    """Bits a character, by the characters' own frequencies."""
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())
