"""What the configuration means to moderation: the guards of its policies, built once."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from extproc.config.load import ConfigError, Loaded, Problem
from extproc.config.moderation import Check, Moderation
from extproc.core.call import Consumer, Model
from extproc.moderation.credentials import Credentials
from extproc.moderation.injection import Injection
from extproc.moderation.lexicon import Lexicon
from extproc.moderation.patterns import Patterns
from extproc.moderation.personal import KINDS, PersonalData
from extproc.moderation.rules import Guard, Hold, Rule
from extproc.moderation.types import Action, Judge
from extproc.moderation.types import Check as Finder

PRIVATE: Final[Sequence[Finder]] = (PersonalData(KINDS), Credentials())
"""What the audit masks where it keeps texts masked."""


def guards(loaded: Loaded, judges: Mapping[str, Judge]) -> dict[str, Guard]:
    """The guard of each policy. Raises ConfigError with every problem found."""
    problems: list[Problem] = []
    made: dict[str, Guard] = {}
    for name, policy in loaded.config.policies.items():
        path = f"policies.{name}.moderation"
        settings = policy.moderation
        sides = {
            side: _rules(checks, f"{path}.{side}", loaded.file.parent, judges, problems)
            for side, checks in (("request", settings.request), ("response", settings.response))
        }
        made[name] = _guard(settings, sides["request"], sides["response"])
    if problems:
        raise ConfigError(loaded.file, problems)
    return made


def choose(known: Mapping[str, Guard]) -> Callable[[Consumer, Model | None], Guard]:
    """The guard of a consumer's policy, else of its model's, else the default one."""
    default = known.get("default", Guard())

    def of(consumer: Consumer, model: Model | None) -> Guard:
        return known.get(consumer.policy or (model.policy if model else ""), default)

    return of


def _guard(settings: Moderation, request: Sequence[Rule], response: Sequence[Rule]) -> Guard:
    said = settings.block_message
    return Guard(
        request=request,
        response=response,
        sentences={"": said} if isinstance(said, str) else said,
        status=settings.status,
        show_reason=settings.show_reason,
        refuse_unreadable=settings.unreadable == "refuse",
        hold=Hold(settings.hold.chars, settings.hold.time, settings.hold.window),
    )


def _rules(
    checks: Sequence[Check], path: str, base: Path, judges: Mapping[str, Judge], problems: list[Problem]
) -> list[Rule]:
    made = []
    for index, check in enumerate(checks):
        try:
            made.append(_rule(check, base, judges))
        except (ValueError, OSError) as error:
            problems.append(Problem(f"{path}[{index}]", str(error)))
    return made


def _rule(check: Check, base: Path, judges: Mapping[str, Judge]) -> Rule:
    """Raises ValueError or OSError with a sentence for the operator."""
    actions: dict[str, Action] = {}
    action = Action.FLAG
    if isinstance(check.action, str):
        action = Action[check.action.upper()]
    else:
        actions = {category: Action[name.upper()] for category, name in check.action.items()}
    name, finder, judge = _what(check, base, judges)
    return Rule(
        name=name,
        check=finder,
        judge=judge,
        action=action,
        actions=actions,
        threshold=0.5 if isinstance(check.threshold, dict) else check.threshold,
        thresholds=check.threshold if isinstance(check.threshold, dict) else {},
        roles=frozenset(check.roles),
        restore=check.restore,
        style=check.style,
        parallel=check.mode == "parallel",
        refuse_on_error=check.on_error == "refuse",
    )


def _what(check: Check, base: Path, judges: Mapping[str, Judge]) -> tuple[str, Finder | None, Judge | None]:
    if check.judge is not None:
        judge = judges.get(check.judge)
        if judge is None:
            raise ValueError(f"no judge is called {check.judge!r}; there are: {', '.join(sorted(judges)) or 'none'}")
        return check.judge, None, judge
    if check.lexicon is not None:
        words = check.lexicon.words
        groups = words if isinstance(words, dict) else {"lexicon": words} if words else {}
        files = [base / file for file in check.lexicon.files]
        return "lexicon", Lexicon.from_files(*files, groups=groups, allow=check.lexicon.allow), None
    if check.pii is not None:
        return "pii", PersonalData(check.pii), None
    if check.patterns is not None:
        return "patterns", Patterns(check.patterns), None
    if check.secrets:
        return "secrets", Credentials(), None
    return "injection", Injection(), None
