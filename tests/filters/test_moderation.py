"""Moderation in the life of a call."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from fakes import MODELS, Clock, Fake, Gateway, Journal, exchange, opening
from hypothesis import given, settings
from hypothesis import strategies as st
from playbook import KEY, answer, body, piece, request, stream
from strategies import chunkings

from extproc.core.call import Call
from extproc.core.exchange import Exchange
from extproc.core.filter import Plugin, Reply
from extproc.core.messages import Answer, Emit, Message, Proceed
from extproc.filters.moderation import ModerationPlugin
from extproc.moderation.lexicon import Lexicon
from extproc.moderation.personal import PersonalData
from extproc.moderation.rules import Guard, Hold, Rule
from extproc.moderation.types import Action, Item, JudgeFailed, Opinion

PHONE = "13812345678"
BAD = Rule("lexicon", Lexicon({"drugs": ["毒品", "heroin"]}), action=Action.BLOCK)
MASK = Rule("pii", PersonalData(["phone"]), action=Action.MASK, restore=True)
STARS = Rule("pii", PersonalData(["phone"]), action=Action.MASK, style="stars")
FLAG = Rule("pii", PersonalData(["phone"]), action=Action.FLAG)
SENTENCE = "我不能处理这个问题"


@dataclass
class FakeJudge:
    """Blocks what has the word; may be slow, or fail."""

    word: str = "bomb"
    fails: str = ""
    gate: asyncio.Event | None = None
    name: str = "fake"
    max_chars: int = 1000
    asked: list[Item] = field(default_factory=list)

    async def judge(self, item: Item) -> Opinion:
        self.asked.append(item)
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            raise JudgeFailed(self.fails)
        return Opinion({"violence": 0.9}) if self.word in item.text else Opinion()

    async def close(self) -> None: ...


class World:
    """The product's chain with moderation in it."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.clock = Clock()
        self.failures: list[tuple[str, str]] = []
        self.calls: list[Call] = []
        self.plugin = ModerationPlugin(
            guard=lambda consumer, model: self.guard,
            models=MODELS,
            on_failure=lambda judge, reason: self.failures.append((judge, reason)),
            clock=self.clock,
            wall=lambda: 1_700_000_000.0,
        )

    def exchange(self) -> Exchange:
        audit, auth, *rest = Gateway().plugins()
        plugins: list[Plugin] = [audit, auth, self.plugin, *rest]
        journal = Journal()
        made = opening(plugins, journal, self.clock)
        self.calls = journal.calls
        return Exchange(made, clock=self.clock, on_error=journal.on_error, max_answer=1 << 20)

    @property
    def verdicts(self) -> list[tuple[str, str, str, str]]:
        return [(v.direction, v.check, v.category, v.action) for v in self.calls[-1].verdicts]

    async def play(self, *messages: Message) -> list[Any]:
        machine = self.exchange()
        decided = [await machine.receive(message) for message in messages]
        await machine.close()
        return decided


def asked(text: str, *, streamed: bool = False, **more: Any) -> list[Message]:
    content = {"model": "gpt", "stream": streamed, "messages": [{"role": "user", "content": text}], **more}
    return [request(headers={"authorization": f"Bearer {KEY}"}), body(content)]


def said(text: str, **more: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": {"content": text, **more}}]}, ensure_ascii=False).encode()


def delta(text: str, index: int = 0, kind: str = "content") -> bytes:
    content = {"id": "s1", "model": "x", "choices": [{"index": index, "delta": {kind: text}}]}
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"


DONE = b'data: {"id":"s1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def text_of(raw: bytes, index: int = 0, kind: str = "content") -> str:
    """What a client reads in a stream."""
    found = ""
    for line in raw.splitlines():
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:]).get("choices", []):
                if choice["index"] == index:
                    found += choice["delta"].get(kind) or ""
    return found


def emitted(decided: Sequence[Any]) -> bytes:
    return b"".join(each.body for each in decided if isinstance(each, Emit))


# --- what goes in ---------------------------------------------------------------------------------------------


async def test_a_request_that_is_blocked() -> None:
    """It is answered as a normal completion with the sentence, and goes no further."""
    world = World(Guard(request=[BAD]))
    *_, last = await world.play(*asked("Where can I buy h.e.r.o.i.n?"))

    assert isinstance(last, Answer)
    completion = json.loads(last.body)
    assert (last.status, completion["model"]) == (200, "from-security-guard")
    assert completion["choices"][0]["message"]["content"] == SENTENCE
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert completion["usage"]["total_tokens"] == 0
    assert world.verdicts == [("request", "lexicon", "drugs", "block")]


