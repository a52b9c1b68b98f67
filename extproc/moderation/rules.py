"""The checks of a policy: whom they concern, what counts, and what is done about it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from extproc.core.call import Verdict
from extproc.moderation.types import Action, Check, Direction, Judge, Match, Opinion, Role

Style = Literal["label", "stars", "hash"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One check or judge of a policy. What is not named in ``actions`` or ``thresholds`` has the general one."""

    name: str
    check: Check | None = None
    judge: Judge | None = None
    action: Action = Action.BLOCK
    actions: Mapping[str, Action] = field(default_factory=dict)
    threshold: float = 0.5
    thresholds: Mapping[str, float] = field(default_factory=dict)
    roles: frozenset[Role] = frozenset()
    restore: bool = False
    style: Style = "label"
    parallel: bool = False
    refuse_on_error: bool = True

    def concerns(self, role: Role) -> bool:
        return not self.roles or role in self.roles

    def action_on(self, category: str, score: float) -> Action:
        """What is done about this; PASS where it does not count."""
        if score < self.thresholds.get(category, self.threshold):
            return Action.PASS
        return self.actions.get(category, self.action)

    def judged(self, matches: Iterable[Match]) -> Iterator[tuple[Match, Action]]:
        """Those that count."""
        for match in matches:
            action = self.action_on(match.category, match.score)
            if action is not Action.PASS:
                yield match, action

    def verdicts(self, opinion: Opinion, direction: Direction, place: str) -> list[Verdict]:
        """What a judge's opinion comes to."""
        found = [self.verdict(match, action, direction, place) for match, action in self.judged(opinion.matches)]
        seen = {verdict.category for verdict in found}
        for category, score in opinion.scores.items():
            action = self.action_on(category, score)
            if action is not Action.PASS and category not in seen:
                # A mask needs to know where.
                action = Action.BLOCK if action is Action.MASK else action
                found.append(Verdict(direction, self.name, category, action.name.lower(), score, place))
        return found

    def verdict(self, match: Match, action: Action, direction: Direction, place: str) -> Verdict:
        return Verdict(
            direction,
            self.name,
            match.category,
            action.name.lower(),
            match.score,
            place,
            match.start,
            match.end,
            match.what,
        )


@dataclass(frozen=True, slots=True)
class Hold:
    """How much of a stream waits at most: characters, seconds, and characters about which a judge is asked at once."""

    chars: int = 160
    time: float = 0.2
    window: int = 300


DEFAULT_SENTENCE: Final = "我不能处理这个问题"


@dataclass(frozen=True, slots=True)
class Guard:
    """What a policy does about texts. ``sentences``: by ``category.language``, category, language, or empty for all."""

    request: Sequence[Rule] = ()
    response: Sequence[Rule] = ()
    sentences: Mapping[str, str] = field(default_factory=lambda: {"": DEFAULT_SENTENCE})
    status: int | None = None
    show_reason: bool = False
    refuse_unreadable: bool = True
    hold: Hold = Hold()

    def sentence(self, category: str, text: str) -> str:
        """What to say of a block for this category, in the language of the text that was asked."""
        language = "zh" if any("\u4e00" <= letter <= "\u9fff" for letter in text) else "en"
        for key in (f"{category}.{language}", category, language, ""):
            if key in self.sentences:
                said = self.sentences[key]
                break
        else:
            said = next(iter(self.sentences.values()), DEFAULT_SENTENCE)
        return f"{said} ({category})" if self.show_reason else said


def blocking(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The first verdict that ends the call."""
    return next((verdict for verdict in verdicts if verdict.action == "block"), None)
