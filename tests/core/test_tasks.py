"""Tasks with an owner."""

import asyncio
import gc

from extproc.core.tasks import Tasks


async def test_tasks_are_kept_and_awaited() -> None:
    """A task lives until it ends though nobody else holds it; waiting covers those that tasks spawn."""
    tasks, gate, done = Tasks(), asyncio.Event(), []

    async def second() -> None:
        done.append("second")

    async def first() -> None:
        await gate.wait()
        done.append("first")
        tasks.spawn(second())

    tasks.spawn(first())
    gc.collect()
    gate.set()
    await tasks.wait()

    assert done == ["first", "second"]


async def test_cancel() -> None:
    """Cancelling waits until every task has cleaned up."""
    tasks, cleaned = Tasks(), []

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(number)

    spawned = [tasks.spawn(work(number)) for number in range(3)]
    await asyncio.sleep(0)
    await tasks.cancel()

    assert sorted(cleaned) == [0, 1, 2]
    assert all(task.cancelled() for task in spawned)


async def test_nothing_to_wait_for() -> None:
    """An owner without tasks waits for nothing."""
    tasks = Tasks()

    await tasks.wait()
    await tasks.cancel()


async def test_result_of_a_task() -> None:
    """Whoever spawned a task can have its result."""

    async def work() -> int:
        return 7

    assert await Tasks().spawn(work()) == 7
