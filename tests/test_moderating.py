"""What the configuration means to moderation."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc import moderating
from extproc.config.load import ConfigError, parse
from extproc.core.call import Consumer, Model
from extproc.moderation.rules import DEFAULT_SENTENCE, Guard
from extproc.moderation.types import Action, Match, Opinion


def guards(directory: Path = Path(), **policies: Any) -> dict[str, Guard]:
    document = {"policies": {name: {"moderation": settings} for name, settings in policies.items()}}
    return moderating.guards(parse(yaml.safe_dump(document).encode(), directory / "extproc.yaml"), {})


def test_each_kind_of_check(tmp_path: Path) -> None:
    """Each becomes a rule with its name, in order; files of words are beside the configuration."""
    (tmp_path / "words.txt").write_text("[politics]\nfoobar\n")
    checks = [
        {"lexicon": {"words": ["heroin"], "files": ["words.txt"]}},
        {"pii": ["phone"], "action": "mask", "restore": True},
        {"secrets": True, "action": "mask", "style": "stars"},
        {"patterns": {"project": ["PRJ-[0-9]+"]}, "action": "flag"},
        {"injection": True, "roles": ["user"]},
    ]
    rules = guards(tmp_path, default={"request": checks})["default"].request

    assert [rule.name for rule in rules] == ["lexicon", "pii", "secrets", "patterns", "injection"]
    assert [rule.action for rule in rules] == [Action.BLOCK, Action.MASK, Action.MASK, Action.FLAG, Action.BLOCK]
    assert {match.category for match in rules[0].check.find("heroin foobar")} == {"lexicon", "politics"}  # type: ignore[union-attr]
    assert rules[1].restore
    assert (rules[4].concerns("user"), rules[4].concerns("system")) == (True, False)


def test_by_category() -> None:
    """Actions and thresholds may differ by category; what is not named is flagged, from 0.5 on."""
    check = {"pii": ["phone", "email"], "action": {"phone": "block"}, "threshold": {"phone": "high"}}
    (rule,) = guards(default={"request": [check]})["default"].request
    found = [Match(0, 1, "phone", 0.8), Match(1, 2, "phone", 0.9), Match(2, 3, "email", 0.5), Match(3, 4, "email", 0.4)]

    assert [(match.start, action) for match, action in rule.judged(found)] == [(1, Action.BLOCK), (2, Action.FLAG)]


def test_opinions() -> None:
    """A judge's scores count like matches; a mask without a place is a block."""
    check = {"pii": ["phone"], "action": {"violence": "mask", "hate": "flag"}}
    (rule,) = guards(default={"request": [check]})["default"].request
    verdicts = rule.verdicts(Opinion({"violence": 0.9, "hate": 0.6, "other": 0.2}), "request", "messages[0]")

    assert {(verdict.category, verdict.action) for verdict in verdicts} == {("violence", "block"), ("hate", "flag")}


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ({"pii": ["shoe size"]}, "shoe size"),
        ({"patterns": {"x": ["(a"]}}, "(a"),
        ({"patterns": {"x": [r"(a)\1"]}}, "(a)"),
        ({"lexicon": {"files": ["nowhere.txt"]}}, "nowhere.txt"),
    ],
)
def test_a_check_that_cannot_be_made(check: dict[str, Any], reason: str) -> None:
    """It is refused with its path and reason: a check that does not run must not look as if it did."""
    with pytest.raises(ConfigError) as refused:
        guards(strict={"request": [{"pii": ["phone"]}, check]})

    (problem,) = refused.value.problems
    assert problem.path == "policies.strict.moderation.request[1]"
    assert reason in problem.message


def test_whose_guard_it_is() -> None:
    """The consumer's policy counts, else the model's, else the default one; without any, nothing is judged."""
    made = guards(default={"status": 451}, strict={"status": 452})
    of = moderating.choose(made)

    assert of(Consumer("a", policy="strict"), None).status == 452
    assert of(Consumer("a"), Model("m", (), frozenset(), policy="strict")).status == 452
    assert of(Consumer("a"), None).status == 451
    assert moderating.choose({})(Consumer("a"), None) == Guard()


def test_sentences() -> None:
    """By category and language, by category, by language, or the one there is."""
    message = {"en": "No.", "zh": "不。", "drugs": "Drugs?", "drugs.zh": "毒品？"}
    guard = guards(default={"block_message": message, "show_reason": True})["default"]

    assert guard.sentence("drugs", "中文") == "毒品？ (drugs)"
    assert guard.sentence("drugs", "english") == "Drugs? (drugs)"
    assert guard.sentence("other", "english") == "No. (other)"
    assert guards(default={})["default"].sentence("x", "y") == DEFAULT_SENTENCE
