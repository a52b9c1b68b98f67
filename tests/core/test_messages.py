"""Headers that remember how they were changed."""

from hypothesis import given
from hypothesis import strategies as st

from extproc.core.messages import PROCEED, Headers, Proceed

NAMES = st.sampled_from(["a", "b", "c", ":path"])


def test_reading() -> None:
    """A field is read by its name; a missing one is empty, or what was asked for."""
    headers = Headers([("a", "1"), (":path", "/")])

    assert headers["a"] == headers.get("a") == "1"
    assert "a" in headers
    assert list(headers) == ["a", ":path"]
    assert (headers.get("b"), headers.get("b", "x")) == ("", "x")


def test_repeated_field_is_one_value() -> None:
    """Nobody reads the first of two and another the second: they are one, joined."""
    assert Headers([("a", "1"), ("b", "2"), ("a", "3")])["a"] == "1, 3"


def test_reading_changes_nothing() -> None:
    """What came is no change."""
    headers = Headers([("a", "1")])
    headers.get("a")

    assert headers.take_changes() == ({}, set())


def test_a_field_unseen_can_be_removed() -> None:
    """A field that we cannot see may still be there, so its removal is a change."""
    headers = Headers()
    headers.remove("authorization")

    assert headers.take_changes() == ({}, {"authorization"})


@given(st.lists(st.tuples(NAMES, st.none() | st.sampled_from(["1", "2"]) | st.just("take"))))
def test_changes_lead_to_the_same_fields(edits: list[tuple[str, str | None]]) -> None:
    """Applied to what Envoy has, the changes taken at any time give the fields that the filters see."""
    start = {"a": "0", "b": "0"}
    headers = Headers(start.items())
    envoy = dict(start)

    def apply() -> None:
        changed, removed = headers.take_changes()
        assert not set(changed) & removed
        for name in removed:
            envoy.pop(name, None)
        envoy.update(changed)

    for name, value in edits:
        if value == "take":
            apply()
        elif value is None:
            headers.remove(name)
        else:
            headers[name] = value
    apply()

    assert envoy == {name: headers[name] for name in headers}
    assert headers.take_changes() == ({}, set())


def test_proceed_is_the_same_for_all() -> None:
    """The shared decision to go on says nothing, so that nobody's words get into another's call."""
    assert Proceed() == PROCEED
