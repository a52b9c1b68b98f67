"""The interfaces of a filter: one concern in the life of one call, or of one attempt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from extproc.core.attempt import Attempt
from extproc.core.call import Call, Outcome
from extproc.dialects.sse import Event


@dataclass(slots=True)
class Reply:
    """An answer that we make ourselves. It passes the filters outside the one that made it, like any answer."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


class Cut(Exception):  # noqa: N818 - not an error: the filter's last word on a stream
    """Ends a streamed answer that has begun: ``body`` is the last that the client gets of it; ``code`` says why."""

    def __init__(self, body: bytes, code: str) -> None:
        super().__init__(code)
        self.body = body
        self.code = code


class Filter:
    """One concern in the life of one call; made anew for each call, so its state is its own.

    A filter edits the call in place. "No" is ``raise Refusal(...)``, "here is the answer" is
    ``return Reply(...)``. Any other exception refuses the call: filters fail closed.
    """

    async def on_request_head(self) -> Reply | None:
        """Headers are known, the body is not."""
        return None

    async def on_request(self) -> Reply | None:
        """The request is complete, parsed as ``call.document``."""
        return None

    async def on_response_head(self) -> Reply | None:
        """Status and headers of the answer are known and may be changed, or another answer given."""
        return None

    async def on_events(self, events: Sequence[Event], *, final: bool) -> Sequence[Event]:
        """Events of a streamed answer: what is not returned is held back. ``final``: nothing comes after these.

        A filter that holds something back and sets ``call.wake_after`` is called again, with no events, when the
        stream has been silent for so long. ``raise Cut(...)`` ends the stream.
        """
        del final
        return events

    async def on_response(self) -> None:
        """The whole answer is here as ``call.answer``, the provider's or our own reply."""

    async def on_done(self, outcome: Outcome) -> None:
        """The call is over; comes exactly once, however it ended."""


class Plugin(Protocol):
    """Built once from the configuration; makes a filter for each call that concerns it."""

    def open(self, call: Call) -> Filter | None:
        """The filter for this call, or None where the call does not concern it."""
        ...


class AttemptFilter(Protocol):
    """One concern of one try at one upstream. Stateless: attempts of a call may meet different workers."""

    async def on_attempt(self, attempt: Attempt) -> None:
        """Edit ``attempt.headers`` and ``attempt.document``.

        Whatever one provider needs must be set or removed on every attempt: Envoy starts attempt 2 with
        the headers as attempt 1 left them, and with the client's own body.
        """
        ...
