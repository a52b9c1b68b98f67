"""Texts in streams, piece by piece: read, replaced, released late, and cut off, as the SDKs see it."""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import anthropic
import httpx
import httpx2
import msgspec
import openai
import pytest
from anthropic.types import Message
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from strategies import JSON_VALUES, chunkings

from extproc.dialects import base
from extproc.dialects.endpoints import BY_NAME, CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Endpoint
from extproc.dialects.sse import Event, Splitter, encode

ENDING = base.Ending(sentence='我不能"处理"这个问题\u2028😀', created=1_700_000_000, call_id="c1")
ASKED = msgspec.structs.replace(ENDING, include_usage=True)


def stream(*events: dict[str, Any], done: bool = False) -> bytes:
    body = b"".join(encode(msgspec.json.encode(event), str(event.get("type", ""))) for event in events)
    return body + encode(b"[DONE]") if done else body


def chat(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def call(index: int, **function: str) -> dict[str, Any]:
    more = {"id": f"t{index}", "type": "function"} if "name" in function else {}
    return {"tool_calls": [{"index": index, **more, "function": function}]}


CHAT_STREAM = stream(
    chat(role="assistant", content=""),
    chat(reasoning_content="Hm"),
    chat(1, role="assistant", content="Eins"),
    chat(content="Hel"),
    chat(reasoning_content=" so", content="lo"),
    chat(**call(0, name="f", arguments="")),
    chat(**call(0, arguments='{"a":"\\u4f')),
    chat(1, content=" zwei", refusal="No"),
    chat(**call(1, name="g", arguments='{"b"')),
    chat(**call(0, arguments='60"}')),
    chat(**call(1, arguments=":2}")),
    chat(1, "stop"),
    chat(0, "tool_calls"),
    done=True,
)
CHAT_TEXTS = {
    "0/reasoning/reasoning_content": "Hm so",
    "1/content": "Eins zwei",
    "0/content": "Hello",
    "0/arguments/0": '{"a":"\\u4f60"}',
    "1/refusal": "No",
    "0/arguments/1": '{"b":2}',
}


def block(index: int, kind: str, **fields: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def opens(index: int, **content: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": content}


def closes(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}
CITATION = {"type": "char_location", "cited_text": "C", "document_index": 0, "document_title": None}
MESSAGES_EVENTS = [
    {"type": "message_start", "message": {**MESSAGE, "usage": {"input_tokens": 1, "output_tokens": 1}}},
    opens(0, type="thinking", thinking="", signature=""),
    block(0, "thinking_delta", thinking="H"),
    block(0, "thinking_delta", thinking="m"),
    block(0, "signature_delta", signature="EqQ"),
    closes(0),
    {"type": "ping"},
    opens(1, type="text", text=""),
    block(1, "text_delta", text="Hel"),
    block(1, "text_delta", text="lo"),
    {"type": "content_block_delta", "index": 1, "delta": {"type": "citations_delta", "citation": CITATION}},
    closes(1),
    opens(2, type="tool_use", id="t", name="f", input={}),
    block(2, "input_json_delta", partial_json='{"a":'),
    block(2, "input_json_delta", partial_json="1}"),
    closes(2),
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 9},
    },
    {"type": "message_stop"},
]
MESSAGES_STREAM = stream(*MESSAGES_EVENTS)
MESSAGES_TEXTS = {
    "0/reasoning/0": "Hm",
    "0/content/1": "Hello",
    "0/other/1.citation.cited_text#1": "C",
    "0/arguments/2": '{"a":1}',
}

RESPONSE = {
    "id": "r",
    "object": "response",
    "created_at": 1,
    "status": "in_progress",
    "model": "m",
    "output": [],
    "instructions": "be kind",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}
REASONING = {"id": "a", "type": "reasoning", "summary": []}
SPOKEN = {"id": "b", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
CALLED = {"id": "c", "type": "function_call", "call_id": "c", "name": "f", "arguments": "", "status": "in_progress"}
PART = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
LINK = {"type": "url_citation", "title": "T", "url": "https://x.test", "start_index": 0, "end_index": 1}
THOUGHT = {**REASONING, "summary": [{"type": "summary_text", "text": "Hm"}]}
SAID_PART = {**PART, "text": "Hello", "annotations": [LINK]}
SAID = {**SPOKEN, "status": "completed", "content": [SAID_PART]}
MADE = {**CALLED, "arguments": '{"a":1}', "status": "completed"}
IN_SUMMARY = {"item_id": "a", "output_index": 0, "summary_index": 0}
IN_PART = {"item_id": "b", "output_index": 1, "content_index": 0}
IN_CALL = {"item_id": "c", "output_index": 2}
RESPONSES_EVENTS = [
    {**event, "sequence_number": number}
    for number, event in enumerate(
        [
            {"type": "response.created", "response": RESPONSE},
            {"type": "response.in_progress", "response": RESPONSE},
            {"type": "response.output_item.added", "output_index": 0, "item": REASONING},
            {
                "type": "response.reasoning_summary_part.added",
                **IN_SUMMARY,
                "part": {"type": "summary_text", "text": ""},
            },
            {"type": "response.reasoning_summary_text.delta", **IN_SUMMARY, "delta": "H"},
            {"type": "response.reasoning_summary_text.delta", **IN_SUMMARY, "delta": "m"},
            {"type": "response.reasoning_summary_text.done", **IN_SUMMARY, "text": "Hm"},
            {
                "type": "response.reasoning_summary_part.done",
                **IN_SUMMARY,
                "part": {"type": "summary_text", "text": "Hm"},
            },
            {"type": "response.output_item.done", "output_index": 0, "item": THOUGHT},
            {"type": "response.output_item.added", "output_index": 1, "item": SPOKEN},
            {"type": "response.content_part.added", **IN_PART, "part": PART},
            {"type": "response.output_text.delta", **IN_PART, "delta": "Hel", "logprobs": []},
            {"type": "response.output_text.delta", **IN_PART, "delta": "lo", "logprobs": []},
            {
                "type": "response.output_text.annotation.added",
                **IN_PART,
                "annotation_index": 0,
                "annotation": LINK,
            },
            {"type": "response.output_text.done", **IN_PART, "text": "Hello", "logprobs": []},
            {"type": "response.content_part.done", **IN_PART, "part": SAID_PART},
            {"type": "response.output_item.done", "output_index": 1, "item": SAID},
            {"type": "response.output_item.added", "output_index": 2, "item": CALLED},
            {"type": "response.function_call_arguments.delta", **IN_CALL, "delta": '{"a":'},
            {"type": "response.function_call_arguments.delta", **IN_CALL, "delta": "1}"},
            {"type": "response.function_call_arguments.done", **IN_CALL, "name": "f", "arguments": '{"a":1}'},
            {"type": "response.output_item.done", "output_index": 2, "item": MADE},
            {
                "type": "response.completed",
                "response": {**RESPONSE, "status": "completed", "output": [THOUGHT, SAID, MADE]},
            },
        ]
    )
]
RESPONSES_STREAM = stream(*RESPONSES_EVENTS)
RESPONSES_TEXTS = {
    "0/summary/0/0": "Hm",
    "0/content/1/0": "Hello",
    "0/other/1.content[0].annotations[0].title": "T",
    "0/arguments/2": '{"a":1}',
}

COMPLETIONS_STREAM = stream(
    *({"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]} for choice in [
        {"index": 0, "text": "Hel", "logprobs": None, "finish_reason": None},
        {"index": 1, "text": "Eins", "logprobs": None, "finish_reason": None},
        {"index": 0, "text": "lo", "logprobs": None, "finish_reason": "stop"},
        {"index": 1, "text": "", "logprobs": None, "finish_reason": "stop"},
    ]),
    done=True,
)  # fmt: skip
COMPLETIONS_TEXTS = {"0/content": "Hello", "1/content": "Eins"}

STREAMS = [
    pytest.param(CHAT, CHAT_STREAM, CHAT_TEXTS, id="chat"),
    pytest.param(COMPLETIONS, COMPLETIONS_STREAM, COMPLETIONS_TEXTS, id="completions"),
    pytest.param(MESSAGES, MESSAGES_STREAM, MESSAGES_TEXTS, id="messages"),
    pytest.param(RESPONSES, RESPONSES_STREAM, RESPONSES_TEXTS, id="responses"),
]


def read(endpoint: Endpoint, chunks: Sequence[bytes]) -> tuple[base.StreamReader, list[Event]]:
    splitter, reader = Splitter(), base.StreamReader(endpoint)
    events = [event for chunk in chunks for event in splitter.feed(chunk)] + splitter.finish()
    for event in events:
        reader.read(event)
    return reader, events


def texts_of(events: Sequence[Event]) -> dict[str, str]:
    """The running texts; that which comes again is what came before."""
    found: dict[str, str] = {}
    for piece in (piece for event in events if event.chunk for piece in event.chunk.pieces):
        assert piece.readable
        if piece.again:
            assert found[piece.key] == piece.text
        else:
            found[piece.key] = found.get(piece.key, "") + piece.text
    return found


def http(body: bytes) -> httpx.Client:
    headers = {"content-type": "text/event-stream"}
    return httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, content=body, headers=headers)))


