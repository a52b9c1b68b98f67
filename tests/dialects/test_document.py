"""Changing one field of a JSON body and no other byte."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import FIELD_NAMES, JSON_VALUES, json_bodies

from extproc.dialects.document import Document, InvalidField, InvalidJson

Body = tuple[dict[str, Any], bytes]


class Options(msgspec.Struct):
    include_usage: bool


def read_json(body: bytes) -> Any:
    return json.loads(body)


@given(json_bodies())
def test_reads_every_field(given_body: Body) -> None:
    """Each top-level value is read as json reads it, whatever the formatting."""
    fields, body = given_body
    document = Document.parse(body)

    assert document.body is body
    for name, value in fields.items():
        assert name in document
        assert document.get(name, object) == value
        assert read_json(document.raw(name) or b"") == value


@given(json_bodies(), FIELD_NAMES, JSON_VALUES)
def test_set_is_like_json(given_body: Body, name: str, value: Any) -> None:
    """Setting a field gives the object that json would, with the keys in the same order and a new one last."""
    fields, body = given_body
    document = Document.parse(body)
    document.set(name, value)

    assert list(read_json(document.body).items()) == list({**fields, name: value}.items())
    assert document.get(name, object) == value


@given(st.data(), json_bodies(), JSON_VALUES)
def test_set_leaves_other_bytes(data: st.DataObject, given_body: Body, value: Any) -> None:
    """Replacing a value touches that value's bytes only."""
    fields, body = given_body
    if not fields:
        return
    document = Document.parse(body)
    name = data.draw(st.sampled_from(list(fields)))
    old, new = document.raw(name) or b"", msgspec.json.encode(value)
    document.set(name, value)

    assert any(
        body[:at] + new + body[at + len(old) :] == document.body for at in range(len(body)) if body.startswith(old, at)
    )


@given(json_bodies(), JSON_VALUES)
def test_adding_leaves_other_bytes(given_body: Body, value: Any) -> None:
    """A new field is inserted in one place; without it the body is what it was."""
    fields, body = given_body
    document = Document.parse(body)
    document.set("a new one", value)
    added = (b"," if fields else b"") + b'"a new one":' + msgspec.json.encode(value)

    assert document.body.replace(added, b"", 1) == body
    document.remove("a new one")
    assert document.body == body


@given(st.data(), json_bodies())
def test_remove_takes_one_comma(data: st.DataObject, given_body: Body) -> None:
    """Removing fields leaves the others' bytes, in order, and a valid object."""
    fields, body = given_body
    document = Document.parse(body)
    raws = {name: document.raw(name) for name in fields}
    gone = data.draw(st.sets(st.sampled_from(list(fields)))) if fields else set()
    for name in gone:
        document.remove(name)
    kept = {name: value for name, value in fields.items() if name not in gone}

    assert list(read_json(document.body).items()) == list(kept.items())
    assert document.body.count(b",") == body.count(b",") - sum(
        (raws[name] or b"").count(b",") + json.dumps(name).encode().count(b",") for name in gone
    ) - min(len(gone), max(len(fields) - 1, 0))
    again = Document.parse(document.body)
    assert {name: again.raw(name) for name in kept} == {name: raws[name] for name in kept}


@given(json_bodies(), st.lists(st.tuples(FIELD_NAMES, st.none() | JSON_VALUES.map(lambda v: [v])), max_size=8))
def test_many_changes(given_body: Body, changes: list[tuple[str, list[Any] | None]]) -> None:
    """Any sequence of changes ends where the same sequence on a dict ends."""
    fields, body = given_body
    document = Document.parse(body)
    for name, change in changes:
        if change is None:
            document.remove(name)
            fields.pop(name, None)
        else:
            document.set(name, change[0])
            fields[name] = change[0]
        assert read_json(document.body) == fields
        assert (name in document) == (change is not None)


@pytest.mark.parametrize(
    ("body", "name", "wanted"),
    [
        (b'{"a": 1, "b": 2, "c": 3}', "a", b'{"b": 2, "c": 3}'),
        (b'{"a": 1, "b": 2, "c": 3}', "b", b'{"a": 1, "c": 3}'),
        (b'{"a": 1, "b": 2, "c": 3}', "c", b'{"a": 1, "b": 2}'),
        (b'{\n  "a": 1,\n  "b": 2\n}\n', "b", b'{\n  "a": 1\n}\n'),
        (b'{ "a": 1 }', "a", b"{  }"),
    ],
)
def test_remove_by_example(body: bytes, name: str, wanted: bytes) -> None:
    """A removed field takes the comma and the space before it, or after it where it was the first."""
    document = Document.parse(body)
    document.remove(name)

    assert document.body == wanted


