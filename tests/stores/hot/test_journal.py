"""The journal: what was appended is read again, whatever happens to the process or the file."""

import subprocess
import sys
from pathlib import Path

import pytest

from extproc.stores import journal as module
from extproc.stores.journal import Journal

HOLD = """
import sys
from pathlib import Path
from extproc.stores.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.open()
journal.append(b"theirs")
print("ready", flush=True)
input()
"""


def reopened(path: Path) -> list[bytes]:
    """What another life finds."""
    journal = Journal(path)
    try:
        return journal.open()
    finally:
        journal.close(remove=False)


def test_records_are_kept(tmp_path: Path) -> None:
    """In their order, whatever bytes they are; the directory is made."""
    journal = Journal(tmp_path / "run" / "journal")
    assert journal.open() == []
    records = [b"one", bytes(range(256)), b"x" * 100_000]

    for record in records:
        journal.append(record)
    journal.close(remove=False)

    assert reopened(journal.path) == records
    assert journal.path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("torn", range(1, 12))
def test_a_torn_record_is_ignored(tmp_path: Path, torn: int) -> None:
    """Its process ended while it was written; what comes later is read all the same."""
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.open()
    journal.append(b"whole")
    journal.append(b"torn")
    journal.close(remove=False)
    path.write_bytes(path.read_bytes()[:-torn])

    journal = Journal(path)
    assert journal.open() == [b"whole"]
    journal.append(b"later")
    journal.close(remove=False)

    assert reopened(path) == [b"whole", b"later"]


def test_nonsense_is_ignored(tmp_path: Path) -> None:
    """A file of zeros, or of other bytes, holds no records."""
    path = tmp_path / "journal"
    for content in (bytes(4096), b"nonsense" * 100):
        path.write_bytes(content)
        assert reopened(path) == []


def test_rewriting_keeps_what_it_is_told_to_keep(tmp_path: Path) -> None:
    """The file is short again, and goes on growing."""
    path = tmp_path / "journal"
    journal = Journal(path, spare=1000)
    journal.open()
    while not journal.is_grown:
        journal.append(b"stale" * 10)

    journal.rewrite([b"kept"])
    assert not journal.is_grown
    assert path.stat().st_size < 100
    journal.append(b"later")
    journal.close(remove=False)

    assert reopened(path) == [b"kept", b"later"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_journal_that_stays_long_is_seldom_rewritten(tmp_path: Path) -> None:
    """It may grow to twice what had to be kept."""
    journal = Journal(tmp_path / "journal", spare=1000)
    journal.open()
    journal.rewrite([b"x" * 5000])

    journal.append(b"x" * 4000)
    assert not journal.is_grown
    journal.append(b"x" * 2000)
    assert journal.is_grown
    journal.close(remove=True)


def test_a_rewrite_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is as it was, and takes more."""
    journal = Journal(tmp_path / "journal")
    journal.open()
    journal.append(b"one")

    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            journal.rewrite([b"other"])
    journal.append(b"two")
    journal.close(remove=False)

    assert reopened(journal.path) == [b"one", b"two"]
    assert list(tmp_path.iterdir()) == [journal.path]


def test_a_record_that_does_not_fit_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full takes half of it: the half is taken back."""
    journal = Journal(tmp_path / "journal")
    journal.open()
    journal.append(b"one")
    write = module.os.write

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "write", lambda file, content: write(file, content[:5]))
        with pytest.raises(OSError, match="No space"):
            journal.append(b"half")
    journal.append(b"two")
    journal.close(remove=False)

    assert reopened(journal.path) == [b"one", b"two"]


def test_one_process_has_it(tmp_path: Path) -> None:
    """Another is told so, also after the file was rewritten; a process that is killed has it no more."""
    path = tmp_path / "journal"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        with pytest.raises(BlockingIOError):
            Journal(path).open()
        holder.kill()

    journal = Journal(path)
    assert journal.open() == [b"theirs"]
    journal.rewrite([b"ours"])
    with pytest.raises(BlockingIOError):
        Journal(path).open()
    journal.close(remove=False)

    assert reopened(path) == [b"ours"]


def test_it_is_removed_when_it_is_told_so(tmp_path: Path) -> None:
    """Closing what is not open does nothing."""
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.close(remove=True)
    journal.open()
    journal.close(remove=True)
    journal.close(remove=True)

    assert not path.exists()