def openai_client(body: bytes) -> openai.OpenAI:
    return openai.OpenAI(api_key="k", base_url="http://gateway/v1", http_client=http(body), max_retries=0)


def chat_by_sdk(body: bytes) -> list[Any]:
    with openai_client(body) as client:
        return list(client.chat.completions.create(model="m", messages=[], stream=True))


def chat_answer_by_sdk(body: bytes) -> Any:
    with openai_client(body) as client, client.chat.completions.stream(model="m", messages=[]) as events:
        return events.get_final_completion()


def message_by_sdk(body: bytes) -> Any:
    answer = httpx2.Response(200, content=body, headers={"content-type": "text/event-stream"})
    client = httpx2.Client(transport=httpx2.MockTransport(lambda _: answer))
    sdk = anthropic.Anthropic(api_key="k", base_url="http://gateway", http_client=client, max_retries=0)
    with sdk, sdk.messages.stream(model="m", max_tokens=9, messages=[]) as events:
        return events.get_final_message()


def responses_by_sdk(body: bytes) -> list[Any]:
    with openai_client(body) as client, client.responses.stream(model="m", input="") as events:
        return list(events)


def by_sdk(endpoint: Endpoint, body: bytes) -> Any:
    """The stream as the endpoint's SDK accumulates it, which raises where an event does not fit those before it."""
    if endpoint is COMPLETIONS:
        with openai_client(body) as client:
            return list(client.completions.create(model="m", prompt="", stream=True))
    readers: dict[str, Any] = {"chat": chat_answer_by_sdk, "messages": message_by_sdk, "responses": responses_by_sdk}
    return readers[endpoint.name](body)


