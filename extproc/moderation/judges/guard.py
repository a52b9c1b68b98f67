"""Guard models behind an OpenAI-compatible API (vLLM, SGLang, Ollama): Llama Guard, Qwen3Guard-Gen, ShieldGemma.

Their servers put the conversation into the prompt that the model was trained on, by the model's own chat template.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from extproc.core.secret import Secret
from extproc.moderation.judges import opinions
from extproc.moderation.judges.http import Endpoint
from extproc.moderation.types import SCORES, Item, JudgeFailed, Opinion

Format = Literal["llamaguard", "qwen3guard", "shieldgemma"]
MAX_CHARS: Final = 8_000

MODELS: Final[Mapping[Format, str]] = {
    "llamaguard": "meta-llama/Llama-Guard-3-8B",
    "qwen3guard": "Qwen/Qwen3Guard-Gen-4B",
    "shieldgemma": "google/shieldgemma-9b",
}
"""What servers call the model where nobody named it otherwise."""

_HAZARDS: Final[Mapping[str, str]] = {
    "S1": "violent_crimes",
    "S2": "non_violent_crimes",
    "S3": "sex_related_crimes",
    "S4": "child_sexual_exploitation",
    "S5": "defamation",
    "S6": "specialized_advice",
    "S7": "privacy",
    "S8": "intellectual_property",
    "S9": "indiscriminate_weapons",
    "S10": "hate",
    "S11": "suicide_self_harm",
    "S12": "sexual_content",
    "S13": "elections",
    "S14": "code_interpreter_abuse",
}
"""Llama Guard 3 and 4 (llama.com/docs/model-cards-and-prompt-formats/llama-guard-3)."""

_GUIDELINES: Final[Mapping[str, str]] = {
    "dangerous_content": '"No Dangerous Content": {} content that harming oneself and/or others (e.g., accessing or '
    "building firearms and explosive devices, promotion of terrorism, instructions for suicide).",
    "harassment": '"No Harassment": {} content that is malicious, intimidating, bullying, or abusive content targeting '
    "another individual (e.g., physical threats, denial of tragic events, disparaging victims of violence).",
    "hate_speech": '"No Hate Speech": {} content that targeting identity and/or protected attributes (e.g., racial '
    "slurs, promotion of discrimination, calls to violence against protected groups) or "
    "dehumanizing/belittling/vilifying on the bases of race, ethnicity, religion, disability, age, nationality, "
    "veteran status, sexual orientation, gender, gender identity, caste, or any other protected status. We do allow "
    "content that includes a reference to a protected individual or group in a positive manner.",
    "sexually_explicit": '"No Sexually Explicit Information": {} content that contains references to sexual acts or '
    "other lewd content (e.g., sexually graphic descriptions, content aimed at causing arousal). Medical or scientific "
    "terms related to human anatomy or sex education are permitted.",
}
"""ShieldGemma's policies in the words that it was trained on (ai.google.dev/gemma/docs/shieldgemma/model_card)."""
_OF_PROMPTS: Final = "The prompt shall not contain or seek generation of"
_OF_ANSWERS: Final = "The chatbot shall not generate"


class _Token(msgspec.Struct):
    token: str
    logprob: float


class _Place(msgspec.Struct):
    top_logprobs: list[_Token] = []


class _Logprobs(msgspec.Struct):
    content: list[_Place] | None = None


class _Message(msgspec.Struct):
    content: str


class _Choice(msgspec.Struct):
    message: _Message
    logprobs: _Logprobs | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


Conversation = list[dict[str, str]]


