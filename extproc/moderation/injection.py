"""Heuristics for prompt injection: texts that try to change what a model was told, in English and Chinese."""

# ruff: noqa: E501 - a pattern reads best whole

import base64
import binascii
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import re2

from extproc.moderation.normalise import normalise
from extproc.moderation.types import Match

_LONGEST: Final = 240
"""Characters that a signal may span."""
_NEAR: Final = 160
"""Signals that begin so near to each other count together."""
_CERTAIN: Final = 0.5
"""A signal or several of less than this are not worth decoding a blob for."""
_ABOUT: Final = "about"
_QUOTES: Final = "\"'`“”‘’「」『』«»"
_OF_ABOUT: Final = 0.65
_OF_QUOTED: Final = 0.35
"""How much is left of the score where a text speaks of injections, and where it quotes one."""

_WHOSE = r"(?:(?:all|any|every|each|both|of|the|your|my|our|these|those|this|that|its|such)\s+){0,4}"
_EARLIER = (
    r"(?:previous(?:ly)?|prior|above|preceding|earlier|foregoing|existing|initial|original|current|past|former|given"
    r"|system|developer|hidden|default)"
)
_ORDERS = (
    r"(?:instructions?|prompts?|directions?|directives?|rules?|guidelines?|commands?|constraints?|restrictions?"
    r"|programming|training|polic(?:y|ies)|orders?|guidance|context|safeguards|guardrails|protocols?)"
)
_DROP = (
    r"(?:ignor(?:e|ing)|disregard(?:ing)?|forget(?:ting)?|overrid(?:e|ing)|bypass(?:ing)?|neglect|discard|drop|skip"
    r"|do\s+not\s+(?:follow|obey)|don'?t\s+(?:follow|obey)|stop\s+(?:following|obeying)|pay\s+no\s+attention\s+to)"
)
_TELL = (
    r"(?:reveal|show|print|output|repeat|display|tell|give|leak|expose|share|disclose|dump|return|write|recite|send"
    r"|what\s+(?:is|are|was|were)|what's)"
)
_HIDDEN = (
    r"(?:system\s+(?:prompt|message|instructions?)|(?:initial|hidden|original|secret|internal|confidential|full|exact)"
    r"\s+(?:system\s+)?(?:prompt|instructions?|rules)|developer\s+(?:message|prompt|instructions)|pre-?prompt)"
)
_PLAY = r"(?:act(?:ing)?\s+as|pretend(?:ing)?|role-?\s?play(?:ing)?|simulate|imagine|behave\s+(?:as|like)|you\s+are)"
_FREE = (
    r"(?:(?:no|without|free\s+(?:of|from)|not\s+bound\s+by|unbound\s+by|ignor(?:es|ing)|beyond)\s+"
    r"(?:(?:any|all|the|your|its|ethical|safety|content|moral|openai'?s?|legal|or|and|of)\s+){0,4}"
    r"(?:restrictions?|rules|filters?|limits|limitations|guidelines|ethics|morals|polic(?:y|ies)|censorship|safeguards)"
    r"|unrestricted|unfiltered|uncensored|jailbroken|amoral)"
)
_DROP_ZH = r"(?:忽略|无视|忽视|忘记|忘掉|忘了|抛弃|抛开|不要理会|不要管|别管|不用管|不要遵守|不再遵守|停止遵守|跳过|绕过|撇开|清除|删除|覆盖|推翻)"
_EARLIER_ZH = (
    r"(?:之前|以上|上述|上面|前面|先前|此前|所有|全部|任何|一切|系统|原有|原来|原先|既定|初始|收到|给你|给你的|当前|已有|现有"
    r"|预设|开发者|被告知|设定)"
)
_ORDERS_ZH = r"(?:指令|指示|提示词|系统提示|命令|规则|设定|约束|限制|准则|规定|system\s?prompt|prompts?|instructions?)"
_TELL_ZH = r"(?:输出|显示|打印|告诉|说出|透露|泄露|泄漏|展示|公开|重复|复述|给我看|列出|返回|写出|发给我|发出来|讲出|念出|贴出来)"
_HIDDEN_ZH = (
    r"(?:系统提示词?|系统指令|系统消息|系统设定|初始指令|初始提示词?|初始设定|隐藏指令|隐藏提示词?|内部指令|内部提示词?|开发者指令"
    r"|原始指令|原始提示词?|提示词|system\s?prompt|prompt)"
)