@pytest.mark.parametrize(("endpoint", "body", "texts"), STREAMS)
@given(data=st.data())
def test_running_texts(endpoint: Endpoint, body: bytes, texts: dict[str, str], data: st.DataObject) -> None:
    """Every chunking gives the same texts by key, and each is complete exactly once, when nothing more comes of it."""
    _, events = read(endpoint, data.draw(chunkings(body)))

    assert texts_of(events) == texts
    closed: list[str] = []
    for chunk in (event.chunk for event in events if event.chunk):
        assert not [piece for piece in chunk.pieces if piece.key in closed and not piece.again]
        closed += [key for key in chunk.closes if key not in closed]
    assert sorted(closed) == sorted(texts)


@pytest.mark.parametrize(("endpoint", "body", "texts"), STREAMS)
def test_same_texts_same_bytes(endpoint: Endpoint, body: bytes, texts: dict[str, str]) -> None:
    """Rewriting with the texts that were there gives the very bytes of the provider."""
    _, events = read(endpoint, [body])

    for event in events:
        said = [piece.text for piece in event.chunk.pieces] if event.chunk else []
        assert base.rewrite_event(endpoint, event, said) is event.raw


def rewritten(endpoint: Endpoint, body: bytes, change: Callable[[str], str]) -> tuple[bytes, dict[str, str]]:
    """The stream with every piece changed, what comes again too, and the running texts that it should have."""
    said: dict[str, str] = {}
    out = []
    for event in read(endpoint, [body])[1]:
        new = []
        for piece in event.chunk.pieces if event.chunk else ():
            more = "" if piece.again else change(piece.text)
            said[piece.key] = said.get(piece.key, "") + more
            new.append(said[piece.key] if piece.again else more)
        out.append(base.rewrite_event(endpoint, event, new))
    return b"".join(out), said


