"""Texts in requests and whole answers: each is found in its place, and can be replaced there."""

from typing import Any

import msgspec
import pytest
from anthropic.types import Message
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from strategies import JSON_VALUES

from extproc.dialects import base
from extproc.dialects.base import Place
from extproc.dialects.document import Document
from extproc.dialects.endpoints import BY_NAME, CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint

PNG = "data:image/png;base64,iVBORw0KGgo="
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.sampled_from(
    ['"', "\\", "\u2028\u2029", "😀", "\x00", "\x1b[0m", "\r\n\n", '\\u0000"}', "data: [DONE]\n\n"]
)

CHAT_REQUEST = {
    "model": "m",
    "messages": [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": "hello"},
        {
            "role": "user",
            "name": "joe",
            "content": [
                {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
                {"type": "text", "text": "what is this"},
                {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
        },
        {"role": "tool", "tool_call_id": "t", "content": [{"type": "text", "text": "sunny"}]},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "old"},
        {"role": "assistant", "refusal": "no", "content": ""},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "weather",
                "parameters": {"properties": {"the.city": {"type": "string", "description": "which"}}},
            },
        }
    ],
}
MESSAGES_REQUEST = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "Eq"},
                {"type": "redacted_thinking", "data": "xxx"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"city": "北京"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [
                        {"type": "text", "text": "sunny"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}},
                    ],
                },
                {"type": "image", "source": {"type": "url", "url": "https://x.test/b.png"}},
                {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}},
                {"type": "text", "text": "and now"},
            ],
        },
    ],
    "tools": [{"name": "f", "description": "weather", "input_schema": {"type": "object"}}],
}
RESPONSES_REQUEST = {
    "model": "m",
    "instructions": "be kind",
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": PNG}]},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "hm"}], "encrypted_content": "z"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok", "annotations": []}]},
    ],
    "prompt": {"id": "p", "variables": {"who": "Ann"}},
    "tools": [{"type": "custom", "name": "g", "description": "runs"}],
}


def document(body: Any) -> Document:
    return Document.parse(msgspec.json.encode(body))


def test_chat_request() -> None:
    """System, users, tool calls, tools' results and descriptions, images with the message that they are in."""
    assert base.request_texts(CHAT, document(CHAT_REQUEST)) == [
        Place("system", "messages[0].content", "be kind"),
        Place("user", "messages[1].content", "hello"),
        Place("user", "messages[2].content[1].text", "what is this", (PNG, "https://x.test/a.png")),
        Place("assistant", "messages[3].reasoning_content", "hm"),
        Place("assistant", "messages[3].tool_calls[0].function.arguments", '{"a":1}'),
        Place("tool", "messages[4].content[0].text", "sunny"),
        Place("assistant", "messages[5].function_call.arguments", "{}"),
        Place("tool", "messages[6].content", "old"),
        Place("assistant", "messages[7].refusal", "no"),
        Place("system", "tools[0].function.description", "weather"),
        Place("system", 'tools[0].function.parameters.properties["the.city"].description', "which"),
    ]


def test_messages_request() -> None:
    """Anthropic's blocks: what a tool said is the tool's, though it stands in a user's message."""
    assert base.request_texts(MESSAGES, document(MESSAGES_REQUEST)) == [
        Place("system", "system[0].text", "be kind"),
        Place("user", "messages[0].content", "hi"),
        Place("assistant", "messages[1].content[0].thinking", "hm"),
        Place("assistant", "messages[1].content[2].input", '{"city":"北京"}'),
        Place(
            "tool",
            "messages[2].content[0].content[0].text",
            "sunny",
            ("data:image/png;base64,iVBO", "https://x.test/b.png"),
        ),
        Place("user", "messages[2].content[2].title", "T"),
        Place("user", "messages[2].content[2].source.data", "D"),
        Place("user", "messages[2].content[3].text", "and now"),
        Place("system", "tools[0].description", "weather"),
    ]


def test_responses_request() -> None:
    """The items of the Responses API, whoever they are of."""
    assert base.request_texts(RESPONSES, document(RESPONSES_REQUEST)) == [
        Place("system", "instructions", "be kind"),
        Place("user", "prompt.variables.who", "Ann"),
        Place("user", "input[0].content[0].text", "hi", (PNG,)),
        Place("assistant", "input[1].summary[0].text", "hm"),
        Place("assistant", "input[2].arguments", "{}"),
        Place("tool", "input[3].output", "sunny"),
        Place("assistant", "input[4].content[0].text", "ok"),
        Place("system", "tools[0].description", "runs"),
    ]


