"""Records in files: in order, once, for whoever comes next."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.audit.spill import Spill, SpillFull


def drained(spill: Spill) -> list[bytes]:
    found: list[bytes] = []
    while batch := spill.read():
        found += batch
        spill.done()
    return found


def test_in_order_and_once(tmp_path: Path) -> None:
    """What is read comes again until it is done, and then never again."""
    spill = Spill(tmp_path)
    for n in range(3):
        spill.append(b"%d" % n)

    assert spill.read() == spill.read() == [b"0", b"1", b"2"]
    spill.done()
    spill.append(b"3")
    assert drained(spill) == [b"3"]
    assert spill.waiting == 0
    spill.close()
    assert list(tmp_path.iterdir()) == []


def test_the_next_process(tmp_path: Path) -> None:
    """What a process leaves is taken over by the next, less what was done; what it holds is left alone."""
    before, after = Spill(tmp_path), Spill(tmp_path)
    before.append(b"done")
    before.read()
    before.append(b"left")
    before.done()

    assert after.adopt() == 0
    before.close()
    assert after.adopt() == 1
    assert after.adopt() == 0
    after.append(b"own")
    assert drained(after) == [b"left", b"own"]
    after.close()
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_on_the_disk(tmp_path: Path) -> None:
    """A file whose records are all done has nothing of them."""
    spill = Spill(tmp_path)
    spill.append(b"secret text")
    drained(spill)

    assert [b"secret" in path.read_bytes() for path in tmp_path.iterdir()] == [False]
    spill.close()


@settings(max_examples=40)
@given(cut=st.integers(0, 60))
def test_a_torn_end(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Of a file that ends anywhere, every whole record is read, and the rest is no error."""
    directory = tmp_path_factory.mktemp("spill")
    before = Spill(directory)
    for n in range(4):
        before.append(b"record %d" % n)
    before.close()
    (file,) = directory.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: max(0, len(content) - cut)])

    after = Spill(directory)
    after.adopt()
    found = drained(after)

    assert found == [b"record %d" % n for n in range(len(found))]
    assert len(found) >= 4 - -(-cut // 16)
    assert list(directory.iterdir()) == []


def test_segments(tmp_path: Path) -> None:
    """Many records make several files, which go away one after the other; a record larger than a reading is read."""
    spill = Spill(tmp_path, segment=1 << 20)
    sent = [bytes([n]) * (400_000 if n % 5 else 3_000_000) for n in range(1, 20)]
    for each in sent:
        spill.append(each)
    files = len(list(tmp_path.iterdir()))

    assert files > 4
    assert drained(spill) == sent
    assert len(list(tmp_path.iterdir())) <= 1
    spill.close()


def test_full(tmp_path: Path) -> None:
    """It has its size, and takes more when there is room again."""
    spill = Spill(tmp_path, limit=1000)
    spill.append(bytes(900))
    with pytest.raises(SpillFull):
        spill.append(bytes(200))
    drained(spill)

    spill.append(bytes(900))
    assert [len(each) for each in drained(spill)] == [900]
    spill.close()