@pytest.mark.parametrize(("endpoint", "body", "texts"), STREAMS)
@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)))
def test_rewritten_streams(endpoint: Endpoint, body: bytes, texts: dict[str, str], words: list[str]) -> None:
    """New texts, whatever is in them, come out of the rewritten events as they were put in."""
    word = cycle([*words, '"\u2028\u2029\x00\x1b\r\n\n😀\\'])
    out, said = rewritten(endpoint, body, lambda _: next(word))

    assert texts_of(read(endpoint, [out])[1]) == said
    assert said.keys() == texts.keys()


def test_sdk_reads_a_rewritten_chat() -> None:
    """Choices, reasoning and tool calls arrive apart from each other, as they were rewritten."""
    out, _ = rewritten(CHAT, CHAT_STREAM, lambda text: text.swapcase() + "\u2028")
    chunks = [chunk.choices[0] for chunk in chat_by_sdk(out)]
    answer = chat_answer_by_sdk(CHAT_STREAM)

    assert "".join(c.delta.content or "" for c in chunks if c.index == 1) == "eINS\u2028 ZWEI\u2028"
    assert "".join(getattr(c.delta, "reasoning_content", "") for c in chunks) == "hM\u2028 SO\u2028"
    assert [call.function.arguments for call in answer.choices[0].message.tool_calls] == [
        CHAT_TEXTS["0/arguments/0"],
        CHAT_TEXTS["0/arguments/1"],
    ]


def test_sdk_reads_a_rewritten_message() -> None:
    """Thinking, text and the input of a tool, as they were rewritten."""
    out, _ = rewritten(MESSAGES, MESSAGES_STREAM, lambda text: text.replace("1", '"é\u2028"').swapcase())
    message = message_by_sdk(out)

    assert (message.content[0].thinking, message.content[1].text) == ("hM", "hELLO")
    assert message.content[2].input == {"A": "É\u2028"}


def test_sdk_reads_a_rewritten_response() -> None:
    """What comes again at the end of a part, an item and the response is what was streamed."""
    out, _ = rewritten(RESPONSES, RESPONSES_STREAM, str.swapcase)
    events = responses_by_sdk(out)
    final = events[-1].response

    assert final.output_text == "hELLO"
    assert final.output[0].summary[0].text == "hM"
    assert final.output[2].arguments == '{"A":1}'
    assert [event.text for event in events if event.type == "response.output_text.done"] == ["hELLO"]
    assert b"Hello" not in out


