"""The state machine of an attempt: one try at one upstream, messages in, decisions out.

It shares nothing with the exchange of the call. What it must know of the call comes in dynamic metadata,
what it must know of the target in the cluster's metadata, so any worker can serve any attempt.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from extproc.core.errors import PolicyUnavailable, ProtocolError, Refusal, refusal_of, to_answer
from extproc.core.messages import (
    PROCEED,
    Answer,
    Decision,
    Headers,
    Message,
    Metadata,
    Proceed,
    RequestBody,
    RequestHead,
)
from extproc.dialects.document import Document, InvalidJson
from extproc.dialects.endpoints import BY_NAME, Endpoint

CALL_FIELDS = ("call_id", "consumer", "model", "endpoint", "query", "config")
"""What the router stage tells the upstream stage, as dynamic metadata of the namespace ``extproc``."""


@dataclass(slots=True)
class Attempt:
    """One try at one upstream. ``number`` starts at 1; ``headers`` are as the attempt before left them."""

    call_id: str
    model: str
    endpoint: Endpoint
    query: str
    provider: str
    target: str
    number: int
    document: Document
    headers: Headers
    consumer: str = ""
    metadata: dict[str, str | float] = field(default_factory=dict)


class AttemptExchange:
    """One attempt. ``run`` applies the attempt filters of the configuration that the call began with."""

    idle_timeout: float | None = None

    def __init__(
        self,
        run: Callable[[str, Attempt], Awaitable[None]],
        *,
        on_error: Callable[[str, BaseException], None],
    ) -> None:
        self._run = run
        self._on_error = on_error
        self._head: RequestHead | None = None
        self._decided = False

    async def receive(self, message: Message) -> Decision:
        match message:
            case RequestHead() if self._head is None and not message.end:
                self._head = message
                return PROCEED  # everything is decided when the body is here; Envoy holds the headers until then
            case RequestBody() if self._head is not None and not self._decided:
                self._decided = True
                return await self._decide(self._head, message.body)
            case _:
                raise ProtocolError(f"{type(message).__name__} at the upstream stage")

    async def _decide(self, head: RequestHead, body: bytes) -> Decision:
        known = head.metadata
        endpoint = BY_NAME.get(str(known.get("endpoint", "")))
        dialect = endpoint.dialect if endpoint else "openai"
        try:
            if endpoint is None:
                raise PolicyUnavailable("This call did not pass the gateway's first stage, so it got no credentials.")
            attempt = _attempt(endpoint, head, body)
            await self._run(str(known.get("config", "")), attempt)
        except Exception as error:  # noqa: BLE001 - fail closed, whatever it was
            if not isinstance(error, Refusal):
                self._on_error(str(known.get("call_id", "")), error)
            return to_answer(refusal_of(error), dialect)
        changed = attempt.document.body
        # Also where we change nothing: an attempt before this one may have left the length of its own body.
        attempt.headers["content-length"] = str(len(changed))
        return Proceed(headers=attempt.headers, body=changed, metadata=attempt.metadata or None)

    async def on_idle(self) -> Answer | None:
        return None

    async def close(self) -> None:
        """Nothing is held for an attempt."""


def _attempt(endpoint: Endpoint, head: RequestHead, body: bytes) -> Attempt:
    try:
        document = Document.parse(body)
    except InvalidJson as error:
        raise PolicyUnavailable("The call's body changed on its way through the gateway.") from error
    call, target = head.metadata, head.attributes
    return Attempt(
        call_id=_text(call, "call_id"),
        model=_text(call, "model"),
        endpoint=endpoint,
        query=_text(call, "query"),
        provider=_text(target, "provider"),
        target=_text(target, "target"),
        number=int(target.get("attempt", 1)),
        document=document,
        headers=head.headers,
        consumer=_text(call, "consumer"),
    )


def _text(fields: Metadata, name: str) -> str:
    return str(fields.get(name, ""))
