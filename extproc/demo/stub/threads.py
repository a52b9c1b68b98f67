"""Stubs for synchronous code: a thread with an event loop of its own."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from threading import Thread
from typing import Any

import uvloop

from extproc.demo.stub.provider import StubProvider


@contextmanager
def running(*stubs: StubProvider) -> Iterator[Callable[[Coroutine[Any, Any, None]], None]]:
    """Start these stubs, and stop them at the end. Raises OSError if a port is taken.

    What it yields runs a coroutine in the stubs' loop, and waits for it: ``run(stub.stop())``.
    """
    loop = uvloop.new_event_loop()
    thread = Thread(target=loop.run_forever, name="stubs", daemon=True)
    thread.start()
    stack = AsyncExitStack()

    async def start() -> None:
        for stub in stubs:
            await stub.start()
            stack.push_async_callback(stub.stop)

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    try:
        run(start())
        yield run
    finally:
        run(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
