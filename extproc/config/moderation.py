"""The part of a policy that says which texts are judged, how, and what is done about them."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from extproc.config.parts import Part
from extproc.config.units import Seconds
from extproc.moderation.types import SCORES

Word = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Category = Annotated[str, StringConstraints(min_length=1, max_length=64)]
ActionName = Literal["block", "mask", "flag"]
_LEVELS = ", ".join(sorted(SCORES))


def _score(value: object) -> object:
    if isinstance(value, str):
        if value not in SCORES:
            raise ValueError(f"{value!r} should be a number from 0 to 1, or one of {_LEVELS}")
        return SCORES[value]
    return value


Threshold = Annotated[float, Field(ge=0, le=1), BeforeValidator(_score, json_schema_input_type=float | str)]


class Lexicon(Part):
    """Words, also where they are disguised."""

    words: list[Word] | dict[Category, list[Word]] = []
    """The words, or words by category."""
    files: list[Path] = []
    """Files of words, one a line; `[category]` begins a group, `#` a comment. Relative to the configuration file."""
    allow: list[Word] = []
    """Words and phrases inside which nothing counts."""


class Check(Part):
    """One check: exactly one of `lexicon`, `pii`, `secrets`, `patterns`, `injection` and `judge`."""

    lexicon: Lexicon | None = None
    """Words, also where they are disguised."""
    pii: list[Category] | None = None
    """Kinds of personal data, each validated: phone, bank_card, cn_id, iban, email, ip, passport, plate."""
    secrets: bool | None = None
    """API keys, tokens, passwords and private keys."""
    patterns: dict[Category, list[str]] | None = None
    """Regular expressions by category, of RE2's syntax, which no text can make slow."""
    injection: bool | None = None
    """Attempts to make the model forget its instructions."""
    judge: str | None = None
    """A judge's name in `judges`."""
    action: ActionName | dict[Category, ActionName] = "block"
    """What is done about what is found, or by category; categories that are not named are flagged then."""
    threshold: Threshold | dict[Category, Threshold] = 0.5
    """From which score on it counts, or by category; a number from 0 to 1, or a level."""
    roles: list[Literal["system", "user", "assistant", "tool"]] = []
    """Only texts of these roles; all where not set."""
    restore: bool = False
    """Masks of the request become the originals again in the answer."""
    style: Literal["label", "stars", "hash"] = "label"
    """What a mask looks like: `[PHONE_1]`, stars, or a hash."""
    mode: Literal["blocking", "parallel"] = "blocking"
    """Whether the provider gets the request while a judge still thinks. The client gets nothing before the verdict."""
    on_error: Literal["refuse", "allow"] = "refuse"
    """What happens when a judge gives no opinion."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        kinds = (self.lexicon, self.pii, self.secrets or None, self.patterns, self.injection or None, self.judge)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("a check is one of lexicon, pii, secrets, patterns, injection and judge")
        if self.mode == "parallel" and self.judge is None:
            raise ValueError("mode: parallel is for judges")
        if self.judge is None and "on_error" in self.model_fields_set:
            raise ValueError("on_error is for judges: nothing can happen to the other checks")
        return self


class Hold(Part):
    """How much of a stream is held back, at most, until it was judged."""

    chars: Annotated[int, Field(ge=16, le=4000)] = 160
    """Characters that wait for what may follow them."""
    time: Annotated[Seconds, Field(gt=0, le=10)] = 0.2
    """Time after which they go out, if nothing was found in them."""
    window: Annotated[int, Field(ge=20, le=10_000)] = 300
    """Characters about which a judge is asked at once, unless a sentence ends before."""


class Moderation(Part):
    """Which texts are judged, how, and what is done about them."""

    request: list[Check] = []
    """Checks of what goes in, in this order; the strictest action wins."""
    response: list[Check] = []
    """Checks of what comes out."""
    block_message: str | dict[Category, str] = "我不能处理这个问题"
    """What a blocked call is answered with, or by language (`zh`, `en`) and category (`politics`, `politics.en`)."""
    status: Annotated[int, Field(ge=400, le=599)] | None = None
    """Answer with this status and an error instead of a completion."""
    show_reason: bool = False
    """Whether the client is told the category."""
    unreadable: Literal["refuse", "allow"] = "refuse"
    """What happens to a request with parts that no check can read, such as audio."""
    hold: Hold = Hold()
    """How much of a stream is held back."""