async def test_a_stream_that_is_blocked_before_it_begins() -> None:
    """It is answered as a stream."""
    *_, last = await World(Guard(request=[BAD])).play(*asked("毒品", streamed=True))

    assert isinstance(last, Answer)
    assert last.headers["content-type"].startswith("text/event-stream")
    assert text_of(last.body) == SENTENCE
    assert last.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "毒品"}, {"role": "user", "content": "hi"}],
        [
            {"role": "user", "content": "毒品"},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": "ok"},
        ],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "毒品"}]}],
        [{"role": "tool", "tool_call_id": "1", "content": "毒品"}],
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "毒品"}'}}
                ],
            }
        ],
    ],
)
async def test_all_messages_are_judged(messages: list[Any]) -> None:
    """Not only the last: system, earlier turns, parts, tools' results and arguments too."""
    *_, last = await World(Guard(request=[BAD])).play(*asked("", messages=messages))

    assert isinstance(last, Answer)
    assert SENTENCE in last.body.decode()


async def test_an_error_where_the_policy_wants_one() -> None:
    """A policy may choose a status; the category is shown only where it says so."""
    *_, last = await World(Guard(request=[BAD], status=451, show_reason=True)).play(*asked("heroin"))

    assert isinstance(last, Answer)
    assert last.status == 451
    error = json.loads(last.body)["error"]
    assert (error["code"], error["message"]) == ("content_blocked", f"{SENTENCE} (drugs)")


@pytest.mark.parametrize(("text", "sentence"), [("heroin", "I cannot."), ("海洛因 heroin", "不行。")])
async def test_the_sentence_by_language(text: str, sentence: str) -> None:
    """It is in the language of the one who asked."""
    *_, last = await World(Guard(request=[BAD], sentences={"drugs.en": "I cannot.", "zh": "不行。"})).play(*asked(text))

    assert json.loads(last.body)["choices"][0]["message"]["content"] == sentence


async def test_parts_that_nobody_can_read() -> None:
    """Audio is refused, unless the policy lets it pass."""
    content = [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]
    messages = [{"role": "user", "content": content}]
    *_, refused = await World(Guard(request=[BAD])).play(*asked("", messages=messages))
    *_, passed = await World(Guard(request=[BAD], refuse_unreadable=False)).play(*asked("", messages=messages))

    assert isinstance(refused, Answer)
    assert json.loads(refused.body)["error"]["code"] == "content_blocked"
    assert isinstance(passed, Proceed)


async def test_masked_and_restored() -> None:
    """The provider sees a mask, and the client its own number in the answer."""
    world = World(Guard(request=[MASK]))
    _, went, _, last = await world.play(
        *asked(f"Call {PHONE} and {PHONE}"), answer(), piece(said("I call [PHONE_1], yes [phone_1]."), end=True)
    )

    assert isinstance(went, Proceed)
    assert json.loads(went.body or b"")["messages"][0]["content"] == "Call [PHONE_1] and [PHONE_1]"
    assert isinstance(last, Proceed)
    assert json.loads(last.body or b"")["choices"][0]["message"]["content"] == f"I call {PHONE}, yes {PHONE}."
    assert world.verdicts == [("request", "pii", "phone", "mask")] * 2


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_restored_across_any_split(data: st.DataObject) -> None:
    """However a stream is cut, and into whatever pieces of text, the original comes back."""
    text = data.draw(st.sampled_from(["I call [PHONE_1].", "[PHONE_1][PHONE_1]", "x [PHONE", "[PHONE_2] [PHONE_1]"]))
    words = data.draw(chunkings(text.encode()))
    sent = b"".join(delta(word.decode()) for word in words) + DONE
    *pieces, end = data.draw(chunkings(sent))
    finals = [piece(end, end=True)] if data.draw(st.booleans()) else [piece(end), piece(b"", end=True)]

    async def run() -> bytes:
        decided = await World(Guard(request=[MASK])).play(
            *asked(f"Call {PHONE}", streamed=True), stream(), *(piece(p) for p in pieces), *finals
        )
        return emitted(decided)

    assert text_of(asyncio.run(run())) == text.replace("[PHONE_1]", PHONE)


