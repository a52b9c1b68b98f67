"""Protobuf to messages, and decisions to protobuf."""

from collections.abc import Callable
from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, HeaderValueOption, Metadata
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
)
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from extproc.core.errors import ProtocolError
from extproc.core.messages import (
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
from extproc.wire.codec import decode, encode
from extproc.wire.names import ATTRIBUTES

NAMES = {name: expression for expression, name in ATTRIBUTES.items()}


def headers(*fields: tuple[str, bytes], end: bool = False) -> HttpHeaders:
    values = [HeaderValue(key=name, raw_value=value) for name, value in fields]
    return HttpHeaders(headers=HeaderMap(headers=values), end_of_stream=end)


def struct(fields: dict[str, Any]) -> Struct:
    made = Struct()
    made.update(fields)
    return made


def decoded(**fields: Any) -> Message:
    return decode(ProcessingRequest(**fields).SerializeToString())


def encoded(decision: Decision, to: Message) -> ProcessingResponse:
    return ProcessingResponse.FromString(encode(decision, to))


def values(head: RequestHead | ResponseHead) -> dict[str, str]:
    return {name: head.headers[name] for name in head.headers}


# --- from Envoy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [True, False])
def test_request_head(end: bool) -> None:
    """Headers come from raw_value; the end tells that no body follows."""
    message = decoded(request_headers=headers((":path", b"/v1"), ("x-caf", b"caf\xe9"), end=end))

    assert isinstance(message, RequestHead)
    assert values(message) == {":path": "/v1", "x-caf": "café"}
    assert (message.end, message.attributes, message.metadata) == (end, {}, {})


def test_response_head() -> None:
    """The answer's head is read alike."""
    message = decoded(response_headers=headers((":status", b"200"), end=True))

    assert isinstance(message, ResponseHead)
    assert (values(message), message.end) == ({":status": "200"}, True)


def test_repeated_headers_are_joined() -> None:
    """A header that came twice is one, so that a second key cannot hide behind the first."""
    message = decoded(request_headers=headers(("x-api-key", b"a"), ("accept", b"*/*"), ("x-api-key", b"b")))

    assert isinstance(message, RequestHead)
    assert values(message) == {"x-api-key": "a, b", "accept": "*/*"}


def test_bodies_and_trailers() -> None:
    """Bodies keep every byte; trailers know their direction."""
    assert decoded(request_body=HttpBody(body=b"\x00\xff")) == RequestBody(b"\x00\xff")
    assert decoded(response_body=HttpBody(body=b"x")) == ResponseBody(b"x", end=False)
    assert decoded(response_body=HttpBody(end_of_stream=True)) == ResponseBody(b"", end=True)
    assert decoded(response_trailers=HttpTrailers()) == Trailers()
    assert decoded(request_trailers=HttpTrailers()) == Trailers(response=False)


def test_attributes_have_our_names() -> None:
    """Attributes arrive under Envoy's expressions, in any struct, and are known by our names; others are left out."""
    sent = {
        "envoy.filters.http.ext_proc": struct({NAMES["provider"]: "alpha", NAMES["attempt"]: 2, "other": "x"}),
        "more": struct({NAMES["details"]: "via_upstream"}),
    }
    message = decoded(response_headers=headers((":status", b"200")), attributes=sent)

    assert isinstance(message, ResponseHead)
    assert message.attributes == {"provider": "alpha", "attempt": 2.0, "details": "via_upstream"}


def test_metadata_of_our_namespace() -> None:
    """Dynamic metadata is read from our namespace alone: nobody else's filter may speak for the router stage."""
    context = Metadata(
        filter_metadata={
            "extproc": struct({"call_id": "c", "n": 1.5, "zero": 0}),
            "other": struct({"call_id": "spoofed"}),
        }
    )
    message = decoded(request_headers=headers(), metadata_context=context)

    assert isinstance(message, RequestHead)
    assert message.metadata == {"call_id": "c", "n": 1.5, "zero": 0.0}


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff", b"not protobuf", ProcessingRequest().SerializeToString()])
def test_undecodable(data: bytes) -> None:
    """Bytes that are no message of Envoy's are a protocol error."""
    with pytest.raises(ProtocolError):
        decode(data)


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    """No bytes raise anything else."""
    try:
        message = decode(data)
    except ProtocolError:
        return
    assert isinstance(message, RequestHead | RequestBody | ResponseHead | ResponseBody | Trailers)


# --- to Envoy -------------------------------------------------------------------------------------------------

MESSAGES: dict[str, Message] = {
    "request_headers": RequestHead(Headers()),
    "request_body": RequestBody(b""),
    "response_headers": ResponseHead(Headers()),
    "response_body": ResponseBody(b"", end=False),
    "response_trailers": Trailers(),
    "request_trailers": Trailers(response=False),
}


def edited() -> Headers:
    made = Headers([("a", "1"), ("gone", "1"), ("kept", "1")])
    made["a"] = "2"
    made["new"] = "café"
    made.remove("gone")
    return made


PROCEEDS: dict[str, Callable[[], Proceed]] = {
    "bare": Proceed,
    "headers": lambda: Proceed(headers=edited()),
    "unchanged headers": lambda: Proceed(headers=Headers([("a", "1")])),
    "all": lambda: Proceed(edited(), b"body", reroute=True, metadata={"a": 1}, response_mode=BodyMode.STREAMED),
}


@pytest.mark.parametrize("made", PROCEEDS)
@pytest.mark.parametrize("field", MESSAGES)
def test_proceed_answers_in_kind(field: str, made: str) -> None:
    """Whatever we go on with, the answer's field is set and is that of the message: unset would be a 500."""
    assert encoded(PROCEEDS[made](), MESSAGES[field]).WhichOneof("response") == field


@pytest.mark.parametrize("field", MESSAGES)
def test_answer_is_immediate(field: str) -> None:
    """An answer of ours is an immediate response, whatever it answers."""
    answer = Answer(429, {"content-type": "application/json", "retry-after": "7"}, b"{}", "extproc_x", {"a": "b"})
    response = encoded(answer, MESSAGES[field])

    assert response.WhichOneof("response") == "immediate_response"
    immediate = response.immediate_response
    assert (immediate.status.code, immediate.body, immediate.details) == (429, b"{}", "extproc_x")
    assert {o.header.key: o.header.raw_value for o in immediate.headers.set_headers} == {
        "content-type": b"application/json",
        "retry-after": b"7",
    }
    assert response.dynamic_metadata == struct({"extproc": {"a": "b"}})


@pytest.mark.parametrize("field", MESSAGES)
def test_emit_sets_a_response(field: str) -> None:
    """What a stream emits is a response to its body; where trailers end it, to those."""
    expected = "response_trailers" if field.endswith("trailers") else "response_body"

    assert encoded(Emit(b"x"), MESSAGES[field]).WhichOneof("response") == expected


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("body", [b"", b"data: \xff\n\n"])
def test_emit(body: bytes, end: bool) -> None:
    """A piece of a stream goes as a streamed response, with its end."""
    response = encoded(Emit(body, end, {"tokens": 3}), MESSAGES["response_body"])

    mutation = response.response_body.response.body_mutation
    assert mutation.WhichOneof("mutation") == "streamed_response"
    assert (mutation.streamed_response.body, mutation.streamed_response.end_of_stream) == (body, end)
    assert response.dynamic_metadata == struct({"extproc": {"tokens": 3}})


@pytest.mark.parametrize("field", ["request_headers", "request_body", "response_headers", "response_body"])
def test_changes_of_headers(field: str) -> None:
    """Only changes are sent, as raw values that overwrite; what was removed is named."""
    mutation = getattr(encoded(Proceed(headers=edited()), MESSAGES[field]), field).response.header_mutation

    assert {o.header.key: o.header.raw_value for o in mutation.set_headers} == {"a": b"2", "new": b"caf\xe9"}
    assert {o.header.value for o in mutation.set_headers} == {""}
    assert {o.append_action for o in mutation.set_headers} == {HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD}
    assert list(mutation.remove_headers) == ["gone"]


def test_changes_are_sent_once() -> None:
    """The next decision with the same headers sends nothing again."""
    made = edited()
    encode(Proceed(headers=made), MESSAGES["request_headers"])

    assert not encoded(Proceed(headers=made), MESSAGES["request_body"]).request_body.response.HasField(
        "header_mutation"
    )


def test_unchanged_is_empty() -> None:
    """Where nothing changes, nothing is said: no header, no body, no route cache, no metadata, no mode."""
    response = encoded(Proceed(headers=Headers([("a", "1")])), MESSAGES["request_body"])

    assert response.request_body.response.ByteSize() == 0
    assert not response.HasField("dynamic_metadata")
    assert not response.HasField("mode_override")


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_body_is_replaced(body: bytes) -> None:
    """A new body replaces the old one, an empty one too; None leaves it."""
    replaced = encoded(Proceed(body=body), MESSAGES["request_body"]).request_body.response

    assert replaced.body_mutation.WhichOneof("mutation") == "body"
    assert replaced.body_mutation.body == body
    assert not encoded(Proceed(), MESSAGES["request_body"]).request_body.response.HasField("body_mutation")


def test_reroute() -> None:
    """The route is chosen again where we say so."""
    for reroute in (True, False):
        response = encoded(Proceed(reroute=reroute), MESSAGES["request_body"])
        assert response.request_body.response.clear_route_cache is reroute


@pytest.mark.parametrize(
    ("mode", "body", "trailers"),
    [
        (BodyMode.NONE, ProcessingMode.NONE, ProcessingMode.DEFAULT),
        (BodyMode.BUFFERED, ProcessingMode.BUFFERED, ProcessingMode.DEFAULT),
        (BodyMode.STREAMED, ProcessingMode.FULL_DUPLEX_STREAMED, ProcessingMode.SEND),
    ],
)
def test_mode_of_the_answer(mode: BodyMode, body: int, trailers: int) -> None:
    """How the answer's body shall come is said with its head; a stream wants its trailers sent."""
    override = encoded(Proceed(response_mode=mode), MESSAGES["response_headers"]).mode_override

    assert (override.response_body_mode, override.response_trailer_mode) == (body, trailers)


@pytest.mark.parametrize("field", sorted(set(MESSAGES) - {"response_headers"}))
def test_mode_is_only_said_with_the_head(field: str) -> None:
    """Anywhere else Envoy would not listen."""
    assert not encoded(Proceed(response_mode=BodyMode.STREAMED), MESSAGES[field]).HasField("mode_override")
    assert not encoded(Proceed(), MESSAGES["response_headers"]).HasField("mode_override")


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
        st.text(st.characters(exclude_categories=["Cs"])) | st.integers(0, 2**53),
    )
)
def test_metadata_comes_back(metadata: dict[str, Any]) -> None:
    """What we say as dynamic metadata is what the other stage reads."""
    response = encoded(Proceed(metadata=metadata), MESSAGES["request_headers"])
    said = response.dynamic_metadata.fields["extproc"].struct_value if metadata else Struct()
    message = decoded(request_headers=headers(), metadata_context=Metadata(filter_metadata={"extproc": said}))

    assert isinstance(message, RequestHead)
    assert message.metadata == metadata
    assert response.HasField("dynamic_metadata") == bool(metadata)


@given(st.dictionaries(st.text("abc-", min_size=1, max_size=5), st.text(st.characters(max_codepoint=255))))
def test_headers_come_back(fields: dict[str, str]) -> None:
    """Every byte of a header value that we set is the byte that was meant."""
    made = Headers()
    for name, value in fields.items():
        made[name] = value
    mutation = encoded(Proceed(headers=made), MESSAGES["request_headers"]).request_headers.response.header_mutation
    message = decoded(request_headers=headers(*((o.header.key, o.header.raw_value) for o in mutation.set_headers)))

    assert isinstance(message, RequestHead)
    assert values(message) == fields