def test_repeated_texts_are_not_counted_twice() -> None:
    """The done events of the Responses API, and a chat chunk with the whole message, cost no tokens."""
    once = stream(*[event for event in RESPONSES_EVENTS if ".done" not in event["type"]][:-1])
    whole = {"index": 0, "delta": {}, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
    chat_body = stream(chat(content="Hello"), {"choices": [whole]})
    chat_reader, events = read(CHAT, [chat_body])

    assert read(RESPONSES, [RESPONSES_STREAM])[0].estimate_output() == read(RESPONSES, [once])[0].estimate_output()
    assert chat_reader.estimate_output() == read(CHAT, [stream(chat(content="Hello"))])[0].estimate_output()
    assert [(p.key, p.again) for event in events for p in event.chunk.pieces] == [
        ("0/content", False),
        ("0/content", True),
    ]


def test_what_comes_whole_alone_is_new() -> None:
    """A provider that sends only the events at the end is read from these."""
    done = [event for event in RESPONSES_EVENTS if event["type"].endswith((".done", "completed"))]

    assert texts_of(read(RESPONSES, [stream(*done)])[1]) == RESPONSES_TEXTS


def test_reasoning_under_two_names() -> None:
    """Providers that send reasoning in two fields say it once: the second is a copy, and costs no tokens."""
    both = stream(chat(reasoning="Hm hm hm", reasoning_content="Hm hm hm"))
    reader, events = read(CHAT, [both])

    assert [(piece.key, piece.copy) for piece in events[0].chunk.pieces] == [
        ("0/reasoning/reasoning", True),
        ("0/reasoning/reasoning_content", False),
    ]
    assert reader.estimate_output() == read(CHAT, [stream(chat(reasoning="Hm hm hm"))])[0].estimate_output()


@pytest.mark.parametrize(
    ("delta", "key"),
    [
        ({"function_call": {"name": "f", "arguments": "x"}}, "0/arguments/function_call"),
        ({"tool_calls": [{"index": 3, "custom": {"input": "x"}}]}, "0/arguments/3/custom"),
        ({"content": [{"type": "text", "text": "x"}]}, "0/content"),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "x"}]}]}, "0/reasoning/thinking"),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "x"}]}, "0/reasoning/reasoning_details"),
        ({"audio": {"transcript": "x"}}, "0/transcript"),
        ({"annotations": [{"type": "url_citation", "title": "x", "url": "u"}]}, "0/other.annotations[0].title#1"),
    ],
)
def test_rare_deltas(delta: dict[str, Any], key: str) -> None:
    """Legacy function calls, custom tools, parts, spoken words, citations: each has its key."""
    _, events = read(CHAT, [stream(chat(**delta))])

    assert [(piece.key, piece.text) for piece in events[0].chunk.pieces] == [(key, "x")]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT, b"data: {\n\n"),
        (CHAT, b"data: []\n\n"),
        (CHAT, stream({"choices": {"0": {"delta": {"content": "x"}}}})),
        (CHAT, stream({"choices": ["x"]})),
        (CHAT, stream(chat(content=[{"type": "hologram", "waves": "x"}]))),
        (CHAT, stream(chat(audio={"data": "UklG"}))),
        (CHAT, stream(chat(images=[{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}]))),
        (MESSAGES, stream({"type": "content_block_shift", "words": "x"})),
        (MESSAGES, stream(block(0, "smell_delta", smell="x"))),
        (RESPONSES, stream({"type": "response.audio.delta", "delta": "UklG"})),
        (RESPONSES, stream({"type": "response.image_generation_call.partial_image", "partial_image_b64": "iVBO"})),
        (MESSAGES, b"data: x\n\n"),
        (RESPONSES, b"data: x\n\n"),
    ],
)
def test_what_cannot_be_read(endpoint: Endpoint, body: bytes) -> None:
    """Broken JSON, shapes that we do not know, sound and pictures are pieces that are not readable."""
    _, events = read(endpoint, [body])

    assert [(piece.key, piece.readable) for event in events for piece in event.chunk.pieces] == [("", False)]
    assert base.rewrite_event(endpoint, events[0], ["y"]) == body


def test_oversize_events_cannot_be_read() -> None:
    """A piece of an event that is too big to be read says so."""
    event = Event(b"data: x", oversize=True)
    base.StreamReader(CHAT).read(event)

    assert [piece.readable for piece in event.chunk.pieces] == [False]


@pytest.mark.parametrize("endpoint", list(BY_NAME.values()), ids=list(BY_NAME))
@given(body=JSON_VALUES, kind=st.sampled_from([e["type"] for e in [*RESPONSES_EVENTS, *MESSAGES_EVENTS]] + ["", "x"]))
def test_any_event_is_survived(endpoint: Endpoint, body: Any, kind: str) -> None:
    """Events of any shape raise nothing, whatever is done with them, and stay the bytes that they were."""
    names = ("delta", "content_block", "message", "item", "part", "response", "index", "output_index", "annotation")
    shaped = {"type": kind, **dict.fromkeys(names, body), "choices": [{"index": body, "delta": body}]}
    for value in (body, shaped, {**shaped, "response": {"output": body}, "choices": body}):
        reader, events = read(endpoint, [encode(msgspec.json.encode(value))])
        pieces = events[0].chunk.pieces if events[0].chunk else ()
        assert base.rewrite_event(endpoint, events[0], [piece.text for piece in pieces]) is events[0].raw
        reader.sent(events[0])
        reader.blocked(ENDING)
        for piece in pieces:
            if piece.readable:
                base.text_event(endpoint, events[0], piece.key, "x")


