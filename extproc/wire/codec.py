"""ProcessingRequest → our messages; our decisions → ProcessingResponse (envoy.service.ext_proc.v3)."""

from collections.abc import Iterable
from typing import Final

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyMutation,
    BodyResponse,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    HttpHeaders,
    ImmediateResponse,
    ProcessingRequest,
    ProcessingResponse,
    StreamedBodyResponse,
    TrailersResponse,
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

_OVERWRITE: Final = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_MODES: Final = {
    BodyMode.NONE: ProcessingMode(response_body_mode=ProcessingMode.NONE),
    BodyMode.BUFFERED: ProcessingMode(response_body_mode=ProcessingMode.BUFFERED),
    # FULL_DUPLEX_STREAMED: pieces in and out need not match, so text can be held back. It wants trailers sent.
    BodyMode.STREAMED: ProcessingMode(
        response_body_mode=ProcessingMode.FULL_DUPLEX_STREAMED, response_trailer_mode=ProcessingMode.SEND
    ),
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
    """The decision, as the answer to ``to``."""
    if decision is PROCEED and not isinstance(to, Trailers):
        return _UNCHANGED[type(to)]
    match decision:
        case Answer():
            response = ProcessingResponse(
                immediate_response=ImmediateResponse(
                    status=HttpStatus(code=decision.status),
                    headers=_mutation(decision.headers.items(), ()),
                    body=decision.body,
                    details=decision.reason,
                ),
            )
        case Emit():
            response = _emit(decision, to)
        case Proceed():
            response = _proceed(decision, to)
    if decision.metadata:
        outer = response.dynamic_metadata.fields[NAMESPACE].struct_value.fields
        for name, value in decision.metadata.items():
            if isinstance(value, str):
                outer[name].string_value = value
            else:
                outer[name].number_value = value
    encoded: bytes = response.SerializeToString()
    return encoded


def _emit(emit: Emit, to: Message) -> ProcessingResponse:
    if isinstance(to, Trailers):
        # Trailers end the stream by themselves; what is left goes before them as a piece of its own (see session).
        return ProcessingResponse(response_trailers=TrailersResponse())
    streamed = StreamedBodyResponse(body=emit.body, end_of_stream=emit.end)
    return ProcessingResponse(
        response_body=BodyResponse(response=CommonResponse(body_mutation=BodyMutation(streamed_response=streamed)))
    )


def _proceed(proceed: Proceed, to: Message) -> ProcessingResponse:
    common = CommonResponse()
    if proceed.headers is not None:
        changed, removed = proceed.headers.take_changes()
        if changed or removed:
            common.header_mutation.CopyFrom(_mutation(changed.items(), removed))
    if proceed.body is not None:
        common.body_mutation.body = proceed.body
    common.clear_route_cache = proceed.reroute
    match to:
        case RequestHead():
            return ProcessingResponse(request_headers=HeadersResponse(response=common))
        case RequestBody():
            return ProcessingResponse(request_body=BodyResponse(response=common))
        case ResponseHead():
            mode = None if proceed.response_mode is None else _MODES[proceed.response_mode]
            return ProcessingResponse(response_headers=HeadersResponse(response=common), mode_override=mode)
        case ResponseBody():
            return ProcessingResponse(response_body=BodyResponse(response=common))
        case Trailers(response=True):
            return ProcessingResponse(response_trailers=TrailersResponse())
        case Trailers():
            return ProcessingResponse(request_trailers=TrailersResponse())


def _mutation(changed: Iterable[tuple[str, str]], removed: Iterable[str]) -> HeaderMutation:
    # Envoy reads raw_value only, and overwrites whatever append_action says; we say what we mean.
    return HeaderMutation(
        set_headers=[
            HeaderValueOption(
                header=HeaderValue(key=name, raw_value=value.encode("latin-1", "replace")), append_action=_OVERWRITE
            )
            for name, value in changed
        ],
        remove_headers=removed,
    )


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
    type(to): _proceed(PROCEED, to).SerializeToString()
    for to in (RequestHead(Headers()), RequestBody(b""), ResponseHead(Headers()), ResponseBody(b"", end=True))
}