_SIGNALS: Final[Sequence[tuple[str, float, str]]] = (
    ("override", 0.85, rf"\b{_DROP}\s+{_WHOSE}{_EARLIER}\s+(?:\w+\s+){{0,2}}?{_ORDERS}\b"),
    ("override", 0.75, rf"\b{_DROP}\s+(?:all\s+|any\s+|every\s+)?(?:of\s+)?your\s+(?:\w+\s+)?{_ORDERS}\b"),
    ("override", 0.75, rf"\b{_DROP}\s+(?:all|any)\s+(?:(?:of|the|these)\s+){{0,3}}(?:instructions?|prompts?|directives?|guidelines|guardrails)\b"),
    ("override", 0.5, rf"\b{_DROP}\s+(?:all|any|every)\s+(?:(?:of|the|these)\s+){{0,3}}(?:\w+\s+)?{_ORDERS}\b"),
    ("override", 0.7, rf"\b{_EARLIER}\s+{_ORDERS}\s+(?:are|is|were|have\s+been)\s+(?:now\s+)?(?:void|cancel\w+|obsolete|revoked|invalid|no\s+longer)"),
    ("override", 0.55, r"\b(?:ignore|disregard|forget)\s+(?:all\s+)?(?:of\s+)?the\s+above(?:\s+and\b|\s+instead\b|\s*[.,;:!]|\s*$)"),
    ("override", 0.75, rf"{_EARLIER_ZH}的?{_ORDERS_ZH}(?:现在|现已|已经|已|全部|全都|都|均){{0,3}}(?:作废|失效|无效|被?取消|不再有效)"),
    ("override", 0.8, rf"\b{_DROP}\s+{_WHOSE}{_ORDERS}\s+(?:above|before|(?:that\s+)?(?:you|came|were)\b)"),
    (
        "override",
        0.75,
        (
            r"\b(?:forget|ignore|disregard)\s+(?:all|everything|anything|whatever)\s+(?:of\s+)?(?:that\s+)?(?:(?:was|is|has"
            r"|been|said|written|came|comes)\s+){0,3}(?:(?:above|before|previous|prior|earlier)(?:\s+(?:and|this)\b|\s*[.,;:!]|\s*$)|you\s+(?:were|have|know|learned))"
        ),
    ),
    ("override", 0.6, r"\bsystem\s+(?:prompt\s+)?override\b|\boverride\s+(?:code|protocol)\b"),
    ("override", 0.85, rf"{_DROP_ZH}(?:掉|了)?[你您我们]{{0,2}}的?(?:{_EARLIER_ZH}[的了过,、\s你我]{{0,3}}){{1,4}}{_ORDERS_ZH}"),
    ("override", 0.7, rf"{_DROP_ZH}(?:掉|了)?[你您]的?(?:安全|内容|道德|审查)?{_ORDERS_ZH}"),
    ("override", 0.8, rf"(?:把|将)[你您]?的?(?:{_EARLIER_ZH}[的了过,、\s你我]{{0,3}}){{1,4}}{_ORDERS_ZH}(?:全部|全都|都|统统)?(?:忘|忽略|抛|删|丢)"),
    ("override", 0.55, rf"{_DROP_ZH}(?:掉|了)?(?:我)?(?:之前|以上|上述|上面|前面|先前)(?:说过?|告诉你)?的?(?:所有|全部|一切)(?:的)?(?:内容|要求|对话|话|信息)?"),
    ("leak", 0.75, rf"\b{_TELL}\s+(?:\w+\s+){{0,5}}?your\s+(?:\w+\s+){{0,2}}?{_HIDDEN}"),
    ("leak", 0.7, rf"\b{_TELL}\s+(?:\w+\s+){{0,3}}?(?:prompt|instructions)\s+(?:that\s+)?you\s+(?:were|have\s+been)\s+(?:given|told)"),
    ("leak", 0.7, rf"(?:把|将)[^。!?\n]{{0,4}}?(?:系统|初始|隐藏|内部|原始)(?:提示词?|指令|设定)[^。!?\n]{{0,6}}?{_TELL_ZH}"),
    ("leak", 0.65, rf"\b{_TELL}\s+(?:\w+\s+){{0,2}}?the\s+(?:(?:entire|full|exact|complete|whole)\s+)?(?:hidden|secret|internal|confidential)\s+(?:system\s+)?(?:prompt|instructions)"),
    ("leak", 0.7, r"\b(?:repeat|print|output|copy|show)\s+(?:\w+\s+){0,3}?(?:everything|words|text|content|instructions?|prompt|conversation)\s+(?:that\s+(?:is|are|was)\s+)?(?:written\s+)?(?:above|before\s+this|verbatim)"),
    ("leak", 0.7, r"\byour\s+(?:\w+\s+){0,2}?(?:instructions?|prompt|rules)\s+(?:word\s+for\s+word|verbatim)"),
    ("leak", 0.75, rf"{_TELL_ZH}[^。!?\n]{{0,8}}?[你您](?:的|所?收到的|被给的)?[^。!?\n]{{0,6}}?{_HIDDEN_ZH}"),
    ("leak", 0.75, rf"[你您]的?[^。!?\n]{{0,6}}?{_HIDDEN_ZH}[^。!?\n]{{0,8}}?(?:{_TELL_ZH}|是什么|是啥|有哪些|有什么|原文|发我|发给)"),
    ("leak", 0.65, r"(?:逐字|原样|原封不动|一字不[漏差落])[^。!?\n]{0,8}?(?:重复|输出|复述|打印)[^。!?\n]{0,6}?(?:以上|上面|上述|前面|之前)"),
    ("leak", 0.65, rf"{_TELL_ZH}[^。!?\n]{{0,4}}?(?:以上|上面|上述|前面|之前)[^。!?\n]{{0,6}}?(?:指令|提示词|系统提示|prompt)"),
    ("persona", 0.75, r"\b(?:dan|jailbreak|god|unrestricted|unfiltered|uncensored|sudo|evil)\s+mode\b|\bdo\s+anything\s+now\b"),
    ("persona", 0.7, rf"\byou\s+are\s+now\s+(?:\w+\s+){{0,3}}?(?:dan|stan|dude|developer\s+mode|free\b|no\s+longer|{_FREE})"),
    ("persona", 0.5, r"\b(?:enable|enter|activate|switch\s+to|turn\s+on|you\s+are\s+in)\s+(?:\w+\s+)?(?:developer|debug|maintenance|admin|root)\s+mode\b"),
    ("persona", 0.75, rf"\b{_PLAY}\s+(?:[\w',-]+\s+){{0,12}}?{_FREE}"),
    ("persona", 0.7, r"\byou\s+(?:are\s+no\s+longer|need\s+not\s+be|are\s+not)\s+(?:bound\s+by|restricted\s+by|subject\s+to|limited\s+by|required\s+to\s+follow)"),
    ("persona", 0.75, r"(?:进入|开启|启用|启动|切换到|切换为|激活|打开)了?[^。!?,\n]{0,3}?(?:越狱|上帝|无限制|不受限|dan|无审查|邪恶)\s?模式"),
    ("persona", 0.5, r"(?:进入|开启|启用|启动|切换到|激活|打开|处于)了?[^。!?,\n]{0,3}?(?:开发者|调试|管理员|维护)\s?模式"),
    ("persona", 0.4, r"\b(?:pretend|role-?\s?play|act\s+as)\b|扮演|假装|角色"),
    ("persona", 0.35, r"你(?:现在|如今)(?:就|已经)?是|从现在(?:开始|起),?\s?你|你不再是|\byou\s+are\s+now\b|\bfrom\s+now\s+on,?\s+you\b"),
    ("unbound", 0.45, r"(?:没有|不受|不再受|摆脱|解除|无视|突破|绕过|取消|无需遵守|不必遵守|不用遵守)(?:任何|所有|一切|你的|的|道德|伦理|安全|内容|法律|和|或|、){1,6}(?:限制|约束|规则|审查|过滤|准则|束缚|政策)"),
    ("unbound", 0.7, r"\b(?:bypass|circumvent|evade|disable|turn\s+off|remove)\s+(?:all\s+)?(?:of\s+)?your\s+(?:\w+\s+){0,2}?(?:filters?|restrictions?|guidelines|guardrails|safeguards|limitations|safety|censorship)"),
    ("unbound", 0.7, r"(?:绕过|关闭|禁用|解除|突破|取消|去掉)[你您]的?(?:所有|全部|内容|安全|道德|的)*(?:过滤|限制|审查|护栏|安全机制|约束)"),
    ("replace", 0.5, r"\b(?:new|updated|real|actual)\s+(?:system\s+)?instructions?\s*(?::|are\b|follow)|\byour\s+(?:new|real|true|only)\s+(?:role|task|instructions?|goal|objective|purpose|job)\s+(?:is|are)\b"),
    ("replace", 0.5, r"(?:新的?|真正的?|实际的?)(?:系统)?(?:指令|任务|提示词|身份)\s?(?:是|:|如下)"),
    ("replace", 0.3, r"\b(?:instead|and),?\s+(?:say|output|respond|print|reply|answer|write|do)\b|\b(?:respond|reply|answer|say)\s+only\s+with\b|(?:而是|只需?要?|改为)(?:回复|输出|回答|说)"),
    ("replace", 0.65, r"\b(?:end|end\s+of)\s+(?:the\s+)?(?:system\s+)?(?:prompt|instructions)\b\W{0,10}(?:begin|start|new|user|now)|(?:系统提示|提示词|指令)(?:到此)?结束"),
    ("role", 0.65, r"<\|(?:im_start|start_header_id|im_sep)\|>\s?(?:system|developer)|<\|(?:system|developer)\|>"),
    ("role", 0.45, r"<\|(?:im_start|im_end|user|assistant|endoftext|end_of_text|eot_id|start_header_id|begin_of_text)\|>|\[/?inst\]|<</?sys>>"),
    ("role", 0.6, r"(?m)^\s{0,3}#{2,4}\s?(?:system|system\s+(?:prompt|message)|new\s+instructions?|developer|系统|系统提示|新指令)\s?:"),
    ("role", 0.4, r"</?(?:system|sys|system_prompt|instructions?|developer)>|\[(?:system|系统)(?:\s+(?:message|prompt|消息|提示))?\]|【(?:系统|系统消息|系统指令)】"),
    ("role", 0.25, r"(?m)^\s{0,3}(?:system|developer|系统)\s?:\s?\S"),
    ("role", 0.4, r"(?m)^\s{0,3}[-=*#~]{3,20}\s?(?:end|begin|start|new|system|结束|开始)\b"),
    (
        _ABOUT,
        0.0,
        (
            r"\b(?:prompt[\s-]injections?|injection\s+attacks?|jailbreak\s+(?:attempts?|attacks?|prompts?|techniques?)|attackers?"
            r"|adversar(?:y|ies|ial)|malicious|phrases?|phrasing|red[\s-]team\w*|detect\w*|classif\w*|guardrails\s+for|for\s+example"
            r"|e\.g|such\s+as|owasp|vulnerabilit\w+|papers?|mitigat\w+|defen[dcs]\w+|protect\w*|prevent\w*"
            r"|translate|means?|unit\s+test|the\s+string)\b"
            r"|提示词?注入|注入攻击|越狱攻击|越狱提示|攻击者|恶意|例如|比如|诸如|检测|识别|防御|防范|防止|防护|论文|研究|什么是|什么意思|翻译|这类|之类|此类"
        ),
    ),
)  # fmt: skip

