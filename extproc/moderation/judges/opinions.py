"""Texts in pieces, and opinions put together."""

import asyncio
import re
from collections.abc import Coroutine, Iterable, Mapping
from itertools import chain
from typing import Any, Final, TypeVar

from extproc.moderation.types import Match, Opinion

_T = TypeVar("_T")
NEGLIGIBLE: Final = 0.01
"""Scores below are noise: a judge that gives all categories a number has found nothing."""


async def together(questions: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All answers, in order, asked for at once. The first error ends it, and the other questions with it."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(question) for question in questions]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def pieces(text: str, size: int, overlap: int) -> list[tuple[int, str]]:
    """The text in pieces of at most ``size`` characters, each with where it starts; neighbours share ``overlap``."""
    if len(text) <= size:
        return [(0, text)]
    step = size - overlap
    return [(start, text[start : start + size]) for start in range(0, len(text) - overlap, step)]


def merged(opinions: Iterable[tuple[int, Opinion]]) -> Opinion:
    """One opinion of those on the pieces that start there: the highest scores, and the spans in the whole text."""
    scores: dict[str, float] = {}
    matches: set[Match] = set()
    for start, opinion in opinions:
        for category, score in opinion.scores.items():
            scores[category] = max(score, scores.get(category, 0.0))
        matches |= {match._replace(start=match.start + start, end=match.end + start) for match in opinion.matches}
    return Opinion(scores, tuple(sorted(matches)))


def highest(found: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The highest score of each category, without noise."""
    scores: dict[str, float] = {}
    for category, score in found:
        if score >= NEGLIGIBLE:
            scores[category] = max(score, scores.get(category, 0.0))
    return scores


def occurrences(text: str, words: Mapping[str, tuple[str, float]]) -> tuple[Match, ...]:
    """Where words stand in a text; a word → its category and score."""
    found = (
        (Match(at.start(), at.end(), category, score, word) for at in re.finditer(re.escape(word), text))
        for word, (category, score) in words.items()
        if word
    )
    return tuple(sorted(chain.from_iterable(found)))


def category(label: str) -> str:
    """``Suicide & Self-Harm`` → ``suicide_self_harm``: labels as policies write them."""
    return re.sub(r"\W+", "_", label.lower()).strip("_")
