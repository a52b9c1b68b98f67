"""Hot state in memory: one worker, whose calls outlive it in a journal."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from stores.hot.places import DAY, MONEY, NOTHING, OPEN, PER_DAY, REQUESTS, TOKENS, MemoryPlace, loaded, numbers

from extproc.stores import memory as module
from extproc.stores.journal import Journal
from extproc.stores.memory import MemoryState
from extproc.stores.ports import Amounts, Granted, Loaded, Missing, Orphan, StateUnavailable

ALL = [TOKENS, MONEY, PER_DAY, REQUESTS, OPEN]

# A worker that says what it has done, after it was done.
WORKER = """
import asyncio, sys
from pathlib import Path
from extproc.stores.memory import MemoryState
from extproc.stores.ports import Amounts, Counter

async def work():
    counters = [Counter("open", "concurrent", "concurrent", 10**9)]
    state = MemoryState("victim", journal=Path(sys.argv[1]))
    await state.start()
    for number in range(int(sys.argv[2])):
        await state.reserve(f"{number}", counters, Amounts(number), f"note {number}".encode())
        print("open", number, flush=True)
        if number % 4:
            await state.settle(f"{number}", counters, Amounts(number), f"row {number}".encode())
            print("settled", number, flush=True)
        if number % 4 == 2:
            await state.booked([f"{number}"])
            print("gone", number, flush=True)
        if number % 8 == 4:
            await state.release(f"{number}")
            print("gone", number, flush=True)
    print("ready", flush=True)
    sys.stdin.read()

asyncio.run(work())
"""


@asynccontextmanager
async def life(journal: Path, worker: str = "w2") -> AsyncIterator[MemoryState]:
    """Ends as if killed: nothing is tidied up, though the lock goes."""
    state = MemoryState(worker, journal=journal)
    await state.start()
    try:
        yield state
    finally:
        assert state._journal is not None
        state._journal.close(remove=False)


def orphans_told(lines: list[str]) -> dict[str, Orphan]:
    """Which orphans a worker leaves that has told this."""
    left = {}
    for line in lines:
        what, _, call = line.partition(" ")
        match what:
            case "open":
                left[call] = Orphan(call, "victim", note=f"note {call}".encode())
            case "settled":
                left[call] = Orphan(call, "victim", row=f"row {call}".encode())
            case "gone":
                del left[call]
    return left


def run_and_kill(journal: Path, calls: int, when: Callable[[str], bool]) -> list[str]:
    """What a worker has told when it is killed, upon the first line for which ``when`` holds."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(journal), str(calls)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            if line.endswith("\n"):  # the last one may be cut
                lines.append(line.strip())
                if when(lines[-1]):
                    process.kill()
        return lines


# --- time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-10 * DAY, -1, 1, 10 * DAY])
async def test_the_wall_clock_jumps(jump: float) -> None:
    """Nothing leaves a window for it, and nothing stays longer."""
    monotonic, wall = 5.0, 1_750_000_000.0
    state = MemoryState("w1", journal=None, clock=lambda: monotonic, wall=lambda: wall)
    await state.load([Loaded(PER_DAY)])
    await state.reserve("call", [PER_DAY], Amounts(60), b"")
    before = (await state.read([PER_DAY]))[0]

    wall += jump
    assert await state.read([PER_DAY]) == [before]

    monotonic += before.wait - 1
    assert numbers(await state.read([PER_DAY])) == [(60, 0)]
    monotonic += 1.001
    assert numbers(await state.read([PER_DAY])) == [(0, 0)]


async def test_nothing_is_kept_for_ever(tmp_path: Path) -> None:
    """Beats drop what is over: windows that are empty, periods that ended, counters that nobody holds."""
    place = MemoryPlace(tmp_path / "journal")
    month = replace(TOKENS, key="month", end=int(place.now()) + DAY)
    state = await loaded(place, TOKENS, month, PER_DAY)
    assert isinstance(state, MemoryState)
    for call in ("a", "b"):
        await state.reserve(call, [TOKENS, month, PER_DAY, OPEN], Amounts(1), b"")

    await state.release("a")
    await place.elapse(DAY)
    await state.beat()
    assert set(state._numbers) == {"all/tokens", "month", "all/tokens/day", "all/concurrent"}

    await state.release("b")
    await place.elapse(DAY + 60)
    await state.beat()
    assert set(state._numbers) == {"all/tokens"}
    await place.close()


