import json
from typing import Any

import pytest
from judges import StubJudges, stub_judges

from extproc.core.secret import Secret
from extproc.moderation.judges.guard import Format, GuardModel
from extproc.moderation.types import Item, JudgeFailed

ANSWER = Item("mix this for a bomb", "response", "assistant", context=[("system", "be kind"), ("user", "how?")])


async def ask(stub: StubJudges, form: Format, item: Item) -> dict[str, float]:
    judge = GuardModel("guard", form, f"{stub.url}/v1", Secret("sk-guard-1234567890"))
    try:
        return dict((await judge.judge(item)).scores)
    finally:
        await judge.close()


def says(content: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


@pytest.mark.parametrize(
    ("form", "category"),
    [("llamaguard", "violent_crimes"), ("qwen3guard", "violent"), ("shieldgemma", "dangerous_content")],
)
async def test_prompts_and_answers(form: Format, category: str) -> None:
    """Each format finds what is wrong with a prompt and with an answer, and nothing in what is fine."""
    async with stub_judges(logprobs=False) as stub:
        assert await ask(stub, form, Item("how to build a bomb", "request")) == {category: 0.9}
        assert await ask(stub, form, ANSWER) == {category: 0.9}
        assert await ask(stub, form, Item("how to bake bread", "request")) == {}

    assert {request.path for request in stub.received} == {"/v1/chat/completions"}
    assert {request.headers["authorization"] for request in stub.received} == {"Bearer sk-guard-1234567890"}
    assert all(request.json["temperature"] == 0 for request in stub.received)


@pytest.mark.parametrize("form", ["llamaguard", "qwen3guard", "shieldgemma"])
async def test_an_answer_is_judged_with_its_prompt(form: Format) -> None:
    """A model's text is sent as the answer to the user's last text; all else as a user's."""
    alone = Item("a bomb", "response", "assistant")
    tool = Item("a bomb", "request", "tool", context=[("user", "look it up")])
    async with stub_judges() as stub:
        await ask(stub, form, ANSWER)
        pair = stub.received[-1].json["messages"]
        await ask(stub, form, alone)
        single = stub.received[-1].json["messages"]
        await ask(stub, form, tool)

    assert pair == [{"role": "user", "content": "how?"}, {"role": "assistant", "content": ANSWER.text}]
    assert single == [{"role": "user", "content": "a bomb"}]
    assert stub.received[-1].json["messages"] == single


@pytest.mark.parametrize(
    ("form", "content", "scores"),
    [
        ("llamaguard", "safe", {}),
        ("llamaguard", "\n\nunsafe\nS1,S10", {"violent_crimes": 0.9, "hate": 0.9}),
        ("llamaguard", "unsafe\nS14, S99", {"code_interpreter_abuse": 0.9, "s99": 0.9}),
        ("llamaguard", "unsafe", {"unsafe": 0.9}),
        ("qwen3guard", "Safety: Safe\nCategories: None\nRefusal: Yes", {}),
        ("qwen3guard", "Safety: Controversial\nCategories: Copyright Violation", {"copyright_violation": 0.5}),
        ("qwen3guard", "Safety: Unsafe\nCategories: PII, Suicide & Self-Harm", {"pii": 0.9, "suicide_self_harm": 0.9}),
        ("qwen3guard", "<think>\n\n</think>\n\nSafety: Unsafe\nCategories: None", {"unsafe": 0.9}),
        ("qwen3guard", "Safety: Unsafe", {"unsafe": 0.9}),
        ("shieldgemma", "**No**, because", {}),
    ],
)
async def test_readings(form: Format, content: str, scores: dict[str, float]) -> None:
    """Answers are read as the models' cards say."""
    async with stub_judges(body=says(content)) as stub:
        assert await ask(stub, form, Item("text", "request")) == scores


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("llamaguard", ""),
        ("llamaguard", "I cannot help with that"),
        ("llamaguard", "safe\nS1"),
        ("llamaguard", "unsafe\nbecause of violence"),
        ("llamaguard", None),
        ("qwen3guard", "Safe"),
        ("qwen3guard", "Safety: Fine"),
        ("qwen3guard", "Safety: Safe\nSafety: Unsafe\nCategories: Violent"),
        ("qwen3guard", "He said Safety: Safe"),
        ("shieldgemma", "Maybe"),
        ("shieldgemma", "Nothing wrong"),
    ],
)
async def test_garbage(form: Format, content: str | None) -> None:
    """What is no verdict in the format's words, or more than one, is no opinion."""
    async with stub_judges(body=says(content)) as stub:
        with pytest.raises(JudgeFailed) as failed:
            await ask(stub, form, Item("text", "request"))

    assert failed.value.reason == "garbage"


async def test_no_choices() -> None:
    """A completion without choices is garbage."""
    async with stub_judges(body=b'{"choices": []}') as stub:
        with pytest.raises(JudgeFailed, match="no choices"):
            await ask(stub, "llamaguard", Item("text", "request"))


async def test_shieldgemma_by_probability() -> None:
    """Where the server tells probabilities, the score is how probable Yes is against No, policy by policy."""
    async with stub_judges() as stub:
        scores = await ask(stub, "shieldgemma", Item("a bomb", "request"))

    assert scores["dangerous_content"] == pytest.approx(0.950, abs=0.001)
    assert scores["hate_speech"] == pytest.approx(0.050, abs=0.001)
    assert len(stub.received) == len(scores) == 4
    guidelines = [request.json["chat_template_kwargs"]["guideline"] for request in stub.received]
    assert all("The prompt shall not contain or seek generation of content" in guideline for guideline in guidelines)


async def test_shieldgemma_of_answers() -> None:
    """Of answers, the guidelines speak of the chatbot."""
    async with stub_judges() as stub:
        await ask(stub, "shieldgemma", ANSWER)

    guidelines = [request.json["chat_template_kwargs"]["guideline"] for request in stub.received]
    assert all("The chatbot shall not generate content" in guideline for guideline in guidelines)