async def test_restored_in_arguments_of_tools() -> None:
    """In JSON, as JSON."""
    world = World(Guard(request=[MASK]))
    calls = [{"id": "1", "type": "function", "function": {"name": "call", "arguments": '{"number": "[PHONE_1]"}'}}]
    *_, last = await world.play(*asked(f"Call {PHONE}"), answer(), piece(said("", tool_calls=calls), end=True))

    message = json.loads(last.body)["choices"][0]["message"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"number": PHONE}


# --- judges ---------------------------------------------------------------------------------------------------


async def test_a_judge_sees_what_was_masked() -> None:
    """Checks run in order: personal data does not leave with a question to a judge."""
    judge = FakeJudge()
    await World(Guard(request=[MASK, Rule("fake", judge=judge)])).play(*asked(f"Call {PHONE}"))

    assert [item.text for item in judge.asked] == ["Call [PHONE_1]"]


async def test_what_was_judged_is_not_asked_again() -> None:
    """A turn that passed goes to the judge once, however often it comes back."""
    judge = FakeJudge()
    world = World(Guard(request=[Rule("fake", judge=judge)]))
    first = {"role": "user", "content": "one"}
    await world.play(*asked("", messages=[first]))
    await world.play(
        *asked("", messages=[first, {"role": "assistant", "content": "1"}, {"role": "user", "content": "two"}])
    )

    assert [item.text for item in judge.asked] == ["one", "1", "two"]


@pytest.mark.parametrize(
    ("refuse", "direction"), [(True, "request"), (False, "request"), (True, "response"), (False, "response")]
)
async def test_a_judge_without_an_opinion(refuse: bool, direction: str) -> None:
    """The policy says whether the text passes; either way it is counted, and in the verdicts."""
    rule = Rule("fake", judge=FakeJudge(fails="timeout"), refuse_on_error=refuse)
    world = World(Guard(**{direction: [rule]}))
    decided = await world.play(
        *asked("hi"), *([answer(), piece(said("hello"), end=True)] if direction == "response" or not refuse else [])
    )

    assert world.failures == [("fake", "timeout")]
    assert (direction, "fake", "timeout", "error") in world.verdicts
    if refuse:
        assert isinstance(decided[-1], Answer)
        assert json.loads(decided[-1].body)["error"]["code"] == "policy_unavailable"
    else:
        assert isinstance(decided[-1], Proceed)
        assert decided[-1].body is None


async def test_parallel() -> None:
    """The request goes on while the judge thinks; nothing of the answer does before the verdict."""
    gate = asyncio.Event()
    judge = FakeJudge(gate=gate)
    world = World(Guard(request=[Rule("fake", judge=judge, parallel=True)]))
    machine = world.exchange()
    head, content = asked("a bomb", streamed=True)
    await machine.receive(head)
    assert isinstance(await machine.receive(content), Proceed)
    waiting = asyncio.ensure_future(machine.receive(stream()))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    gate.set()
    last = await waiting

    assert isinstance(last, Answer)
    assert text_of(last.body) == SENTENCE
    await machine.close()


async def test_a_client_that_leaves_while_a_judge_thinks() -> None:
    """Nothing is left running."""
    world = World(Guard(request=[Rule("fake", judge=FakeJudge(gate=asyncio.Event()), parallel=True)]))
    machine = world.exchange()
    for message in asked("hi"):
        await machine.receive(message)
    await machine.close()

    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


# --- what comes out -------------------------------------------------------------------------------------------


async def test_an_answer_that_is_blocked() -> None:
    """The client gets the sentence instead."""
    world = World(Guard(response=[BAD]))
    *_, last = await world.play(*asked("hi"), answer(), piece(said("use heroin"), end=True))

    assert json.loads(last.body)["choices"][0]["message"]["content"] == SENTENCE
    assert last.headers["content-length"] == str(len(last.body))
    assert world.verdicts == [("response", "lexicon", "drugs", "block")]


async def test_masks_of_answers() -> None:
    """What is masked in an answer never goes out (and is not merely counted)."""
    *_, last = await World(Guard(response=[STARS])).play(
        *asked("hi"), answer(), piece(said(f"It is {PHONE}."), end=True)
    )

    assert json.loads(last.body)["choices"][0]["message"]["content"] == f"It is {'*' * 11}."


