"""Files that change, and files that only seem to."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from extproc.config.load import fingerprints
from extproc.process import watch
from extproc.process.watch import changes


@pytest.fixture(name="quick", autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "INTERVAL", 0.01)


class Watch:
    """Watches two files, and counts the changes that it is told of; each is taken, or refused."""

    def __init__(self, directory: Path) -> None:
        self.main = directory / "extproc.yaml"
        self.secret = directory / "key"
        self.files = [self.main, self.secret]
        self.takes = True
        self.at_each_look: Callable[[], object] = lambda: None
        self.looks = 0
        self.seen = 0
        self._read: dict[Path, bytes] = {}
        self._changes: AsyncIterator[None] = changes(self._asked)

    def read(self) -> None:
        """As the configuration is read: what was in the files then is what is in force."""
        self._read = fingerprints(self.files)

    def _asked(self) -> dict[Path, bytes]:
        self.looks += 1
        self.at_each_look()
        return self._read

    async def run(self) -> None:
        async for _ in self._changes:
            self.seen += 1
            if self.takes:
                self.read()

    async def settled(self) -> int:
        """The changes seen when everything written so far has been looked at twice."""
        looks = self.looks + 5
        while self.looks < looks:
            await asyncio.sleep(0.005)
        return self.seen


def put(file: Path, text: str) -> None:
    """Write a file in one step."""
    beside = file.with_name(f"{file.name}.new")
    beside.write_text(text)
    beside.replace(file)


@pytest.fixture(name="watched")
async def _watched(tmp_path: Path) -> AsyncIterator[Watch]:
    watched = Watch(tmp_path)
    watched.main.write_text("one")
    watched.secret.write_text("key")
    watched.read()
    task = asyncio.ensure_future(watched.run())
    assert await watched.settled() == 0
    yield watched
    task.cancel()
    await asyncio.wait([task])


async def test_each_change_of_content_is_told_once(watched: Watch) -> None:
    """A file renamed over the old one, as good editors do, is one change."""
    put(watched.main, "two")
    assert await watched.settled() == 1

    put(watched.main, "three")
    assert await watched.settled() == 2
    assert await watched.settled() == 2


async def test_a_file_written_in_place(watched: Watch) -> None:
    """It is told when it has come to rest, and not while it is half written."""
    with watched.main.open("w", buffering=1) as file:
        watched.at_each_look = lambda: file.write("one more line\n")
        assert await watched.settled() == 0
        watched.at_each_look = lambda: None

    assert await watched.settled() == 1


async def test_a_change_since_it_was_read(watched: Watch, tmp_path: Path) -> None:
    """What changed between the reading and the first look is not lost."""
    late = Watch(tmp_path)
    late.read()
    put(late.main, "two")
    task = asyncio.ensure_future(late.run())

    assert await late.settled() == 1
    task.cancel()
    await asyncio.wait([task])


async def test_what_was_refused_is_not_tried_again(watched: Watch) -> None:
    """Until it changes, or goes back to what is in force."""
    watched.takes = False
    put(watched.main, "wrong")
    assert await watched.settled() == 1
    assert await watched.settled() == 1

    put(watched.main, "wrong too")
    assert await watched.settled() == 2

    put(watched.main, "one")
    assert await watched.settled() == 3
    assert await watched.settled() == 3


async def test_a_change_that_date_and_size_do_not_show(watched: Watch) -> None:
    """Content counts: file systems of containers and networks keep dates of their own."""
    before = watched.main.stat()
    beside = watched.main.with_name("beside")
    beside.write_text("eno")
    os.utime(beside, ns=(before.st_atime_ns, before.st_mtime_ns))

    beside.replace(watched.main)

    assert await watched.settled() == 1


async def test_the_same_content_is_no_change(watched: Watch) -> None:
    """A file that was touched, or written again as it was, is as it was."""
    watched.main.touch()
    put(watched.main, "one")

    assert await watched.settled() == 0


async def test_the_files_beside_count_too(watched: Watch) -> None:
    """A secret that was rotated is a change, though the configuration names it as before."""
    put(watched.secret, "another key")

    assert await watched.settled() == 1


async def test_a_link_that_leads_elsewhere_is_a_change(watched: Watch) -> None:
    """Orchestrators mount files as links, and swap what is behind them."""
    behind = watched.main.with_name("behind")
    behind.write_text("two")

    watched.main.unlink()
    watched.main.symlink_to(behind)

    assert await watched.settled() >= 1


async def test_a_file_that_goes_and_comes(watched: Watch) -> None:
    """Both are changes; whoever reads it then decides what that means."""
    watched.main.unlink()
    assert await watched.settled() == 1

    put(watched.main, "one")
    assert await watched.settled() == 2


async def test_a_change_together_with_another_file_to_watch(watched: Watch) -> None:
    """A configuration that names another file, and changes again at once, is read again."""
    another = watched.main.with_name("another")
    another.write_text("key")
    put(watched.main, "two")
    assert await watched.settled() == 1
    watched.files.append(another)
    watched.read()
    put(watched.main, "three")

    assert await watched.settled() == 2


async def test_another_file_to_watch_is_no_change_by_itself(watched: Watch) -> None:
    """A configuration just read names a new secret file: that is watched from now on, and nothing is read again."""
    another = watched.main.with_name("another")
    another.write_text("key")
    watched.files.append(another)
    watched.read()
    assert await watched.settled() == 0

    put(another, "rotated")
    assert await watched.settled() == 1


async def test_a_file_no_longer_watched(watched: Watch) -> None:
    """What no configuration names any more changes nothing."""
    watched.files.remove(watched.secret)
    watched.read()
    assert await watched.settled() == 0

    put(watched.secret, "whatever")

    assert await watched.settled() == 0
