"""One ext_proc stream, sans-io: bytes of messages in, bytes of messages out."""

from collections.abc import Callable, Sequence
from typing import Protocol

from extproc.core.messages import Decision, Emit, Message, ResponseBody, Trailers
from extproc.wire import codec


class Machine(Protocol):
    """The state machine behind a stream: `core.exchange.Exchange` or `core.attempt.AttemptExchange`."""

    @property
    def idle_timeout(self) -> float | None: ...
    async def receive(self, message: Message) -> Decision: ...
    async def on_idle(self) -> Decision | None: ...
    async def close(self) -> None: ...


class Session:
    """Turns what a driver reads into what it writes.

    ``receive`` raises only when the stream must end with an error: a message out of turn, or a bug.
    """

    __slots__ = ("_machine", "_on_close")

    def __init__(self, machine: Machine, *, on_close: Callable[[], None] = lambda: None) -> None:
        self._machine = machine
        self._on_close = on_close

    @property
    def idle_timeout(self) -> float | None:
        return self._machine.idle_timeout

    async def receive(self, messages: Sequence[bytes]) -> list[bytes]:
        """Answer messages that arrived together, in order.

        Pieces of one streamed answer that arrived together are judged and answered as one.
        """
        out: list[bytes] = []
        pieces: list[bytes] = []
        for index, data in enumerate(messages):
            message = codec.decode(data)
            if isinstance(message, ResponseBody):
                pieces.append(message.body)
                if not message.end and index + 1 < len(messages):
                    continue
                message = ResponseBody(pieces[0] if len(pieces) == 1 else b"".join(pieces), message.end)
                pieces.clear()
            elif pieces:
                out += await self._answer(ResponseBody(b"".join(pieces), end=False))
                pieces.clear()
            out += await self._answer(message)
        return out

    async def on_idle(self) -> list[bytes]:
        decision = await self._machine.on_idle()
        return [] if decision is None else [codec.encode(decision, ResponseBody(b"", end=True))]

    async def close(self) -> None:
        try:
            await self._machine.close()
        finally:
            self._on_close()

    async def _answer(self, message: Message) -> list[bytes]:
        decision = await self._machine.receive(message)
        if isinstance(decision, Emit):
            if isinstance(message, Trailers):
                body = Emit(decision.body, end=False, metadata=decision.metadata)
                ahead = [codec.encode(body, ResponseBody(b"", end=False))] if decision.body else []
                return [*ahead, codec.encode(decision, message)]
            if not decision.body and not decision.end and not decision.metadata:
                return []  # held back: in FULL_DUPLEX_STREAMED answers need not match messages
        return [codec.encode(decision, message)]
