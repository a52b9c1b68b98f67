"""Stubs for synchronous code: a thread with an event loop of its own."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from threading import Thread

import uvloop

from extproc.demo.stub.provider import StubProvider


@contextmanager
def running(*stubs: StubProvider) -> Iterator[None]:
    """Start these stubs, and stop them at the end. Raises OSError if a port is taken."""
    loop = uvloop.new_event_loop()
    thread = Thread(target=loop.run_forever, name="stubs", daemon=True)
    thread.start()
    stack = AsyncExitStack()

    async def start() -> None:
        for stub in stubs:
            await stub.start()
            stack.push_async_callback(stub.stop)

    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result()
        yield
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
