"""What a call will take, before it is known: guesses that learn from the usage that providers report."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from extproc.dialects.tokens import Tokens
from extproc.dialects.usage import Usage

ANSWER: Final = 500.0
"""Tokens of an answer of which nothing is known yet."""
_STEP: Final = 0.2  # of the error that one call corrects
_FACTORS: Final = (0.25, 4.0)
_SANE: Final = 4.0  # times the guess: beyond it the tokens are of something else, such as images
_MEMORY: Final = 0.05  # weight of the newest answer

OnError = Callable[[str, str, float], None]
"""Model, ``prompt`` or ``answer``, reported ÷ estimated."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's guess: ``raw`` tokens by script before what was learnt, ``fixed`` ones, and the ``tokens`` in all."""

    raw: Tokens
    fixed: int
    tokens: int


@dataclass(slots=True)
class _Known:
    latin: float = 1.0
    cjk: float = 1.0
    code: float = 1.0
    answer: float = ANSWER
    spread: float = 0.0
    answers: int = 0


class Estimator:
    """Learns by model: how many tokens its vocabulary makes of each script, and how long its answers are.

    A normalised least-mean-squares step for each reported usage; a moving mean and mean deviation of answers.
    """

    def __init__(self, on_error: OnError) -> None:
        self._known: dict[str, _Known] = {}
        self._on_error = on_error

    def prompt(self, model: str, raw: Tokens, fixed: int) -> Prompt:
        """The guess for a prompt of these ``raw`` tokens by script and ``fixed`` ones."""
        known = self._known.get(model)
        if known is None:
            return Prompt(raw, fixed, raw.total + fixed)
        scaled = Tokens(raw.latin * known.latin, raw.cjk * known.cjk, raw.code * known.code)
        return Prompt(raw, fixed, scaled.total + fixed)

    def answer(self, model: str) -> int:
        """Tokens that an answer of this model has, unless it is an uncommonly long one."""
        known = self._known.get(model)
        return round(known.answer + known.spread) if known else round(ANSWER)

    def seed(self, model: str, answer: float) -> None:
        """Begin with what the ledger says of this model's answers."""
        self._known.setdefault(model, _Known(answers=round(1 / _MEMORY))).answer = answer

    def learn(self, model: str, prompt: Prompt, usage: Usage, *, completed: bool) -> None:
        """Compare a guess with what the provider reported. Answers that were cut short teach nothing."""
        if usage.source != "reported":
            return
        known = self._known.setdefault(model, _Known())
        if usage.input and prompt.tokens and 1 / _SANE <= usage.input / prompt.tokens <= _SANE:
            self._on_error(model, "prompt", usage.input / prompt.tokens)
            self._correct(known, prompt, usage.input)
        if completed and usage.output:
            self._on_error(model, "answer", usage.output / max(known.answer, 1.0))
            weight = max(_MEMORY, 1 / (known.answers + 1))
            error = usage.output - known.answer
            known.answers += 1
            known.answer += weight * error
            known.spread += weight * (abs(error) - known.spread) if known.answers > 1 else 0.0

    @staticmethod
    def _correct(known: _Known, prompt: Prompt, reported: int) -> None:
        raw = prompt.raw
        power = raw.latin**2 + raw.cjk**2 + raw.code**2
        if not power:
            return
        guess = raw.latin * known.latin + raw.cjk * known.cjk + raw.code * known.code
        step = _STEP * (reported - prompt.fixed - guess) / power
        low, high = _FACTORS
        known.latin = min(max(known.latin + step * raw.latin, low), high)
        known.cjk = min(max(known.cjk + step * raw.cjk, low), high)
        known.code = min(max(known.code + step * raw.code, low), high)
