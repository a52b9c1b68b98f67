"""Guesses that learn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.accounts.estimates import ANSWER, Estimator
from extproc.dialects.tokens import Tokens, count
from extproc.dialects.usage import Usage

ENGLISH = count("The quick brown fox jumps over the lazy dog and thinks about it for a while. " * 20)
CHINESE = count("大模型网关把请求转发给不同的供应商，并记录每一次调用的用量。" * 20)
CODE = count("if (a[i] != 0) { x += a[i] * 10; }\n    return {1, 2, 3};\n" * 20)


class Errors:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, float]] = []

    def __call__(self, model: str, kind: str, ratio: float) -> None:
        self.seen.append((model, kind, ratio))


def test_before_anything_is_known() -> None:
    """A guess is the plain count, an answer a common one."""
    estimator = Estimator(Errors())

    assert estimator.prompt("m", ENGLISH, 12).tokens == ENGLISH.total + 12
    assert estimator.answer("m") == round(ANSWER)


@pytest.mark.parametrize(("latin", "cjk", "code"), [(0.8, 1.5, 0.6), (1.3, 0.7, 1.2)])
def test_it_learns_each_script_by_itself(latin: float, cjk: float, code: float) -> None:
    """After a hundred calls of mixed kinds, the guess for each kind of text is within 5 % of what the model counts."""
    estimator, errors = Estimator(Errors()), Errors()
    estimator = Estimator(errors)

    def true(raw: Tokens) -> int:
        return round(raw.latin * latin + raw.cjk * cjk + raw.code * code)

    for _ in range(100):
        for raw in (ENGLISH, CHINESE, CODE):
            estimator.learn("m", estimator.prompt("m", raw, 0), Usage(input=true(raw)), completed=False)

    for raw in (ENGLISH, CHINESE, CODE):
        assert estimator.prompt("m", raw, 0).tokens == pytest.approx(true(raw), rel=0.05)
    assert estimator.prompt("other", CHINESE, 0).tokens == CHINESE.total
    assert errors.seen[0][:2] == ("m", "prompt")
    assert errors.seen[0][2] == pytest.approx(true(ENGLISH) / ENGLISH.total, rel=0.01)


def test_answers() -> None:
    """The guess for an answer follows the answers, with room for how much they differ."""
    estimator = Estimator(Errors())
    prompt = estimator.prompt("m", ENGLISH, 0)
    for index in range(200):
        estimator.learn("m", prompt, Usage(input=prompt.tokens, output=900 if index % 2 else 1100), completed=True)

    assert 1000 <= estimator.answer("m") <= 1200


def test_what_was_cut_short_or_estimated_teaches_nothing() -> None:
    """Neither an aborted answer nor our own guess is a lesson."""
    estimator = Estimator(Errors())
    prompt = estimator.prompt("m", ENGLISH, 0)
    estimator.learn("m", prompt, Usage(input=prompt.tokens, output=3), completed=False)
    estimator.learn("m", prompt, Usage(input=9999, output=9999, source="estimated"), completed=True)

    assert estimator.answer("m") == round(ANSWER)
    assert estimator.prompt("m", ENGLISH, 0).tokens == pytest.approx(ENGLISH.total, abs=1)


def test_images_are_no_lesson_about_words() -> None:
    """A prompt with far more tokens than its text is one of something else."""
    estimator = Estimator(Errors())
    prompt = estimator.prompt("m", count("What is in this picture?"), 4)
    estimator.learn("m", prompt, Usage(input=1500), completed=False)

    assert estimator.prompt("m", count("What is in this picture?"), 4).tokens == prompt.tokens


def test_seed() -> None:
    """It can begin with what the ledger remembers, and goes on from there slowly."""
    estimator = Estimator(Errors())
    estimator.seed("m", 2000.0)
    assert estimator.answer("m") == 2000
    estimator.learn("m", estimator.prompt("m", ENGLISH, 0), Usage(output=100), completed=True)
    assert 1500 < estimator.answer("m") < 2100


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), max_size=20))
def test_no_report_is_too_odd(reports: list[tuple[int, int]]) -> None:
    """Whatever is reported, guesses stay positive and sane."""
    estimator = Estimator(Errors())
    for given_, said in reports:
        estimator.learn("m", estimator.prompt("m", CODE, 3), Usage(input=given_, output=said), completed=True)

    assert 3 < estimator.prompt("m", CODE, 3).tokens <= 4 * CODE.total + 4
    assert estimator.answer("m") >= 0
