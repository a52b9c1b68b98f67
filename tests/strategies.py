"""Hypothesis strategies that several tests share."""

import json
from typing import Any

from hypothesis import strategies as st

LINE_ENDS = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r"])

_SSE_LINES = st.one_of(
    st.sampled_from(
        [
            b"",
            b"",
            b": keep-alive",
            b":",
            b"data",
            b"data:",
            b"data: ",
            b"data: [DONE]",
            b"event: message_start",
            b"id: 7",
            b"retry: 10",
            b"\xef\xbb\xbf",
            b"garbage",
        ]
    ),
    st.text(max_size=12).map(lambda text: b"data: " + text.replace("\r", "").replace("\n", "").encode()),
    st.binary(max_size=8),
)


@st.composite
def sse_streams(draw: st.DrawFn) -> bytes:
    """Bytes that look like an SSE stream, with every kind of line and line end, or like nothing at all."""
    lines = draw(st.lists(st.tuples(_SSE_LINES, LINE_ENDS), max_size=12))
    start = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    return start + b"".join(line + end for line, end in lines) + draw(_SSE_LINES)


@st.composite
def chunkings(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """``data`` in pieces; all cuts are possible, empty pieces too."""
    if draw(st.booleans()):
        size = draw(st.integers(1, 3))
        return [data[i : i + size] for i in range(0, len(data), size)]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


# Not surrogates: msgspec refuses them alone, as providers do.
JSON_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | JSON_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JSON_TEXT, inner, max_size=3),
    max_leaves=8,
)
FIELD_NAMES = st.sampled_from(["model", "stream", "messages", 'a"b', "a\\", "é", "模型", "", "x:1,"]) | JSON_TEXT
_SPACE = st.text(" \t\r\n", max_size=3).map(str.encode)


@st.composite
def json_bodies(draw: st.DrawFn) -> tuple[dict[str, Any], bytes]:
    """A JSON object and one of the ways to write it: spacing, escapes, order."""
    fields = draw(st.dictionaries(FIELD_NAMES, JSON_VALUES, max_size=5))
    by_folded_name = {name.casefold(): name for name in fields}
    fields = {name: fields[name] for name in by_folded_name.values()}
    parts = []
    for name, value in fields.items():
        key = json.dumps(name, ensure_ascii=draw(st.booleans())).encode()
        indent = draw(st.sampled_from([None, 1, "\t"]))
        text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=indent).encode()
        parts.append(draw(_SPACE) + key + draw(_SPACE) + b":" + draw(_SPACE) + text + draw(_SPACE))
    inner = b",".join(parts) or draw(_SPACE)
    return fields, draw(_SPACE) + b"{" + inner + b"}" + draw(_SPACE)
