"""The state machine of a call at the router stage: messages in, decisions out, filters in between."""

from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

from extproc.core.call import Answered, Call, How, Outcome
from extproc.core.chain import Chain
from extproc.core.encoding import Decoder, decode
from extproc.core.errors import (
    InvalidRequest,
    ProtocolError,
    ProviderFailed,
    ProviderStalled,
    Refusal,
    Source,
    refusal_of,
    to_answer,
)
from extproc.core.evidence import SETTLED
from extproc.core.filter import Cut, Reply
from extproc.core.messages import (
    PROCEED,
    Answer,
    BodyMode,
    Decision,
    Emit,
    Headers,
    Message,
    Proceed,
    RequestBody,
    RequestHead,
    ResponseBody,
    ResponseHead,
    Trailers,
)
from extproc.dialects import base as dialects
from extproc.dialects.document import Document, InvalidField, InvalidJson
from extproc.dialects.sse import Event, Splitter

INTERNAL: Final = "x-extproc-"
"""Header names that are ours alone: a client's or a provider's own are removed before anything reads them."""
CALL_ID: Final = f"{INTERNAL}call-id"
_TICK: Final = 0.001  # seconds


class State(Enum):
    """What we wait for."""

    REQUEST_HEAD = auto()
    REQUEST_BODY = auto()
    RESPONSE_HEAD = auto()
    RESPONSE_WHOLE = auto()
    RESPONSE_STREAM = auto()
    OVER = auto()  # the answer was given; what still passes is nothing of ours


# A reply that Envoy makes itself (413, 408, no upstream) comes as a ResponseHead while we wait for the request.
TURNS: Final[dict[State, tuple[type[Message], ...]]] = {
    State.REQUEST_HEAD: (RequestHead, ResponseHead),
    State.REQUEST_BODY: (RequestBody, ResponseHead, Trailers),
    State.RESPONSE_HEAD: (ResponseHead, Trailers),
    State.RESPONSE_WHOLE: (ResponseBody, Trailers),
    State.RESPONSE_STREAM: (ResponseBody, Trailers),
    State.OVER: (RequestBody, ResponseHead, ResponseBody, Trailers),
}


class Opening(Protocol):
    """Makes a call and its chain from the request's head."""

    def __call__(self, head: RequestHead) -> tuple[Call, Chain]: ...