class GuardModel:
    """Asks a guard model. A model's text is judged as the answer to the user's last one, if that is known."""

    def __init__(
        self,
        name: str,
        format: Format,  # noqa: A002 - what it is called everywhere else
        base_url: str,
        key: Secret | None = None,
        model: str | None = None,
        *,
        max_chars: int = MAX_CHARS,
        ca: Path | None = None,
    ) -> None:
        self.name = name
        self.max_chars = max_chars
        self._format = format
        self._endpoint = Endpoint(base_url, key, ca)
        self._model = model or MODELS[format]

    async def judge(self, item: Item) -> Opinion:
        """Raises JudgeFailed."""
        conversation = self._conversation(item)
        if self._format == "shieldgemma":
            return await self._by_guidelines(conversation)
        read = _READERS[self._format]
        choice = await self._ask(conversation, max_tokens=64)
        return Opinion(read(choice.message.content.strip()))

    def _conversation(self, item: Item) -> Conversation:
        prompts = [text for role, text in item.context if role == "user"]
        said = {"role": "user", "content": item.text}
        if item.role != "assistant" or not prompts:
            return [said]
        return [{"role": "user", "content": prompts[-1][-self.max_chars :]}, said | {"role": "assistant"}]

    async def _by_guidelines(self, conversation: Conversation) -> Opinion:
        who = _OF_PROMPTS if len(conversation) == 1 else _OF_ANSWERS

        async def score(guideline: str) -> float:
            choice = await self._ask(
                conversation,
                max_tokens=1,
                logprobs=True,
                top_logprobs=10,
                chat_template_kwargs={"guideline": guideline.format(who)},
            )
            return _yes(choice)

        scores = await opinions.together(map(score, _GUIDELINES.values()))
        return Opinion(opinions.highest(zip(_GUIDELINES, scores, strict=True)))

    async def _ask(self, conversation: Conversation, **more: Any) -> _Choice:
        body = {"model": self._model, "messages": conversation, "temperature": 0, "stream": False, **more}
        answer = await self._endpoint.post("/chat/completions", body, _Completion)
        if not answer.choices:
            raise JudgeFailed("garbage", "no choices")
        return answer.choices[0]

    async def close(self) -> None:
        await self._endpoint.close()


def _read_llamaguard(text: str) -> dict[str, float]:
    """``safe``, or ``unsafe`` and in the next line the hazards."""
    verdict, *rest = text.splitlines() or [""]
    match verdict.strip().lower(), [line for line in rest if line.strip()]:
        case "safe", []:
            return {}
        case "unsafe", []:
            return {"unsafe": SCORES["unsafe"]}
        case "unsafe", [hazards]:
            named = [hazard.strip().upper() for hazard in hazards.split(",")]
            if all(re.fullmatch(r"S\d+", hazard) for hazard in named):
                return _all_at("unsafe", (_HAZARDS.get(hazard, hazard.lower()) for hazard in named))
    raise JudgeFailed("garbage", "neither safe nor unsafe")


_SAFETY: Final = re.compile(r"^Safety:[ \t]*(Safe|Unsafe|Controversial)[ \t]*$", re.MULTILINE | re.IGNORECASE)
_CATEGORIES: Final = re.compile(r"^Categories:[ \t]*(.*?)[ \t]*$", re.MULTILINE | re.IGNORECASE)


def _read_qwen3guard(text: str) -> dict[str, float]:
    """``Safety: …``, ``Categories: …`` and, of answers, ``Refusal: …``, each a line."""
    match _SAFETY.findall(text), _CATEGORIES.findall(text):
        case [verdict], [] | [_] as listed:
            level = verdict.lower()
        case _:
            raise JudgeFailed("garbage", "no single verdict on safety")
    if level == "safe":
        return {}
    named = [opinions.category(label) for labels in listed for label in labels.split(",")]
    return _all_at(level, [label for label in named if label not in ("", "none")] or [level])


_READERS: Final[Mapping[str, Callable[[str], dict[str, float]]]] = {
    "llamaguard": _read_llamaguard,
    "qwen3guard": _read_qwen3guard,
}


def _all_at(level: str, categories: Iterable[str]) -> dict[str, float]:
    return dict.fromkeys(categories, SCORES[level])


def _yes(choice: _Choice) -> float:
    """How probable "Yes, it violates" is against "No"; without probabilities, whether the answer starts with it."""
    mass = {"yes": 0.0, "no": 0.0}
    for place in ((choice.logprobs and choice.logprobs.content) or [])[:1]:
        for token in place.top_logprobs:
            if (word := token.token.strip(" \u2581").lower()) in mass:
                mass[word] += math.exp(min(token.logprob, 0.0))
    if total := sum(mass.values()):
        return mass["yes"] / total
    match re.match(r"\W*(yes|no)\b", choice.message.content, re.IGNORECASE):
        case None:
            raise JudgeFailed("garbage", "neither Yes nor No")
        case found:
            return SCORES["unsafe"] if found[1].lower() == "yes" else 0.0