async def test_without_a_journal() -> None:
    """Nothing is written, and nothing is inherited."""
    state = MemoryState("w1", journal=None)
    await state.start()
    await state.reserve("call", [], NOTHING, b"")

    assert await state.orphans() == []
    assert await state.alive("w1")
    assert not await state.alive("w2")
    await state.stop()


# --- the journal ----------------------------------------------------------------------------------------------


async def test_what_a_killed_worker_left(tmp_path: Path) -> None:
    """Exactly its open calls and its rows that were not booked, with its name."""
    journal = tmp_path / "journal"
    lines = run_and_kill(journal, 40, lambda line: line == "ready")

    async with life(journal) as state:
        orphans = {orphan.call_id: orphan for orphan in await state.orphans()}

    assert len(orphans) == 25
    assert orphans == orphans_told(lines)


@pytest.mark.parametrize("line", [3, 77, 250])
async def test_a_worker_that_is_killed_at_work(tmp_path: Path, line: int) -> None:
    """All that it has told is there; of what it did after that, one call at a time may be too."""
    journal = tmp_path / "journal"
    seen = iter(range(10**6))
    lines = run_and_kill(journal, 10**6, lambda _: next(seen) == line)

    async with life(journal) as state:
        orphans = {orphan.call_id: orphan for orphan in await _all_orphans(state)}

    told = orphans_told(lines)
    last = max(int(text.split()[1]) for text in lines)
    assert {call: told[call] for call in told if int(call) < last} == {
        call: orphan for call, orphan in orphans.items() if int(call) < last
    }
    assert set(orphans) - set(told) <= {str(last), str(last + 1)}


async def _all_orphans(state: MemoryState) -> list[Orphan]:
    """They come some hundred at a time; here they are let go, to see the next."""
    found: list[Orphan] = []
    while some := await state.orphans():
        found += some
        for orphan in some:
            await state.release(orphan.call_id, worker=orphan.worker)
        await state.booked([orphan.call_id for orphan in some], worker="victim")
    return found


async def test_orphans_hold_until_they_are_settled(tmp_path: Path) -> None:
    """What an open call held of quotas and open calls is still held; then it counts on its own counters."""
    async with life(tmp_path / "journal", "w1") as dead:
        await dead.load([Loaded(counter) for counter in ALL])
        await dead.reserve("call", ALL, Amounts(30, 500), b"note")

    async with life(tmp_path / "journal") as state:
        assert numbers(await state.read(ALL)) == [(None, 30), (None, 500), (None, 0), (None, 0), (0, 1)]
        assert await state.settle("call", ALL, Amounts(20, 400), b"row", worker="w1") == Missing([0, 1, 2, 3])
        await state.load([Loaded(counter) for counter in ALL])
        assert await state.settle("call", ALL, Amounts(20, 400), b"row", worker="w1") is None
        assert numbers(await state.read(ALL)) == [(20, 0), (400, 0), (20, 0), (1, 0), (0, 0)]
        assert await state.orphans() == [Orphan("call", "w1", row=b"row")]


async def test_orphans_outlive_who_found_them(tmp_path: Path) -> None:
    """Until they are dealt with, each life finds them again; then none does."""
    journal = tmp_path / "journal"
    async with life(journal, "w1") as dead:
        await dead.reserve("open", [OPEN], NOTHING, b"note")
        await dead.settle("settled", [], NOTHING, b"row")
    left = [Orphan("open", "w1", note=b"note"), Orphan("settled", "w1", row=b"row")]

    for worker in ("w2", "w3"):
        async with life(journal, worker) as state:
            assert await state.orphans() == left
            assert numbers(await state.read([OPEN])) == [(0, 1)]
    async with life(journal, "w4") as state:
        await state.release("open", worker="w1")
        await state.booked(["settled"], worker="w1")
        assert await state.orphans() == []
    async with life(journal, "w5") as state:
        assert await state.orphans() == []