@pytest.mark.parametrize(
    ("endpoint", "fields", "places"),
    [
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, [Place("user", "prompt", "a"), Place("user", "suffix", "b")]),
        (COMPLETIONS, {"prompt": ["a", "b"]}, [Place("user", "prompt[0]", "a"), Place("user", "prompt[1]", "b")]),
        (EMBEDDINGS, {"input": ["a", ""]}, [Place("user", "input[0]", "a")]),
        (EMBEDDINGS, {"input": "a"}, [Place("user", "input", "a")]),
        (RESPONSES, {"input": "a"}, [Place("user", "input", "a")]),
        (MESSAGES, {"system": "s", "messages": []}, [Place("system", "system", "s")]),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]},
            [Place("user", "messages[0]", "", (PNG,))],
        ),
    ],
)
def test_short_forms(endpoint: Endpoint, fields: dict[str, Any], places: list[Place]) -> None:
    """Strings where lists may be, lists of strings, and a message that is an image alone."""
    assert base.request_texts(endpoint, document(fields)) == places


@pytest.mark.parametrize(
    ("endpoint", "fields", "path"),
    [
        (COMPLETIONS, {"prompt": [1, 2]}, "prompt"),
        (EMBEDDINGS, {"input": [[1, 2]]}, "input[0]"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "hologram", "waves": "x"}]}]}, ".waves"),
        (CHAT, {"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "Content": "bad"}]}, "messages[0].Content"),
        (
            CHAT,
            {"messages": [{"content": [{"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}]}]},
            ".input_audio.data",
        ),
        (
            CHAT,
            {"messages": [{"content": [{"type": "video_url", "video_url": {"url": "https://x.test"}}]}]},
            ".video_url.url",
        ),
        (
            MESSAGES,
            {"messages": [{"content": [{"type": "document", "source": {"type": "base64", "data": "JVBE"}}]}]},
            ".source.data",
        ),
        (RESPONSES, {"input": [{"content": [{"type": "input_file", "file_id": "f"}]}]}, ".file_id"),
    ],
)
def test_what_cannot_be_read(endpoint: Endpoint, fields: dict[str, Any], path: str) -> None:
    """Token ids, audio, files, unknown fields: the place is named and not readable."""
    places = base.request_texts(endpoint, document(fields))

    assert [place.readable for place in places] == [False]
    assert places[0].path.endswith(path)
    assert places[0].text == ""


def test_numbers_that_cannot_be_read() -> None:
    """A field that cannot be decoded is not readable, and stays as it is."""
    body = b'{"messages": [{"content": "a", "x": 1e400}]}'
    given_ = Document.parse(body)
    base.rewrite_request(CHAT, given_, {"messages[0].content": "b"})

    assert base.request_texts(CHAT, given_) == [Place("user", "messages", "", readable=False)]
    assert given_.body == body


def test_a_rewritten_field_leaves_the_others_alone() -> None:
    """Only the field in which a text changes is written anew."""
    body = b'{"model" : "m", "tools": [ {"description":"d"} ], "messages":[ {"role":"user","content":"\\u0061"} ]}'
    given_ = Document.parse(body)
    base.rewrite_request(CHAT, given_, {"tools[0].description": "d", "messages[0].content": 'b"\u2028😀'})

    assert given_.body == (
        b'{"model" : "m", "tools": [ {"description":"d"} ], "messages":[{"role":"user","content":"b\\"'
        + "\u2028😀".encode()
        + b'"}]}'
    )


def test_nothing_changes_nothing() -> None:
    """The client's own bytes stay where every text is what it was."""
    body = b'{"messages":[ {"content":"\\u0061"} ]}'
    given_ = Document.parse(body)
    base.rewrite_request(CHAT, given_, {"messages[0].content": "a", "messages[9].content": "z"})

    assert given_.body is body


@pytest.mark.parametrize(("text", "value"), [('{"a":"[X]"}', {"a": "[X]"}), ('{"a":[X]}', {"text": '{"a":[X]}'})])
def test_rewritten_input_is_an_object(text: str, value: dict[str, str]) -> None:
    """The input of a tool stays an object, even where the text that replaces it is not JSON."""
    given_ = document({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": {"a": 1}}]}]})
    base.rewrite_request(MESSAGES, given_, {"messages[0].content[0].input": text})

    assert msgspec.json.decode(given_.body)["messages"][0]["content"][0]["input"] == value


@pytest.mark.parametrize(
    ("endpoint", "request_"),
    [(CHAT, CHAT_REQUEST), (MESSAGES, MESSAGES_REQUEST), (RESPONSES, RESPONSES_REQUEST)],
    ids=["chat", "messages", "responses"],
)
@given(data=st.data())
def test_any_text_survives_a_request(endpoint: Endpoint, request_: dict[str, Any], data: st.DataObject) -> None:
    """What is put into a place is read there again, the images and all other places stay."""
    given_ = document(request_)
    before = [place for place in base.request_texts(endpoint, given_) if not place.path.endswith(".input")]
    changes = {place.path: data.draw(TEXTS) for place in before if data.draw(st.booleans())}
    base.rewrite_request(endpoint, given_, changes)
    after = [place for place in base.request_texts(endpoint, given_) if not place.path.endswith(".input")]

    assert after == [place._replace(text=changes.get(place.path, place.text)) for place in before]


@pytest.mark.parametrize("endpoint", list(BY_NAME.values()), ids=list(BY_NAME))
@given(body=st.dictionaries(st.sampled_from(["messages", "input", "prompt", "system", "tools", "text"]), JSON_VALUES))
def test_any_request_is_survived(endpoint: Endpoint, body: dict[str, Any]) -> None:
    """Requests of any shape raise nothing, and rewriting them with what they have changes nothing."""
    given_ = document(body)
    places = base.request_texts(endpoint, given_)
    base.rewrite_request(endpoint, given_, {place.path: place.text for place in places if place.readable})

    assert msgspec.json.decode(given_.body) == body


USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
CHAT_ANSWER = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 1,
            "finish_reason": "tool_calls",
            "logprobs": {"content": [{"token": "Hi", "logprob": 0, "bytes": [72], "top_logprobs": []}]},
            "message": {
                "role": "assistant",
                "content": "Hi",
                "reasoning_content": "hm",
                "reasoning": "hm",
                "tool_calls": [
                    {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                    {"id": "u", "type": "custom", "custom": {"name": "g", "input": "free"}},
                ],
            },
        },
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "", "refusal": "No"}},
    ],
    "usage": USAGE,
}
COMPLETIONS_ANSWER = {
    "id": "c",
    "object": "text_completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "text": "Hi", "finish_reason": "stop", "logprobs": None}],
}
MESSAGES_ANSWER = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "Eq"},
        {"type": "text", "text": "Hi", "citations": None},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"city": "北京"}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}