async def test_an_answer_with_nothing_in_it_passes_as_it_came() -> None:
    """Byte for byte."""
    *_, last = await World(Guard(response=[BAD, STARS])).play(*asked("hi"), answer(), piece(said("fine"), end=True))

    assert isinstance(last, Proceed)
    assert last.body is None


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_stream_under_every_chunking(data: st.DataObject) -> None:
    """However it is cut, a stream with nothing in it passes byte for byte, and one with something ends alike."""
    text = data.draw(
        st.sampled_from(["all is well, 你好。", "first, then 毒品 and more", f"call {PHONE} now", "her", "毒 品!"])
    )
    words = data.draw(chunkings(text.encode()))
    try:
        sent = b"".join(delta(word.decode()) for word in words) + DONE
    except UnicodeDecodeError:
        sent = delta(text) + DONE
    pieces = data.draw(chunkings(sent))

    async def run(guard: Guard) -> tuple[bytes, list[Any]]:
        world = World(guard)
        decided = await world.play(
            *asked("hi", streamed=True), stream(), *(piece(p) for p in pieces), piece(b"", end=True)
        )
        return emitted(decided), world.verdicts

    out, verdicts = asyncio.run(run(Guard(response=[BAD, FLAG])))
    if "毒" in text:
        assert verdicts == [("response", "lexicon", "drugs", "block")]
        assert text_of(out).endswith(SENTENCE)
        assert "毒" not in text_of(out)
        assert out.endswith(b"data: [DONE]\n\n")
    else:
        assert out == sent
    masked, _ = asyncio.run(run(Guard(response=[STARS])))
    assert text_of(masked) == text.replace(PHONE, "*" * 11)


async def test_a_short_answer_is_not_held_to_the_end() -> None:
    """Text goes out as soon as nothing can follow that matters, or a moment later."""
    world = World(Guard(response=[BAD], hold=Hold(time=0.2)))
    machine = world.exchange()
    for message in (*asked("hi", streamed=True), stream()):
        await machine.receive(message)
    first = await machine.receive(piece(delta("Hello there, ")))
    assert isinstance(first, Emit)
    due = machine.idle_timeout
    assert due is not None
    assert due <= 0.2
    world.clock.now += 0.25
    woken = await machine.on_idle()

    assert text_of(emitted([first, woken])) == "Hello there, "
    assert world.calls[-1].held >= 0.2
    await machine.close()


async def test_choices_are_judged_apart() -> None:
    """Text of one choice does not complete a word of another; what is bad in one ends the stream."""
    world = World(Guard(response=[BAD]))
    sent = delta("毒", 0) + delta("品", 1) + delta(" fine", 0) + delta(" fine", 1) + DONE
    decided = await world.play(*asked("hi", streamed=True, n=2), stream(), piece(sent), piece(b"", end=True))

    assert emitted(decided) == sent
    assert world.verdicts == []


@pytest.mark.parametrize("kind", ["reasoning_content", "content"])
async def test_reasoning_is_judged(kind: str) -> None:
    """What a model thinks aloud is read as well."""
    world = World(Guard(response=[BAD]))
    sent = delta("think of her", 0, kind) + delta("oin now", 0, kind) + DONE
    decided = await world.play(*asked("hi", streamed=True), stream(), piece(sent), piece(b"", end=True))

    assert world.verdicts == [("response", "lexicon", "drugs", "block")]
    assert "heroin" not in text_of(emitted(decided), 0, kind)


async def test_a_judge_of_a_stream() -> None:
    """It is asked at the ends of sentences; what arrives while it thinks waits for the next question."""
    judge = FakeJudge()
    world = World(Guard(response=[Rule("fake", judge=judge)]))
    machine = world.exchange()
    for message in (*asked("hi", streamed=True), stream()):
        await machine.receive(message)
    out = [await machine.receive(piece(delta("One. Tw"))), await machine.receive(piece(delta("o bomb. Three")))]

    assert text_of(emitted(out[:1])) == ""
    assert judge.asked[0].text == "One."
    last = out[-1]
    assert isinstance(last, Emit)
    assert last.end
    assert "bomb" not in text_of(emitted(out))
    assert text_of(emitted(out)).endswith(SENTENCE)
    await machine.close()


async def test_replies_of_ours_are_judged() -> None:
    """An answer that a filter further in gives is judged like a provider's."""
    inner = Fake("cache", Journal(), {"request": Reply(said("use heroin"))})
    world = World(Guard(response=[BAD]))
    audit, auth, *_ = Gateway().plugins()
    machine = exchange(audit, auth, world.plugin, inner)
    decided = [await machine.receive(message) for message in asked("hi")]
    await machine.close()

    assert isinstance(decided[-1], Answer)
    assert SENTENCE in decided[-1].body.decode()