async def test_a_journal_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays short however many calls come and go, and keeps those that are open, and their rows."""
    path = tmp_path / "journal"
    monkeypatch.setattr(module, "Journal", lambda file: Journal(file, spare=5000))
    async with life(path, "w1") as state:
        await state.reserve("open", ALL[4:], NOTHING, b"note")
        await state.settle("settled", [], NOTHING, b"row")
        most = 0
        for number in range(500):
            await state.reserve(f"{number}", [], NOTHING, b"n" * 100)
            await state.settle(f"{number}", [], NOTHING, b"r" * 100)
            await state.booked([f"{number}"])
            most = max(most, path.stat().st_size)

    assert 4000 < most < 6000
    async with life(path) as state:
        assert await state.orphans() == [Orphan("open", "w1", note=b"note"), Orphan("settled", "w1", row=b"row")]


async def test_nothing_is_left_by_who_leaves_in_order(tmp_path: Path) -> None:
    """The file goes, unless there is something in it."""
    path = tmp_path / "journal"
    state = MemoryState("w1", journal=path)
    await state.start()
    await state.reserve("call", [], NOTHING, b"")
    await state.settle("call", [], NOTHING, b"row")
    await state.booked(["call"])
    assert path.exists()
    await state.stop()
    assert not path.exists()

    state = MemoryState("w2", journal=path)
    await state.start()
    await state.reserve("call", [], NOTHING, b"")
    await state.stop()
    assert path.exists()


async def test_another_gateway_has_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes second waits a little, and is told which file it is."""
    monkeypatch.setattr(module, "_LOCK_TRIES", 3)
    async with life(tmp_path / "journal"):
        with pytest.raises(StateUnavailable, match=str(tmp_path / "journal")):
            await MemoryState("w3", journal=tmp_path / "journal").start()


async def test_a_predecessor_is_on_its_way_out(tmp_path: Path) -> None:
    """Who comes while it still has the journal gets it when it is gone."""
    state = MemoryState("w2", journal=tmp_path / "journal")
    async with life(tmp_path / "journal", "w1") as dying:
        await dying.settle("call", [], NOTHING, b"row")
        starting = asyncio.ensure_future(state.start())
        await asyncio.sleep(0.05)
        assert not starting.done()
    await starting

    assert await state.orphans() == [Orphan("call", "w1", row=b"row")]
    await state.stop()


async def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the journal did not take has not happened, and can be tried again."""
    async with life(tmp_path / "journal", "w1") as state:
        await state.load([Loaded(TOKENS)])
        await state.reserve("open", [TOKENS], Amounts(5), b"")

        def full(file: int, content: bytes) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            for step in (
                state.reserve("call", [TOKENS], Amounts(5), b""),
                state.settle("open", [TOKENS], Amounts(5), b"row"),
                state.release("open"),
            ):
                with pytest.raises(StateUnavailable, match="No space left"):
                    await step
        assert numbers(await state.read([TOKENS])) == [(0, 5)]
        assert await state.settle("open", [TOKENS], Amounts(3), b"row") is None
        assert numbers(await state.read([TOKENS])) == [(3, 0)]


async def test_a_journal_that_cannot_be(tmp_path: Path) -> None:
    """A path that is no file, or records that are not ours: it does not start, and says which file it is."""
    foreign = Journal(tmp_path / "foreign")
    foreign.open()
    foreign.append(b"something else")
    foreign.close(remove=False)
    (tmp_path / "directory").mkdir()

    for path in (tmp_path / "directory", tmp_path / "foreign"):
        with pytest.raises(StateUnavailable, match=str(path)):
            await MemoryState("w1", journal=path).start()


async def test_it_costs_next_to_nothing(tmp_path: Path) -> None:
    """To reserve and settle, journal included, takes microseconds: some forty, here with room for a busy machine."""
    counters = [replace(TOKENS, limit=10**12), replace(REQUESTS, limit=10**12)]
    async with life(tmp_path / "journal", "w1") as state:
        await state.load([Loaded(counter) for counter in counters])
        best = 1.0
        for turn in range(20):
            begun = time.perf_counter()
            for number in range(100):
                assert isinstance(await state.reserve(f"{turn}-{number}", counters, Amounts(100), b"n" * 200), Granted)
                await state.settle(f"{turn}-{number}", counters, Amounts(100), b"r" * 400)
            best = min(best, (time.perf_counter() - begun) / 100)

    assert best < 0.0002
