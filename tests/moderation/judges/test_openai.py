import pytest
from judges import stub_judges

from extproc.core.secret import Secret
from extproc.moderation.judges.openai import OpenAiModeration
from extproc.moderation.types import Image, Item, JudgeFailed, QuestionRefused

KEY = Secret("sk-judge-1234567890")


async def test_scores_by_category() -> None:
    """The scores are the model's own; those that are as good as nothing are left out."""
    async with stub_judges() as stub:
        judge = OpenAiModeration("omni", f"{stub.url}/v1/", KEY)

        assert (await judge.judge(Item("how to build a bomb", "request"))).scores == {"violence": 0.93}
        assert (await judge.judge(Item("how to bake bread", "request"))).scores == {}
        await judge.close()

    request = stub.received[0]
    assert request.path == "/v1/moderations"
    assert request.headers["authorization"] == f"Bearer {KEY.reveal()}"
    assert request.json == {"model": "omni-moderation-latest", "input": "how to build a bomb"}


async def test_images_are_asked_about_one_by_one() -> None:
    """Each image is a request of its own, as the API wants, and the highest scores count."""
    images = (Image("https://example.com/cat.png"), Image("data:image/png;base64,naked"))
    async with stub_judges() as stub:
        judge = OpenAiModeration("omni", f"{stub.url}/v1", KEY)

        assert (await judge.judge(Item("a bomb", "request", images=images))).scores == {
            "violence": 0.93,
            "sexual": 0.93,
        }
        assert (await judge.judge(Item("", "request", images=images))).scores == {"sexual": 0.93}
        await judge.close()

    asked = [request.json["input"] for request in stub.received]
    assert "a bomb" in asked
    assert "" not in asked
    assert [{"type": "image_url", "image_url": {"url": images[0].url}}] in asked


async def test_no_key_no_header() -> None:
    """A service of one's own may want no key."""
    async with stub_judges() as stub:
        judge = OpenAiModeration("mine", f"{stub.url}/v1", model="mine-1")
        await judge.judge(Item("hello", "response", "assistant"))
        await judge.close()

    assert "authorization" not in stub.received[0].headers
    assert stub.received[0].json["model"] == "mine-1"


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"<html>", b'{"results": []}', b'{"results": [{"flagged": true}]}', b"\xff\xfe", b'{"results": 1}'],
)
async def test_garbage(body: bytes) -> None:
    """What is not the API's answer is no opinion."""
    async with stub_judges(body=body) as stub:
        judge = OpenAiModeration("omni", f"{stub.url}/v1", KEY)
        with pytest.raises(JudgeFailed) as failed:
            await judge.judge(Item("hello", "request"))
        await judge.close()

    assert failed.value.reason == "garbage"


@pytest.mark.parametrize("status", [401, 429, 500, 503, 302])
async def test_statuses(status: int) -> None:
    """Any status but 200 is an error, and its message has neither key nor text."""
    async with stub_judges(status=status) as stub:
        judge = OpenAiModeration("omni", f"{stub.url}/v1", KEY)
        with pytest.raises(JudgeFailed) as failed:
            await judge.judge(Item("my secret text", "request"))
        await judge.close()

    assert (failed.value.reason, str(failed.value)) == ("error", f"status {status}")
    assert not isinstance(failed.value, QuestionRefused)


async def test_a_question_that_it_does_not_take() -> None:
    """A 400 is about the question, as for an image that is not there, and says nothing of the service."""
    async with stub_judges(status=400) as stub:
        judge = OpenAiModeration("omni", f"{stub.url}/v1", KEY)
        with pytest.raises(QuestionRefused):
            await judge.judge(Item("", "request", images=[Image("https://example.com/gone.png")]))
        await judge.close()


async def test_nobody_there() -> None:
    """A refused connection is an error."""
    async with stub_judges() as stub:
        pass
    judge = OpenAiModeration("omni", f"{stub.url}/v1", KEY)
    with pytest.raises(JudgeFailed) as failed:
        await judge.judge(Item("hello", "request"))
    await judge.close()

    assert (failed.value.reason, str(failed.value)) == ("error", "ConnectError")