def test_other_lines_of_an_event_stay() -> None:
    """Only the data lines of a rewritten event are new: its id, its type and comments are the provider's."""
    data = b'data: {"choices":[{"delta":\r\ndata: {"content":"a"}}]}\r\n\r\n'
    raw = b"\xef\xbb\xbf: hi\r\nid: 7\r\nevent: message\r\n" + data
    _, events = read(CHAT, [raw])

    assert base.rewrite_event(CHAT, events[0], ["b"]) == (
        b': hi\nid: 7\nevent: message\ndata: {"choices":[{"delta":{"content":"b"}}]}\n\n'
    )


def test_log_probabilities_go_with_the_text() -> None:
    """Tokens that spell the text once more do not pass beside a changed one."""
    event = chat(content="Hi")
    event["choices"][0] |= {"logprobs": {"content": [{"token": "Hi"}]}, "token_ids": [1]}
    _, events = read(CHAT, [stream(event)])
    choice = msgspec.json.decode(base.rewrite_event(CHAT, events[0], [""])[6:])["choices"][0]

    assert (choice["logprobs"], choice["token_ids"], choice["delta"]["content"]) == (None, [], "")


@pytest.mark.parametrize(("endpoint", "body", "texts"), STREAMS)
def test_late_texts(endpoint: Endpoint, body: bytes, texts: dict[str, str]) -> None:
    """Text held to the end of its key goes in an event of its own, just before the one that closes the key."""
    out = b""
    _, events = read(endpoint, [body])
    held: dict[str, str] = {}
    for event in events:
        if event.chunk is None:
            out += event.raw
            continue
        for key in event.chunk.closes:
            if "other" not in key and key in held:
                out += base.text_event(endpoint, event, key, held.pop(key))
        new = []
        for piece in event.chunk.pieces:
            if piece.again or "other" in piece.key:
                new.append(piece.text)
            else:
                held[piece.key] = held.get(piece.key, "") + piece.text
                new.append("")
        out += base.rewrite_event(endpoint, event, new)
    for key, text in held.items():
        out += base.text_event(endpoint, None, key, text)

    late = texts_of(read(endpoint, [out])[1])
    assert late == texts if endpoint is not COMPLETIONS else late["0/content"]
    assert by_sdk(endpoint, out)


@pytest.mark.parametrize("delta", [
    {"function_call": {"arguments": "x"}},
    {"tool_calls": [{"index": 3, "custom": {"input": "x"}}]},
    {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "x"}]}]},
    {"reasoning_details": [{"type": "reasoning.text", "text": "x"}]},
    {"audio": {"transcript": "x"}},
    {"refusal": "x"},
])  # fmt: skip
def test_late_texts_stand_where_the_others_did(delta: dict[str, Any]) -> None:
    """The event of a late text is read under the key that it was made for."""
    _, events = read(CHAT, [stream(chat(2, **delta))])
    key = events[0].chunk.pieces[0].key
    late = base.text_event(CHAT, events[0], key, "y")
    _, again = read(CHAT, [late])

    assert [(piece.key, piece.text) for piece in again[0].chunk.pieces] == [(key, "y")]
    assert msgspec.json.decode(late[6:])["id"] == "c"


# --- ends that we make ----------------------------------------------------------------------------------------


def blocked(endpoint: Endpoint, *, stream: bool, ending: base.Ending = ENDING) -> bytes:
    answer = base.blocked_answer(endpoint, ending, stream=stream)
    assert answer is not None
    body, kind = answer
    assert kind == ("text/event-stream" if stream else "application/json")
    return body


def test_blocked_answers() -> None:
    """Whole answers that say the sentence, as each SDK's model reads them."""
    chat_answer = ChatCompletion.model_validate_json(blocked(CHAT, stream=False))
    completion = Completion.model_validate_json(blocked(COMPLETIONS, stream=False))
    message = Message.model_validate_json(blocked(MESSAGES, stream=False))
    response = Response.model_validate_json(blocked(RESPONSES, stream=False))

    assert {chat_answer.model, completion.model, message.model, response.model} == {"from-security-guard"}
    assert chat_answer.choices[0].message.content == ENDING.sentence
    assert chat_answer.choices[0].finish_reason == completion.choices[0].finish_reason == "stop"
    assert completion.choices[0].text == message.content[0].text == response.output_text == ENDING.sentence  # type: ignore[union-attr]
    assert (message.stop_reason, response.status) == ("end_turn", "completed")
    assert chat_answer.usage is not None
    assert chat_answer.usage.total_tokens == message.usage.output_tokens == 0
    assert (chat_answer.created, chat_answer.id) == (ENDING.created, "chatcmpl-c1")