def test_other_bytes_by_example() -> None:
    """Spellings that a re-encoding would lose: escapes, numbers, spaces, an escaped key."""
    body = b'{"mod\\u0065l" :"a",\t"t":1.50e+01,"m":"\\u4f60\\/", "s": { "x" : [ ] } }'
    document = Document.parse(body)
    document.set("model", "b")
    document.set("n", 1)

    assert document.body == b'{"mod\\u0065l" :"b",\t"t":1.50e+01,"m":"\\u4f60\\/", "s": { "x" : [ ] },"n":1 }'


def test_setting_what_is_there_changes_nothing() -> None:
    """The client's own bytes object comes back where no byte had to change."""
    body = b'{"model":"a"}'
    document = Document.parse(body)
    document.set("model", "a")
    document.remove("stream")

    assert document.body is body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"null",
        b'"model"',
        b'{"a":1}x',
        b'{"a":1}{"a":1}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":01}',
        b'{"a":1,}',
        b"{a:1}",
        b"{'a':1}",
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"\xff":1}',
        b'{"a":"\n"}',
        b'{"a":"\\ud800"}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000,
        "{}".encode("utf-16"),
    ],
)
def test_refuses_what_is_not_one_json_object(body: bytes) -> None:
    """Malformed, not an object, not UTF-8, nested without end: one error, with a message for the client."""
    with pytest.raises(InvalidJson) as caught:
        Document.parse(body)

    assert str(caught.value) == caught.value.message
    assert caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","model":"a"}',
        b'{"model":"a","x":1,"mod\\u0065l":"b"}',
        b'{"model":1,"model":12}',
        b'{"model":12,"model":1}',
        b'{"model":"a","Model":"b"}',
        b'{"stream":false,"\xc5\xbftream":true}',
        b'{"a":"1,\\"b\\":2","a":{"b":2}}',
    ],
)
def test_refuses_a_field_that_comes_twice(body: bytes) -> None:
    """Two fields of one name, be it escaped or in another case, could be read in two ways."""
    with pytest.raises(InvalidJson, match="twice"):
        Document.parse(body)


@given(json_bodies(), st.data())
def test_finds_every_duplicate(given_body: Body, data: st.DataObject) -> None:
    """A second field of any name, at any place, is found; values that look like fields are not mistaken for one."""
    fields, _ = given_body
    if not fields:
        return
    pairs = list(fields.items())
    name = data.draw(st.sampled_from(list(fields)))
    pairs.insert(data.draw(st.integers(0, len(pairs))), (name, data.draw(JSON_VALUES)))
    body = "{" + ",".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs) + "}"

    with pytest.raises(InvalidJson, match="twice"):
        Document.parse(body.encode())


def test_refuses_too_many_fields() -> None:
    """The number of fields is bounded, since each costs time."""
    body = json.dumps({str(i): i for i in range(1001)}).encode()

    with pytest.raises(InvalidJson, match="more than 1000 fields"):
        Document.parse(body)


@given(st.binary(max_size=40) | st.text('{}[]":,\\ ab1ué', max_size=40).map(str.encode))
def test_parse_raises_nothing_else(body: bytes) -> None:
    """Whatever the bytes: a document that json reads the same way, or InvalidJson."""
    try:
        document = Document.parse(body)
    except InvalidJson:
        return

    assert {name: document.get(name, object) for name in read_json(body)} == read_json(body)


def test_get_is_strict() -> None:
    """A value of another type is an error that names the field; null and absence are None."""
    document = Document.parse(b'{"model":5,"stream":"true","n":null,"o":{"include_usage":true}}')

    for name, type_ in (("model", str), ("stream", bool)):
        with pytest.raises(InvalidField) as caught:
            document.get(name, type_)
        assert caught.value.name == name
        assert f"'{name}'" in str(caught.value)
    assert document.get("n", int) is None
    assert document.get("absent", int) is None
    assert "n" in document
    assert "absent" not in document
    assert document.get("o", Options) == Options(include_usage=True)


def test_numbers_out_of_range() -> None:
    """A number that no float holds is an error of its field, not of the program."""
    with pytest.raises(InvalidField):
        Document.parse(b'{"a":1e999}').get("a", float)