class Exchange:
    """One call. Feed it Envoy's messages in order; each gets exactly one decision."""

    def __init__(
        self,
        opening: Opening,
        *,
        clock: Callable[[], float],
        on_error: Callable[[str, BaseException], None],
        max_answer: int,
    ) -> None:
        self._opening = opening
        self._clock = clock
        self._on_error = on_error
        self._max_answer = max_answer
        self._state = State.REQUEST_HEAD
        self._call: Call | None = None
        self._chain = Chain(())
        self._outcome: Outcome | None = None
        self._splitter = Splitter()
        self._decoder: Decoder | None = None
        self._heard = 0.0

    @property
    def idle_timeout(self) -> float | None:
        """Seconds of silence after which something held back is due, or a streamed answer is ended."""
        if self._state is not State.RESPONSE_STREAM or self._call is None:
            return None
        due = [x for x in (self._call.wake_after, self._patience()) if x is not None]
        return max(min(due), _TICK) if due else None

    async def receive(self, message: Message) -> Decision:
        if not isinstance(message, TURNS[self._state]):
            raise ProtocolError(f"{type(message).__name__} while waiting for {self._state.name}")
        began = self._heard = self._clock()
        try:
            return await self._dispatch(message)
        finally:
            if self._call is not None:
                self._call.own_seconds += self._clock() - began

    async def on_idle(self) -> Decision | None:
        """Let out what was held back long enough; end a streamed answer whose provider fell silent."""
        call = self._call
        if self._state is not State.RESPONSE_STREAM or call is None:
            return None
        patience = self._patience()
        if call.wake_after is not None and (patience is None or patience > 0):
            return await self._emit(call, [], final=False)
        return await self._break_off(ProviderStalled("The provider stopped in the middle of its answer."), flush=True)

    def _patience(self) -> float | None:
        """Seconds for which the provider may still be silent."""
        model = self._call.model if self._call else None
        return None if model is None or model.idle is None else self._heard + model.idle - self._clock()

    async def close(self) -> None:
        """The call is over, however it ended."""
        call, self._state = self._call, State.OVER
        if call is None:
            return
        self._call = None
        status = call.answered.status if call.answered else 0
        outcome = self._outcome or Outcome("aborted", status, "aborted")
        await self._chain.done(outcome, lambda error: self._on_error(call.id, error))

    async def _dispatch(self, message: Message) -> Decision:
        if self._state is State.OVER:
            # Bytes that come after we ended a stream are nobody's any more.
            return Emit(b"", end=message.end) if isinstance(message, ResponseBody) else PROCEED
        match message:
            case RequestHead():
                return await self._request_head(message)
            case RequestBody():
                return await self._request_body(message)
            case ResponseHead():
                return await self._response_head(message)
            case ResponseBody() if self._state is State.RESPONSE_STREAM:
                return await self._response_piece(message)
            case ResponseBody():
                return await self._response_whole(message)
            case Trailers():
                return await self._trailers(message)

    # --- request ----------------------------------------------------------------------------------------------

    async def _request_head(self, head: RequestHead) -> Decision:
        _strip_internal(head.headers)
        self._call, self._chain = call, _ = self._opening(head)
        call.metadata["call_id"] = call.id
        try:
            reply = await self._chain.request_head()
            if reply is None and head.end:
                raise InvalidRequest("The request has no body; a JSON object was expected.")
        except Exception as error:  # noqa: BLE001 - fail closed, whatever it was
            return self._refuse(call, error)
        if reply is not None:
            return await self._reply(call, reply)
        self._state = State.REQUEST_BODY
        return Proceed(headers=call.headers, metadata=call.take_metadata())

    async def _request_body(self, body: RequestBody) -> Decision:
        call = self._open_call()
        try:
            self._parse(call, body.body)
            reply = await self._chain.request()
        except Exception as error:  # noqa: BLE001 - fail closed, whatever it was
            return self._refuse(call, error)
        if reply is not None:
            return await self._reply(call, reply)
        self._state = State.RESPONSE_HEAD
        document = call.document
        changed = document.body if document is not None and document.body is not body.body else None
        if changed is not None:
            call.headers["content-length"] = str(len(changed))
        return Proceed(headers=call.headers, body=changed, reroute=True, metadata=call.take_metadata())

    @staticmethod
    def _parse(call: Call, body: bytes) -> None:
        if call.endpoint is None:
            raise ProtocolError("a body for a path that is not an endpoint")
        try:
            call.document = Document.parse(body)
            call.request = dialects.read_request(call.endpoint, call.document)
        except InvalidJson as error:
            raise InvalidRequest(f"The request body could not be read: {error.message}.") from error
        except InvalidField as error:
            raise InvalidRequest(str(error), param=error.name) from error

    # --- answer -----------------------------------------------------------------------------------------------

    async def _response_head(self, head: ResponseHead) -> Decision:
        if self._call is None:
            # Envoy answered before it showed us the request: an invalid one.
            self._state = State.OVER
            return PROCEED
        call = self._call
        call.first_byte_at = self._clock()
        _strip_internal(head.headers)
        call.answered = answered = _answered(head)
        mode = BodyMode.NONE if head.end or answered.local else _mode_for(answered)
        try:
            if mode is BodyMode.BUFFERED:
                self._check_size(answered)
            reply = await self._chain.response_head()
            if reply is not None:
                return await self._reply(call, reply)
            if head.end and not answered.local:
                await self._chain.response()  # it has no body, so it is whole
            if mode is BodyMode.STREAMED:
                self._decoder = Decoder.of(answered.headers.get("content-encoding"))
                answered.headers.remove("content-length")
                if self._decoder is not None:
                    answered.headers.remove("content-encoding")
                if call.endpoint is not None:
                    call.reader = dialects.StreamReader(call.endpoint)
        except Exception as error:  # noqa: BLE001 - fail closed, whatever it was
            return self._refuse(call, error)
        for name, value in call.answer_headers.items():
            answered.headers[name] = value
        answered.headers[CALL_ID] = call.id
        if mode is BodyMode.NONE:
            self._finish(_local(answered) if answered.local else Outcome("completed", answered.status))
        else:
            self._state = State.RESPONSE_STREAM if mode is BodyMode.STREAMED else State.RESPONSE_WHOLE
        return Proceed(headers=answered.headers, metadata=call.take_metadata(), response_mode=mode)

    def _check_size(self, answered: Answered) -> None:
        """Envoy would say so itself, but stalls if the answer comes faster than our word on its head."""
        length = answered.headers.get("content-length")
        if length.isdecimal() and int(length) > self._max_answer:
            raise ProviderFailed("The provider's answer is larger than this gateway takes in one piece.")

    async def _response_whole(self, body: ResponseBody) -> Decision:
        call = self._open_call()
        answered = call.answered
        assert answered is not None  # noqa: S101 - set on the way into this state
        raw = body.body
        try:
            call.answer = read = decode(raw, answered.headers.get("content-encoding"))
            if call.endpoint is not None and answered.status < 300:
                call.facts = dialects.read_answer(call.endpoint, call.answer)
            await self._chain.response()
        except Exception as error:  # noqa: BLE001 - fail closed, whatever it was
            return self._refuse(call, error)
        self._finish(Outcome("completed", answered.status))
        changed = None
        if call.answer is not read:
            changed = call.answer
            answered.headers.remove("content-encoding")
            answered.headers["content-length"] = str(len(changed))
        return Proceed(headers=answered.headers, body=changed, metadata=call.take_metadata())

    async def _response_piece(self, piece: ResponseBody) -> Emit:
        call = self._open_call()
        try:
            plain = piece.body if self._decoder is None else self._decoder.feed(piece.body)
            events = self._splitter.feed(plain)
            if piece.end:
                events += self._splitter.finish()
        except Refusal as refusal:
            return await self._break_off(refusal, flush=False)
        return await self._emit(call, events, final=piece.end)

    async def _emit(self, call: Call, events: list[Event], *, final: bool) -> Emit:
        """What of these events, and of those that were held back, may go to the client now."""
        status = call.answered.status if call.answered else 0
        try:
            passed = await self._pass(call, events, final=final)
        except Cut as cut:
            self._finish(Outcome("replied", status, cut.code))
            return Emit(cut.body, end=True, metadata=call.take_metadata())
        except Exception as error:  # noqa: BLE001 - fail closed, whatever it was
            if not isinstance(error, Refusal):
                self._on_error(call.id, error)
            return await self._break_off(refusal_of(error), flush=False)
        if final:
            self._finish(Outcome("completed", status))
        return Emit(passed, end=final, metadata=call.take_metadata())

    async def _pass(self, call: Call, events: list[Event], *, final: bool) -> bytes:
        if call.reader is not None:
            for event in events:
                call.reader.read(event)
        call.events += len(events)
        return b"".join([event.raw for event in await self._chain.events(events, final=final)])

    async def _trailers(self, trailers: Trailers) -> Decision:
        """Trailers end a streamed answer in place of the last piece; what was held must go before them."""
        if self._state is State.RESPONSE_STREAM and trailers.response:
            return await self._response_piece(ResponseBody(b"", end=True))
        return PROCEED

    # --- ends -------------------------------------------------------------------------------------------------

    def _refuse(self, call: Call, error: Exception) -> Answer:
        refusal = refusal_of(error)
        if refusal is not error:
            self._on_error(call.id, error)
        how: How = "failed" if refusal.source is Source.US else "refused"
        self._finish(Outcome(how, refusal.status, refusal.code))
        return self._signed(call, to_answer(refusal, call.dialect))

    async def _reply(self, call: Call, reply: Reply) -> Answer:
        call.answer = reply.body
        try:
            await self._chain.response()
        except Exception as error:  # noqa: BLE001 - fail closed, whatever it was
            return self._refuse(call, error)
        self._finish(Outcome("replied", reply.status))
        return self._signed(call, Answer(reply.status, reply.headers, call.answer, "extproc_reply"))

    @staticmethod
    def _signed(call: Call, answer: Answer) -> Answer:
        answer.headers = {**answer.headers, **call.answer_headers, CALL_ID: call.id}
        answer.metadata = call.take_metadata()
        return answer

    async def _break_off(self, refusal: Refusal, *, flush: bool) -> Emit:
        """End a stream that has begun: an error event is all that the client can still be told."""
        call = self._open_call()
        status = call.answered.status if call.answered else 0
        self._finish(Outcome("failed", status, refusal.code))
        held = b""
        if flush:
            try:
                held = await self._pass(call, [], final=True)  # half an event would swallow the one below
            except Exception as error:  # noqa: BLE001 - what was held stays unsaid
                self._on_error(call.id, error)
        farewell = dialects.error_event(
            call.endpoint,
            status=refusal.status,
            type=refusal.type,
            code=refusal.code,
            message=refusal.message,
            sequence=call.reader.sequence if call.reader else 0,
        )
        return Emit(held + farewell, end=True, metadata=call.take_metadata())

    def _finish(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._state = State.OVER
        if self._call is not None:
            self._call.metadata[SETTLED] = "yes"

    def _open_call(self) -> Call:
        if self._call is None:
            raise ProtocolError("the call is over")
        return self._call


def _strip_internal(headers: Headers) -> None:
    for name in [name for name in headers if name.startswith(INTERNAL)]:
        headers.remove(name)


def _local(answered: Answered) -> Outcome:
    """How a call ended that Envoy answered itself. Its details may go on in braces, with addresses."""
    return Outcome("refused" if answered.status < 500 else "failed", answered.status, answered.local.partition("{")[0])


def _answered(head: ResponseHead) -> Answered:
    known = head.attributes
    details = str(known.get("details", ""))
    return Answered(
        status=int(head.headers.get(":status", "0")),
        headers=head.headers,
        provider=str(known.get("provider", "")),
        target=str(known.get("target", "")),
        attempts=int(known.get("attempt", 0)),
        local="" if details in ("", "via_upstream") else details,
    )


def _mode_for(answered: Answered) -> BodyMode:
    kind = answered.headers.get("content-type").partition(";")[0].strip().lower()
    if answered.status >= 400:
        return BodyMode.BUFFERED
    if kind == "text/event-stream":
        return BodyMode.STREAMED
    return BodyMode.BUFFERED if kind.endswith("json") or not kind else BodyMode.NONE
