"""Protobuf by hand says what protobuf's own library says."""

import math

import pytest
from envoy.config.core.v3.base_pb2 import HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import CommonResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Value
from google.protobuf.wrappers_pb2 import UInt64Value
from hypothesis import example, given
from hypothesis import strategies as st

from extproc.wire.protobuf import double, number, pack_double, put, sized, varint


@given(st.integers(1, 2**64 - 1))
@example(0x7F)
@example(0x80)
@example(0x3FFF)
@example(0x4000)
def test_varint(value: int) -> None:
    """A number is written as the library writes it."""
    assert UInt64Value(value=value).SerializeToString() == b"\x08" + varint(value)


def test_zero() -> None:
    """Zero is one byte."""
    assert varint(0) == b"\x00"


@given(st.binary(max_size=300))
@example(b"x" * 20_000)
def test_sized(content: bytes) -> None:
    """A field of bytes of any length reads as what was written."""
    assert HeaderValue.FromString(put(sized(HeaderValue, "raw_value"), content)).raw_value == content


@given(st.floats(allow_nan=False))
def test_double(value: float) -> None:
    """A double reads as what was written, infinities and both zeros included."""
    read = Value.FromString(double(Value, "number_value") + pack_double(value)).number_value

    assert (read, math.copysign(1, read)) == (value, math.copysign(1, value))


def test_number() -> None:
    """Booleans and enums are numbers."""
    assert CommonResponse.FromString(number(CommonResponse, "clear_route_cache", 1)).clear_route_cache
    assert HttpStatus.FromString(number(HttpStatus, "code", 503)).code == 503


def test_a_field_that_does_not_exist() -> None:
    """A name that Envoy's descriptor does not have fails at import, not on a call."""
    with pytest.raises(KeyError):
        sized(HeaderValue, "no_such_field")
