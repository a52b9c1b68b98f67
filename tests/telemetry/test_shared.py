"""The directory of shared metrics: one for each gateway that runs, none for those that do not."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from extproc.telemetry.shared import metrics_directory

# A supervisor: it says which directory is its own, and has a child that outlives it.
HOLD = """
import subprocess
from extproc.telemetry.shared import metrics_directory
with metrics_directory() as directory:
    (directory / "counter.db").write_bytes(b"")
    child = subprocess.Popen(["sleep", "600"])
    print(directory, flush=True)
    input()
"""


@pytest.fixture(name="place")
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for temporary files that no other test uses."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "to be restored")
    return tmp_path


@contextmanager
def another(place: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Another process that holds a directory: where that is, and how to kill the process, but not its child."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env={**os.environ, "TMPDIR": str(place)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    assert holder.stdout is not None

    def kill() -> None:
        holder.kill()
        holder.wait(10)

    with holder:
        try:
            yield Path(holder.stdout.readline().strip()), kill
        finally:
            os.killpg(holder.pid, signal.SIGKILL)


def test_it_is_there_while_it_is_used(place: Path) -> None:
    """Child processes find it in their environment, and at the end it is gone with all its files."""
    with metrics_directory() as directory:
        assert os.environ["PROMETHEUS_MULTIPROC_DIR"] == str(directory)
        (directory / "counter_1.db").write_bytes(b"counted")
        assert list(place.iterdir()) == [directory]

    assert list(place.iterdir()) == []


def test_it_goes_when_something_fails(place: Path) -> None:
    """An exception passes, and leaves nothing behind."""
    with pytest.raises(RuntimeError, match="told to"), metrics_directory():
        raise RuntimeError("told to")

    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_removed(place: Path) -> None:
    """SIGKILL leaves no time to clean up: the next to start does it, though a worker may still be on its way out."""
    with another(place) as (left, kill):
        kill()
        assert left.is_dir()

        with metrics_directory() as ours:
            assert list(place.iterdir()) == [ours]


def test_what_another_process_uses_stays(place: Path) -> None:
    """Two gateways on one machine leave each other's metrics alone."""
    with another(place) as (theirs, _):
        with metrics_directory() as ours:
            assert set(place.iterdir()) == {theirs, ours}

        assert [file.name for file in theirs.iterdir()] == ["counter.db"]


def test_many_that_start_and_end_at_once(place: Path) -> None:
    """Nobody takes a directory that was just made for one left behind, and in the end none is left."""

    def live(_: int) -> bool:
        with metrics_directory() as directory:
            (directory / "counter.db").write_bytes(b"")
            return [file.name for file in directory.iterdir()] == ["counter.db"]

    with ThreadPoolExecutor(16) as threads:
        lives = list(threads.map(live, range(800)))

    assert lives == [True] * 800
    assert list(place.iterdir()) == []


def test_what_only_looks_like_one_stays(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Files, links, pipes and directories of others are no business of ours, and hold up nobody."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious").touch()
    (place / "extproc-metrics-link").symlink_to(elsewhere)
    (place / "extproc-metrics-file").touch()
    os.mkfifo(place / "extproc-metrics-pipe")
    (place / "extproc-other").mkdir()
    before = set(place.iterdir())

    with metrics_directory():
        pass

    assert set(place.iterdir()) == before
    assert (elsewhere / "precious").exists()
