"""ProcessingRequest → our messages; our decisions → ProcessingResponse (envoy.service.ext_proc.v3)."""

from functools import lru_cache
from typing import Final

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyMutation,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    HttpHeaders,
    ImmediateResponse,
    ProcessingRequest,
    ProcessingResponse,
    StreamedBodyResponse,
)
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct, Value

from extproc.core.errors import ProtocolError
from extproc.core.messages import (
    PROCEED,
    Answer,
    BodyMode,
    Decision,
    Emit,
    Headers,
    Message,
    Metadata,
    Proceed,
    RequestBody,
    RequestHead,
    ResponseBody,
    ResponseHead,
    Trailers,
)
from extproc.wire.names import ATTRIBUTES, NAMESPACE
from extproc.wire.protobuf import double, number, pack_double, put, sized

_ANSWERS: Final[dict[type[Message], bytes]] = {
    RequestHead: sized(ProcessingResponse, "request_headers"),
    RequestBody: sized(ProcessingResponse, "request_body"),
    ResponseHead: sized(ProcessingResponse, "response_headers"),
    ResponseBody: sized(ProcessingResponse, "response_body"),
    Trailers: sized(ProcessingResponse, "response_trailers"),
}
_REQUEST_TRAILERS: Final = sized(ProcessingResponse, "request_trailers")
_IMMEDIATE: Final = sized(ProcessingResponse, "immediate_response")
_DYNAMIC_METADATA: Final = sized(ProcessingResponse, "dynamic_metadata")
_COMMON: Final = sized(HeadersResponse, "response")  # BodyResponse has it under the same number
_HEADER_MUTATION: Final = sized(CommonResponse, "header_mutation")
_BODY_MUTATION: Final = sized(CommonResponse, "body_mutation")
_CLEAR_ROUTE: Final = number(CommonResponse, "clear_route_cache", 1)
_WHOLE_BODY: Final = sized(BodyMutation, "body")
_STREAMED: Final = sized(BodyMutation, "streamed_response")
_PIECE: Final = sized(StreamedBodyResponse, "body")
_LAST: Final = number(StreamedBodyResponse, "end_of_stream", 1)
_SET: Final = sized(HeaderMutation, "set_headers")
_REMOVE: Final = sized(HeaderMutation, "remove_headers")
_HEADER: Final = sized(HeaderValueOption, "header")
_OVERWRITE: Final = number(HeaderValueOption, "append_action", HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD)
_KEY: Final = sized(HeaderValue, "key")
_RAW_VALUE: Final = sized(HeaderValue, "raw_value")
_STATUS: Final = sized(ImmediateResponse, "status")
_REPLY_HEADERS: Final = sized(ImmediateResponse, "headers")
_REPLY_BODY: Final = sized(ImmediateResponse, "body")
_DETAILS: Final = sized(ImmediateResponse, "details")
_FIELDS: Final = sized(Struct, "fields")
_NAME: Final = sized(Struct.FieldsEntry, "key")
_VALUE: Final = sized(Struct.FieldsEntry, "value")
_STRING: Final = sized(Value, "string_value")
_DOUBLE: Final = double(Value, "number_value")
_STRUCT: Final = sized(Value, "struct_value")
_CACHED: Final = 256  # most calls set the same headers and fields to the same values
_MODES: Final = {
    mode: put(sized(ProcessingResponse, "mode_override"), processing.SerializeToString())
    for mode, processing in {
        BodyMode.NONE: ProcessingMode(response_body_mode=ProcessingMode.NONE),
        BodyMode.BUFFERED: ProcessingMode(response_body_mode=ProcessingMode.BUFFERED),
        # FULL_DUPLEX_STREAMED: pieces in and out need not match, so text can be held back. It wants trailers sent.
        BodyMode.STREAMED: ProcessingMode(
            response_body_mode=ProcessingMode.FULL_DUPLEX_STREAMED, response_trailer_mode=ProcessingMode.SEND
        ),
    }.items()
}


def decode(data: bytes) -> Message:
    """One message of Envoy's. Raises ProtocolError where the bytes are none, or none that we know."""
    try:
        request = ProcessingRequest.FromString(data)
    except Exception as error:  # upb raises DecodeError, an alias that differs by build
        raise ProtocolError("not a ProcessingRequest") from error
    match request.WhichOneof("request"):
        case "request_headers":
            head = request.request_headers
            return RequestHead(_headers(head), head.end_of_stream, _attributes(request), _metadata(request))
        case "request_body":
            return RequestBody(request.request_body.body)
        case "response_headers":
            head = request.response_headers
            return ResponseHead(_headers(head), head.end_of_stream, _attributes(request))
        case "response_body":
            return ResponseBody(request.response_body.body, request.response_body.end_of_stream)
        case "response_trailers":
            return Trailers()
        case "request_trailers":
            return Trailers(response=False)
        case other:
            raise ProtocolError(f"unknown message {other}")


