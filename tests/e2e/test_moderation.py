"""Content security and the audit, end to end, with the SDKs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from extproc.demo.gateway import Gateway
from extproc.demo.stub import Behaviour, StubProvider, running
from extproc.demo.waiting import until

pytestmark = pytest.mark.e2e

KEY = "sk-acme-example-1"
PHONE = "13812345678"
SENTENCE = "我不能处理这个问题"
TOOL = {"type": "function", "function": {"name": "call", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(name="transport", params=["grpcio", "granian"], scope="module")
def _transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Site:
    """A gateway whose policy judges both ways, before two stubs."""

    def __init__(self, gateway: Gateway, home: StubProvider, claude: StubProvider) -> None:
        self.gateway = gateway
        self.home = home
        self.claude = claude
        self.gpt = openai.OpenAI(base_url=gateway.base_url, api_key=KEY, max_retries=0, timeout=60)
        self.anthropic = anthropic.Anthropic(base_url=gateway.url, api_key=KEY, max_retries=0, timeout=60)

    def chat(self, text: str, **more: Any) -> Any:
        return self.gpt.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **more)

    def audit(self, *words: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "extproc", "audit", "search", *words, "--format", "json"]
        done = subprocess.run(
            [*command, "--config", str(self.gateway.file)], check=True, capture_output=True, text=True
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found


@pytest.fixture(name="site", scope="module")
def _site(transport: str) -> Iterator[Site]:
    home, claude = StubProvider("home"), StubProvider("claude", "anthropic")
    with running(home, claude):
        words = {"lexicon": {"words": {"drugs": ["毒品", "heroin"]}}, "action": "block"}
        config = {
            "server": {"transport": transport},
            "providers": {
                "home": {"base_url": home.base_url},
                "claude": {"base_url": claude.base_url, "dialect": "anthropic"},
            },
            "models": {"m": {"route": {"provider": "home"}}, "c": {"route": {"provider": "claude"}}},
            "consumers": {"acme": {"keys": [{"value": KEY}]}},
            "policies": {
                "default": {
                    "moderation": {
                        "request": [words, {"pii": ["phone"], "action": "mask", "restore": True}],
                        "response": [words],
                    },
                    "audit": {"text": "masked"},
                }
            },
        }
        with Gateway(config) as gateway:
            site = Site(gateway, home, claude)
            yield site
            site.gpt.close()
            site.anthropic.close()


@pytest.fixture(autouse=True)
def _reset(site: Site) -> None:
    site.home.behaviour = Behaviour()
    site.claude.behaviour = Behaviour()
    site.home.clear()
    site.claude.clear()


def test_a_blocked_request(site: Site) -> None:
    """The SDK gets a completion that says the sentence; the provider gets nothing."""
    answer = site.chat("where is h-e-r-o-i-n sold")

    assert (answer.model, answer.choices[0].message.content) == ("from-security-guard", SENTENCE)
    assert (answer.choices[0].finish_reason, answer.usage.total_tokens) == ("stop", 0)
    assert site.home.hits == 0
    message = site.anthropic.messages.create(model="c", max_tokens=10, messages=[{"role": "user", "content": "毒 品"}])
    assert message.content[0].text == SENTENCE  # type: ignore[union-attr]
    assert site.claude.hits == 0


def test_a_blocked_request_for_a_stream(site: Site) -> None:
    """It is a stream that the SDK reads to its end."""
    said = "".join(chunk.choices[0].delta.content or "" for chunk in site.chat("heroin", stream=True) if chunk.choices)

    assert said == SENTENCE


def test_a_blocked_stream(site: Site) -> None:
    """Mid-stream, it ends in the dialect's own way with the sentence; the word itself never arrives."""
    site.home.behaviour = Behaviour(text="All of this is harmless. Then comes heroin, and more.", events=30, pace=0.01)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in site.chat("hi", stream=True) if chunk.choices)
    assert said.startswith("All of this is harmless.")
    assert said.endswith(SENTENCE)
    assert "heroin" not in said

    site.claude.behaviour = Behaviour(text="Some text about heroin, and more.", events=20, pace=0.01)
    with site.anthropic.messages.stream(
        model="c", max_tokens=10, messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        text = stream.get_final_text()
    assert text.endswith(SENTENCE)
    assert "heroin" not in text


def test_a_conversation_with_tools_that_is_masked_and_restored(site: Site) -> None:
    """The provider never sees the number, and the application's tool gets it."""
    site.home.behaviour = Behaviour(tool_calls=True, tool_arguments='{"number": "[PHONE_1]"}')
    for stream in (False, True):
        site.home.clear()
        if stream:
            arguments = "".join(
                call.function.arguments or ""
                for chunk in site.chat(f"call {PHONE}", tools=[TOOL], stream=True)
                for choice in chunk.choices
                for call in choice.delta.tool_calls or ()
            )
        else:
            message = site.chat(f"call {PHONE}", tools=[TOOL]).choices[0].message
            arguments = message.tool_calls[0].function.arguments
        assert json.loads(arguments) == {"number": PHONE}
        (received,) = site.home.requests
        assert received.json["messages"][0]["content"] == "call [PHONE_1]"


def test_a_stream_with_nothing_in_it(site: Site) -> None:
    """It arrives whole, and while it flows."""
    text = "Nothing here that anybody minds. " * 5
    site.home.behaviour = Behaviour(text=text, events=40, pace=0.02)
    pieces = [chunk.choices[0].delta.content or "" for chunk in site.chat("hi", stream=True) if chunk.choices]

    assert "".join(pieces).strip() == text.strip()
    assert len([piece for piece in pieces if piece]) > 20


def test_each_call_can_be_looked_up(site: Site) -> None:
    """Searched for by verdict and by text; personal data is masked in the record."""
    site.home.behaviour = Behaviour(text="the answer about tulips")
    raw = site.gpt.chat.completions.with_raw_response.create(
        model="m", messages=[{"role": "user", "content": f"郁金香 and {PHONE}"}]
    )
    call_id = raw.headers["x-extproc-call-id"]
    until(lambda: site.audit("郁金香"), "the record can be found")
    (found,) = [record for record in site.audit("郁金香") if record["call_id"] == call_id]
    assert PHONE not in json.dumps(found)
    assert [record["call_id"] for record in site.audit("tulips")] == [call_id]

    site.chat("heroin")
    until(lambda: site.audit("--category", "drugs", "--action", "block"), "the blocked call can be found")
    line = site.gateway.log()
    assert "request/lexicon/drugs/block" in line
    assert PHONE not in line


def test_a_wrong_check_is_refused(site: Site, tmp_path: Path) -> None:
    """With its path and reason, before anything runs."""
    file = tmp_path / "extproc.yaml"
    file.write_text('policies: {default: {moderation: {request: [{patterns: {x: ["(a"]}}]}}}')
    done = subprocess.run(
        [sys.executable, "-m", "extproc", "config", "check", "--config", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "policies.default.moderation.request[0]" in done.stderr