def test_embeddings_have_no_sentence() -> None:
    """There is no answer to embeddings that would say one."""
    assert base.blocked_answer(EMBEDDINGS, ENDING, stream=False) is None


def test_blocked_chat_stream() -> None:
    """A stream with the role, the sentence, the stop, and the usage where it was asked for."""
    chunks = chat_by_sdk(blocked(CHAT, stream=True, ending=ASKED))

    assert [chunk.choices[0].delta.role for chunk in chunks[:-1]] == ["assistant", None, None]
    assert chunks[1].choices[0].delta.content == ENDING.sentence
    assert chunks[2].choices[0].finish_reason == "stop"
    assert (chunks[3].choices, chunks[3].usage.total_tokens) == ([], 0)
    assert {chunk.model for chunk in chunks} == {"from-security-guard"}
    assert len(chat_by_sdk(blocked(CHAT, stream=True))) == 3
    assert blocked(CHAT, stream=True).endswith(b"data: [DONE]\n\n")


def test_blocked_streams_of_other_endpoints() -> None:
    """Completions, messages and responses, as their SDKs accumulate them."""
    completion = by_sdk(COMPLETIONS, blocked(COMPLETIONS, stream=True))
    message = message_by_sdk(blocked(MESSAGES, stream=True))
    events = responses_by_sdk(blocked(RESPONSES, stream=True))

    assert "".join(chunk.choices[0].text for chunk in completion) == ENDING.sentence
    assert completion[-1].choices[0].finish_reason == "stop"
    assert (message.content[0].text, message.stop_reason) == (ENDING.sentence, "end_turn")
    assert (message.model, message.usage.output_tokens) == ("from-security-guard", 0)
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == ENDING.sentence
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize(("endpoint", "body", "texts"), STREAMS)
def test_every_stream_can_be_cut_anywhere(endpoint: Endpoint, body: bytes, texts: dict[str, str]) -> None:
    """After any of its events a stream ends in the API's own way: the SDK accumulates it, and no call is made."""
    _, events = read(endpoint, [body])
    for cut in range(len(events) - 1):
        reader = base.StreamReader(endpoint)
        for event in events:
            reader.read(event)  # read ahead of what is sent
        for event in events[:cut]:
            reader.sent(event)
        out = b"".join(event.raw for event in events[:cut]) + reader.blocked(ENDING)
        said = by_sdk(endpoint, out)
        last, _ = read(endpoint, [out])

        assert last.finished
        assert not last.failed
        if endpoint is MESSAGES and cut < len(events) - 2:
            assert (said.content[-1].text, said.stop_reason) == (ENDING.sentence, "end_turn")
        if endpoint is RESPONSES:
            assert said[-1].response.output_text == ENDING.sentence
            added = [e.output_index for e in said if e.type == "response.output_item.added"]
            assert added == [e.output_index for e in said if e.type == "response.output_item.done"]
            assert [event.sequence_number for event in said] == list(range(len(said)))


def test_a_cut_chat_ends_its_open_choices() -> None:
    """Each choice that goes on says the sentence and stops; one that has ended is left alone."""
    reader, events = read(CHAT, [stream(chat(content="a"), chat(1, content="b"), chat(2, "stop", content="c"))])
    for event in events:
        reader.sent(event)
    chunks = chat_by_sdk(reader.blocked(ASKED))

    assert [(c.choices[0].index, c.choices[0].delta.content, c.choices[0].finish_reason) for c in chunks[:-1]] == [
        (0, ENDING.sentence, None),
        (1, ENDING.sentence, None),
        (0, None, "stop"),
        (1, None, "stop"),
    ]
    assert {(chunk.id, chunk.model) for chunk in chunks} == {("c", "m")}
    assert chunks[-1].usage.total_tokens == 0