def encode(decision: Decision, to: Message) -> bytes:
    """The decision, as the answer to ``to``: a ProcessingResponse."""
    match decision:
        case Proceed():
            if decision is PROCEED and not isinstance(to, Trailers):
                return _UNCHANGED[type(to)]
            response = _proceed(decision, to)
        case Emit():
            response = _emit(decision, to)
        case Answer():
            response = _answer(decision)
    return response + _dynamic_metadata(decision.metadata) if decision.metadata else response


def _answer(answer: Answer) -> bytes:
    mutation = b"".join([_set(name, value) for name, value in answer.headers.items()])
    return put(
        _IMMEDIATE,
        put(_STATUS, number(HttpStatus, "code", answer.status))
        + put(_REPLY_HEADERS, mutation)
        + put(_REPLY_BODY, answer.body)
        + put(_DETAILS, answer.reason.encode()),
    )


def _emit(emit: Emit, to: Message) -> bytes:
    if isinstance(to, Trailers):
        # Trailers end the stream by themselves; what is left goes before them as a piece of its own (see session).
        return put(_ANSWERS[Trailers], b"")
    streamed = put(_PIECE, emit.body) + (_LAST if emit.end else b"")
    return put(_ANSWERS[ResponseBody], put(_COMMON, put(_BODY_MUTATION, put(_STREAMED, streamed))))


def _proceed(proceed: Proceed, to: Message) -> bytes:
    if isinstance(to, Trailers):
        return put(_ANSWERS[Trailers] if to.response else _REQUEST_TRAILERS, b"")
    common = b""
    if proceed.headers is not None:
        changed, removed = proceed.headers.take_changes()
        mutation = b"".join([_set(name, value) for name, value in changed.items()])
        if removed:
            mutation += b"".join([put(_REMOVE, name.encode("latin-1")) for name in removed])
        if mutation:
            common = put(_HEADER_MUTATION, mutation)
    if proceed.body is not None:
        common += put(_BODY_MUTATION, put(_WHOLE_BODY, proceed.body))
    if proceed.reroute:
        common += _CLEAR_ROUTE
    response = put(_ANSWERS[type(to)], put(_COMMON, common))
    mode = proceed.response_mode
    return response if mode is None or not isinstance(to, ResponseHead) else response + _MODES[mode]


@lru_cache(_CACHED)
def _set(name: str, value: str) -> bytes:
    # Envoy reads raw_value only, and overwrites whatever append_action says; we say what we mean.
    header = put(_KEY, name.encode("latin-1")) + put(_RAW_VALUE, value.encode("latin-1", "replace"))
    return put(_SET, put(_HEADER, header) + _OVERWRITE)


def _dynamic_metadata(fields: Metadata) -> bytes:
    """A Struct in a Struct: namespace → our fields. A map's entry is a message of key 1 and value 2."""
    inner = b"".join([_entry(name, value) for name, value in fields.items()])
    outer = put(_FIELDS, put(_NAME, NAMESPACE.encode()) + put(_VALUE, put(_STRUCT, inner)))
    return put(_DYNAMIC_METADATA, outer)


@lru_cache(_CACHED)
def _entry(name: str, value: str | float) -> bytes:
    plain = put(_STRING, value.encode()) if isinstance(value, str) else _DOUBLE + pack_double(value)
    return put(_FIELDS, put(_NAME, name.encode()) + put(_VALUE, plain))


def _headers(message: HttpHeaders) -> Headers:
    return Headers([(h.key, h.raw_value.decode("latin-1")) for h in message.headers.headers])


def _attributes(request: ProcessingRequest) -> Metadata:
    known: dict[str, str | float] = {}
    for struct in request.attributes.values():
        for expression, value in struct.fields.items():
            name = ATTRIBUTES.get(expression)
            if name is not None:
                known[name] = _plain(value)
    return known


def _metadata(request: ProcessingRequest) -> Metadata:
    namespaces = request.metadata_context.filter_metadata
    if NAMESPACE not in namespaces:
        return {}
    struct: Struct = namespaces[NAMESPACE]
    return {name: _plain(value) for name, value in struct.fields.items()}


def _plain(value: Value) -> str | float:
    plain: str | float = value.number_value if value.HasField("number_value") else value.string_value
    return plain


_UNCHANGED: Final[dict[type[Message], bytes]] = {
    type(to): _proceed(PROCEED, to)
    for to in (RequestHead(Headers()), RequestBody(b""), ResponseHead(Headers()), ResponseBody(b"", end=True))
}