RESPONSES_ANSWER = {
    "id": "r",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "m",
    "output": [
        {
            "id": "a",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "so"}],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        {
            "id": "b",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [
                {
                    "type": "output_text",
                    "text": "Hi",
                    "annotations": [
                        {"type": "url_citation", "start_index": 0, "end_index": 2, "title": "T", "url": "https://x"}
                    ],
                    "logprobs": [],
                },
                {"type": "refusal", "refusal": "No"},
            ],
        },
        {"id": "c", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
ANSWERS = [
    pytest.param(
        CHAT,
        CHAT_ANSWER,
        ChatCompletion,
        {
            "1/content": "Hi",
            "1/reasoning/reasoning_content": "hm",
            "1/reasoning/reasoning": "hm",
            "1/arguments/0": '{"a":1}',
            "1/arguments/1/custom": "free",
            "0/refusal": "No",
        },
        id="chat",
    ),
    pytest.param(COMPLETIONS, COMPLETIONS_ANSWER, Completion, {"0/content": "Hi"}, id="completions"),
    pytest.param(
        MESSAGES,
        MESSAGES_ANSWER,
        Message,
        {"0/reasoning/0": "hm", "0/content/1": "Hi", "0/arguments/2": '{"city":"北京"}'},
        id="messages",
    ),
    pytest.param(
        RESPONSES,
        RESPONSES_ANSWER,
        Response,
        {
            "0/summary/0/0": "so",
            "0/reasoning/0/0": "hm",
            "0/content/1/0": "Hi",
            "0/other/1.content[0].annotations[0].title": "T",
            "0/refusal/1/1": "No",
            "0/arguments/2": "{}",
        },
        id="responses",
    ),
]


@pytest.mark.parametrize(("endpoint", "answer", "model", "texts"), ANSWERS)
def test_answers(endpoint: Endpoint, answer: dict[str, Any], model: Any, texts: dict[str, str]) -> None:
    """Every text of every choice is found, under the key that a stream would give it."""
    pieces = base.answer_texts(endpoint, msgspec.json.encode(answer))

    assert {piece.key: piece.text for piece in pieces} == texts
    assert all(piece.readable and not piece.again for piece in pieces)
    assert [piece.key for piece in pieces if piece.copy] == (["1/reasoning/reasoning"] if endpoint is CHAT else [])


@pytest.mark.parametrize(("endpoint", "answer", "model", "texts"), ANSWERS)
@given(data=st.data())
def test_any_text_survives_an_answer(
    endpoint: Endpoint, answer: dict[str, Any], model: Any, texts: dict[str, str], data: st.DataObject
) -> None:
    """A rewritten answer is one that the SDK reads, with the new texts in it and everything else as it was."""
    body = msgspec.json.encode(answer)
    pieces = [piece for piece in base.answer_texts(endpoint, body) if not piece.path.endswith(".input")]
    changes = {piece.path: data.draw(TEXTS) for piece in pieces}
    written = base.rewrite_answer(endpoint, body, changes)
    model.model_validate_json(written)
    back = {piece.path: piece.text for piece in pieces}

    read = {piece.path: piece.text for piece in base.answer_texts(endpoint, written)}
    assert {path: read[path] for path in changes} == changes
    again = msgspec.json.decode(base.rewrite_answer(endpoint, written, back))
    expected = msgspec.json.decode(body)
    if endpoint is CHAT and again != expected:
        expected["choices"][0]["logprobs"]["content"] = []
        again["choices"][0]["logprobs"] = expected["choices"][0]["logprobs"]
    assert again == expected


def test_log_probabilities_go_with_the_text() -> None:
    """What spells the text a second time does not outlive its change, and stays where nothing changes."""
    body = msgspec.json.encode(CHAT_ANSWER)
    changed = base.rewrite_answer(CHAT, body, {"choices[0].message.content": "***"})

    assert msgspec.json.decode(changed)["choices"][0]["logprobs"] is None
    assert base.rewrite_answer(CHAT, body, {"choices[0].message.content": "Hi"}) is body


def test_rewritten_tool_input() -> None:
    """The SDK reads a changed input of a tool as an object."""
    body = base.rewrite_answer(
        MESSAGES, msgspec.json.encode(MESSAGES_ANSWER), {"content[2].input": '{"city":"\u2028\\""}'}
    )
    block = Message.model_validate_json(body).content[2]

    assert block.type == "tool_use"
    assert block.input == {"city": '\u2028"'}


@pytest.mark.parametrize("endpoint", list(BY_NAME.values()), ids=list(BY_NAME))
@given(body=JSON_VALUES, inner=JSON_VALUES)
def test_any_answer_is_survived(endpoint: Endpoint, body: Any, inner: Any) -> None:
    """Answers of any shape raise nothing; one that is no object is not readable."""
    for value in (body, {"choices": [{"message": inner, "text": inner}], "content": inner, "output": inner}):
        encoded = msgspec.json.encode(value)
        pieces = base.answer_texts(endpoint, encoded)
        assert base.rewrite_answer(endpoint, encoded, {piece.path: piece.text for piece in pieces}) is encoded
        assert isinstance(value, dict) or not pieces[0].readable


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff", b'{"choices":'])
def test_what_is_no_answer(body: bytes) -> None:
    """A body that cannot be decoded is one piece that cannot be read."""
    assert [piece.readable for piece in base.answer_texts(CHAT, body)] == [False]
    assert base.rewrite_answer(CHAT, body, {"": "x"}) is body


def test_audio_in_an_answer() -> None:
    """The transcript of spoken words is text, the sound is not readable."""
    audio = {"id": "a", "data": "UklG", "transcript": "Hi", "expires_at": 1}
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": None, "audio": audio}}]}
    pieces = base.answer_texts(CHAT, msgspec.json.encode(body))

    assert [(piece.key, piece.text, piece.readable) for piece in pieces] == [
        ("", "", False),
        ("0/transcript", "Hi", True),
    ]
