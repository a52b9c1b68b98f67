"""What the tables keep of a text."""

from hypothesis import given
from hypothesis import strategies as st

from extproc.stores.ports import ConsumerRecord, KeyRecord, Row, TeamRecord
from extproc.stores.sql.schema import TEXT, consumers, fit, keys, ledger, teams


@given(st.text(st.characters()))
def test_a_text_that_fits(text: str) -> None:
    """What every database can keep is kept as it is; the rest becomes it, and then stays."""
    kept = fit(text)

    assert len(kept.encode()) <= TEXT
    assert "\0" not in kept
    assert fit(kept) == kept
    if "\0" not in text and len(text) < TEXT // 4 and not any(0xD800 <= ord(c) < 0xE000 for c in text):
        assert kept == text


def test_a_long_text() -> None:
    """A text is cut between characters."""
    assert fit("一" * 500) == "一" * (TEXT // 3)
    assert fit("a" * 500, 7) == "aaaaaaa"


def test_the_columns_are_the_fields() -> None:
    """Every field of a record has its column, in the same order."""
    assert tuple(ledger.c.keys()) == Row.__struct_fields__
    for table, record in ((teams, TeamRecord), (consumers, ConsumerRecord), (keys, KeyRecord)):
        assert tuple(table.c.keys()) == (*record.__struct_fields__, "revision")