_BASE64: Final = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{24,}={0,2}")
_HEX: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:[0-9a-fA-F]{2}){16,}|(?:\\x[0-9a-fA-F]{2}){12,}|(?:[0-9a-fA-F]{2} ){12,})"
)
_UNSEEN: Final[Sequence[tuple[str, float, re.Pattern[str]]]] = (
    # Seven tags and their end may follow a black flag: that is how regions are written.
    (
        "tags",
        0.85,
        (
            re.compile(
                "[\U000e0000-\U000e007f]{9,}|(?<!\U0001f3f4)(?<![\U000e0000-\U000e007f])[\U000e0000-\U000e007f]{4,}"
            )
        ),
    ),
    ("variations", 0.7, re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{4,}")),
    ("zero-width", 0.65, re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u180e\u202a-\u202e]{8,}")),
    ("zero-width", 0.65, re.compile("(?:[a-z]{1,2}[\u200b\u200c\u200d\u2060\ufeff]{1,4}){6,}", re.IGNORECASE)),
)


class _Signal(NamedTuple):
    start: int
    end: int
    name: str
    weight: float


class Injection:
    """A check for prompt injection: what adds up to ``threshold`` or more, from 0 to 1, in one place of a text.

    Base64 and hexadecimal blobs are decoded, once, and judged like the text. A text that speaks of injections, and
    quotes them, scores less.
    """

    def __init__(self, threshold: float = 0.6) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold: must be above 0 and at most 1, not {threshold}")
        self._threshold = threshold
        options = re2.Options()
        options.log_errors = False
        options.max_mem = 64 << 20
        self._any = re2.Set.SearchSet(options)
        self._patterns: list[Any] = []
        for _, _, pattern in _SIGNALS:
            self._any.Add(pattern)
            self._patterns.append(re2.compile(pattern, options))
        self._any.Compile()

    @property
    def reach(self) -> int:
        """A signal, and those around it that count with it."""
        return 2 * (_LONGEST + _NEAR)

    def find(self, text: str) -> Sequence[Match]:
        signals = [*self._said(text), *_unseen(text), *self._encoded(text)]
        matches: list[Match] = []
        done = 0
        for signal, score, what in _weigh(text, signals):
            if score >= self._threshold and signal.end > done:
                matches.append(Match(max(signal.start, done), signal.end, "injection", score, what))
                done = signal.end
        return matches

    def _said(self, text: str) -> Iterator[_Signal]:
        normal = normalise(text)
        for index in self._any.Match(normal.text) or ():
            name, weight, _ = _SIGNALS[index]
            for found in self._patterns[index].finditer(normal.text):
                start, end = normal.span(*found.span())
                if end - start <= _LONGEST:
                    yield _Signal(start, end, name, weight)

    def _encoded(self, text: str) -> Iterator[_Signal]:
        for name, pattern, decode in (("base64", _BASE64, _from_base64), ("hex", _HEX, _from_hex)):
            for found in pattern.finditer(text):
                blob = found[0][:_LONGEST]
                hidden = decode(blob)
                score = max((score for _, score, _ in _weigh(hidden, list(self._said(hidden)))), default=0.0)
                if score >= _CERTAIN:
                    yield _Signal(found.start(), found.start() + len(blob), name, score)


def _weigh(text: str, signals: list[_Signal]) -> Iterator[tuple[_Signal, float, str]]:
    """Each signal, in order and unless inside one before it, with the score and the names of those near it."""
    signals.sort(key=lambda signal: (signal.start, -signal.end))
    starts = [signal.start for signal in signals]
    done = 0
    for signal in signals:
        if not signal.weight or signal.end <= done:
            continue
        done = signal.end
        near = signals[bisect_left(starts, signal.start - _NEAR) : bisect_right(starts, signal.start + _NEAR)]
        weights: dict[str, float] = {}
        for other in near:
            weights[other.name] = max(weights.get(other.name, 0.0), other.weight)
        about = weights.pop(_ABOUT, None) is not None
        doubt = 1.0
        for weight in weights.values():
            doubt *= 1 - weight
        share = 1.0 if not about else _OF_QUOTED if _is_quoted(text, signal) else _OF_ABOUT
        yield signal, round((1 - doubt) * share, 3), "+".join(sorted(weights))


def _is_quoted(text: str, signal: _Signal) -> bool:
    before, after = text[max(signal.start - 24, 0) : signal.start], text[signal.end : signal.end + 60]
    return any(quote in before for quote in _QUOTES) and any(quote in after for quote in _QUOTES)


def _unseen(text: str) -> Iterator[_Signal]:
    if text.isascii():
        return
    for name, weight, pattern in _UNSEEN:
        for found in pattern.finditer(text):
            yield _Signal(found.start(), min(found.end(), found.start() + _LONGEST), name, weight)


def _from_base64(blob: str) -> str:
    whole = blob.rstrip("=").replace("-", "+").replace("_", "/")
    whole = whole[: len(whole) - (len(whole) % 4 == 1)]
    return _readable(base64.b64decode(whole + "=" * (-len(whole) % 4)))


def _from_hex(blob: str) -> str:
    digits = blob.replace("\\x", "").replace(" ", "")
    return _readable(binascii.unhexlify(digits[: len(digits) // 2 * 2]))


def _readable(data: bytes) -> str:
    """As text; empty where it is something else."""
    text = data.decode("utf-8", "ignore")
    return text if len(text.encode()) >= len(data) - 3 else ""
