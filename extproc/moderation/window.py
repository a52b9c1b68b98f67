"""One running text of a streamed answer: what came, how far it was judged, and what is changed in it.

No I/O, no clock. Text is settled from its beginning on: what is settled was judged with what follows it in view, and
may go out. A match at the very end of what came may be the beginning of another one, or of none: it waits for more.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from extproc.core.call import Verdict
from extproc.moderation.rules import Rule
from extproc.moderation.types import Action, Match

_RUN: Final = re.compile(r"(?:[\d+(][\d.\-() ]*|[A-Za-z0-9_@.+/=\-]+)\Z")
"""What may be the beginning of a number, an address or a key."""


class Change(NamedTuple):
    """Characters ``start`` to just before ``end`` become ``text``, or stay where it is None."""

    start: int
    end: int
    text: str | None


class Running:
    """``rules`` are those with checks; ``hold`` characters wait at most; ``mask`` gives what stands for a match.

    Positions count from the beginning of the text.
    """

    def __init__(
        self,
        place: str,
        rules: Sequence[Rule],
        *,
        hold: int,
        mask: Callable[[Rule, str, Match], str],
    ) -> None:
        self.place = place
        self._rules = [(rule, rule.check) for rule in rules if rule.check is not None]
        self._mask = mask
        self._reach = max((check.reach for _, check in self._rules), default=0)
        self._hold = min(self._reach, hold)
        self._base = 0
        self._text = ""
        self._told: set[Verdict] = set()
        self._changes: list[Change] = []
        self.settled = 0
        self.taken = 0

    @property
    def end(self) -> int:
        return self._base + len(self._text)

    def add(self, text: str) -> None:
        self._text += text

    def text(self, start: int, end: int) -> str:
        """As it came; what is far behind is forgotten."""
        return self._text[max(start - self._base, 0) : max(end - self._base, 0)]

    def settle(self, *, due: bool, final: bool, until: int | None = None) -> list[Verdict]:
        """Judge what came by the checks, and settle what they let pass. Gives what they found in it, each once.

        ``due``: it has waited long enough. ``final``: nothing follows. ``until``: no further than this. A verdict that
        blocks is the last, and settles nothing from its match on.
        """
        start = max(self.settled - self._reach, self._base)
        window = self._text[start - self._base :]
        safe = self.end if final else self._due(start, window) if due else self.end - self._hold
        safe = max(safe if until is None else min(safe, until), self.settled)
        found = list(self._found(window, start))
        for change, _, _ in found:
            if change.end > safe or (change.end == self.end and not final):
                safe = max(min(safe, change.start), self.settled)
        verdicts: list[Verdict] = []
        for change, verdict, blocks in sorted(found, key=lambda each: (each[0].start, each[0].end)):
            if change.end > safe:
                continue
            if verdict not in self._told:
                self._told.add(verdict)
                verdicts.append(verdict)
            if blocks:
                self.settled = max(self.settled, change.start)
                return verdicts
            if change.text is not None:
                self._change(change)
        self.settled = safe
        return verdicts

    def _due(self, start: int, window: str) -> int:
        """Nothing waits but what may be the beginning of something longer."""
        run = _RUN.search(window)
        return start + run.start() if run and len(window) - run.start() <= self._reach else self.end

    def _found(self, window: str, start: int) -> Iterator[tuple[Change, Verdict, bool]]:
        """Everything in the window that is not behind us: where it is, what becomes of it, whether it blocks."""
        for rule, check in self._rules:
            for match, action in rule.judged(check.find(window)):
                here = match._replace(start=start + match.start, end=start + match.end)
                if here.end > self.settled:
                    verdict = rule.verdict(here, action, "response", self.place)
                    text = self._mask(rule, self.text(here.start, here.end), here) if action is Action.MASK else None
                    yield Change(here.start, here.end, text), verdict, action is Action.BLOCK

    def _change(self, change: Change) -> None:
        """What overlaps with an earlier change, or is out already, stays as it is."""
        last = self._changes[-1].end if self._changes else self.taken
        if change.start >= last:
            self._changes.append(change)
        elif change.end > last:
            self._changes.append(change._replace(start=last))

    def take(self, end: int) -> tuple[str, bool]:
        """The next settled characters, up to ``end``, as they go out, and whether they were changed.

        A change goes out whole where it begins, and what it stood for not at all.
        """
        parts: list[str] = []
        changed = False
        at = self.taken
        for change in self._changes:
            if change.end <= at or change.start >= end:
                continue
            parts.append(self.text(at, max(change.start, at)))
            if change.start >= at:
                parts.append(change.text or "")
            changed = True
            at = min(max(change.end, at), end)
        parts.append(self.text(at, end))
        self.taken = end
        self._changes = [change for change in self._changes if change.end > end]
        self._forget()
        return "".join(parts), changed

    def _forget(self) -> None:
        keep = min(self.taken, self.settled - self._reach)
        if keep - self._base > 4 * self._reach + 4096:
            self._text = self._text[keep - self._base :]
            self._base = keep
