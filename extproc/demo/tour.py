"""`make demo`: stub providers, the server and a real Envoy, and a walk through what they do."""

import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from extproc.demo.client import Client, Result
from extproc.demo.gateway import Gateway
from extproc.demo.stub import Behaviour, StubProvider, running
from extproc.demo.waiting import until

ACME: Final = "sk-acme-example"
GLOBEX: Final = "sk-globex-example"
_CALLS: Final = 200


def configuration(big: StubProvider, online: StubProvider, claude: StubProvider) -> dict[str, Any]:
    """What the tour runs with; `extproc demo --keep` leaves it in a file to play with."""
    return {
        "providers": {
            "self-hosted": {"base_url": big.base_url},
            "deepseek": {"kind": "deepseek", "base_url": online.base_url, "keys": [{"value": "demo-deepseek-key"}]},
            "claude": {"kind": "anthropic", "base_url": claude.base_url, "keys": [{"value": "demo-claude-key"}]},
        },
        "models": {
            "deepseek-r1": {
                "route": [
                    [{"provider": "self-hosted", "model": "DeepSeek-R1"}],
                    [{"provider": "self-hosted", "model": "DeepSeek-R1-Distill-Qwen-32B"}],
                    [{"provider": "deepseek", "model": "deepseek-flash", "price": {"input": 2, "output": 8}}],
                ],
                "price": {"input": 1, "output": 4},
            },
            "assistant": {
                "route": [
                    [
                        {"provider": "self-hosted", "model": "Qwen3-32B", "weight": 90},
                        {"provider": "deepseek", "model": "deepseek-flash", "weight": 10},
                    ]
                ]
            },
            "claude-sonnet": {
                "route": [[{"provider": "claude", "model": "claude-sonnet-5"}]],
                "price": {"input": 3, "output": 15, "currency": "USD"},
            },
        },
        "accounts": {"currency": "CNY", "rates": {"USD": 7.1}},
        "consumers": {
            "acme": {
                "keys": [{"value": ACME}],
                "models": ["deepseek-*", "assistant"],
                "quota": [{"money": 500, "per": "month"}],
            },
            "globex": {
                "keys": [{"value": GLOBEX}],
                "models": ["claude-*"],
                "limits": [{"requests": 3, "per": "minute"}],
            },
        },
    }


class Tour:
    """Each step makes real calls and prints what came back; a step that does not hold ends the tour with status 1."""

    def __init__(self, gateway: Gateway, big: StubProvider, online: StubProvider) -> None:
        self._gateway = gateway
        self._big = big
        self._online = online
        self._acme = Client(gateway.url, ACME)
        self._failed: list[str] = []
        self._step = 0

    def walk(self) -> list[str]:
        """All steps in order. Returns what did not hold."""
        self._plain()
        self._streamed()
        self._anthropic()
        self._split()
        self._fallback()
        self._unknown_key()
        self._forbidden_model()
        self._model_list()
        self._limit()
        self._key()
        self._usage()
        return self._failed

    # --- steps ------------------------------------------------------------------------------------------------

    def _plain(self) -> None:
        self._title("A plain call", "acme asks for `deepseek-r1`; the provider is asked for `DeepSeek-R1`")
        result = self._acme.chat("deepseek-r1", "What is the capital of France?")
        received = self._big.requests[-1].json
        self._show("status", result.status)
        self._show("model the provider saw", received["model"])
        self._show("answer", result.text)
        self._show(
            "usage", f"{result.json['usage']['prompt_tokens']} in, {result.json['usage']['completion_tokens']} out"
        )
        self._show("x-extproc-call-id", result.headers.get("x-extproc-call-id", ""))
        self._hold(result.status == 200 and received["model"] == "DeepSeek-R1", "the model was mapped")

    def _streamed(self) -> None:
        self._title("A streamed call", "usage is asked for on the client's behalf, and that event removed again")
        result = self._acme.chat("deepseek-r1", "Count to eight.", stream=True)
        received = self._big.requests[-1].json
        self._show("events", len(result.events))
        self._show("text", result.text)
        self._show("provider was asked", f"stream_options = {received.get('stream_options')}")
        self._show("events with usage seen by the client", sum('"usage":{' in e for e in result.events))
        self._hold(
            result.events[-1] == "[DONE]" and not any('"usage":{' in e for e in result.events), "stream unharmed"
        )

    def _anthropic(self) -> None:
        self._title("The Anthropic dialect", "globex calls /v1/messages; the provider gets its own key as x-api-key")
        result = Client(self._gateway.url, GLOBEX).messages("claude-sonnet", "Hello!")
        self._show("status", result.status)
        self._show("answer", result.json["content"][0]["text"])
        self._hold(result.status == 200, "the message was answered")

    def _split(self) -> None:
        self._title("A 90/10 split", f"{_CALLS} calls for `assistant`")
        served = Counter(self._acme.chat("assistant", "hi").headers.get("x-served-by", "?") for _ in range(_CALLS))
        for name, calls in served.most_common():
            self._show(name, f"{calls} calls, {calls / _CALLS:.0%}")
        self._hold(0.8 <= served[self._big.name] / _CALLS < 1, "the split is about 90/10")

    def _fallback(self) -> None:
        self._title("A dead primary", "self-hosted answers 503 to both its models; the online API takes over")
        self._big.behaviour.status = 503
        began = time.monotonic()
        result = self._acme.chat("deepseek-r1", "Still there?")
        self._big.behaviour.status = 200
        self._show("status", result.status)
        self._show("answer", result.text)
        self._show(
            "attempts", " → ".join(r.json["model"] for r in [*self._big.requests[-2:], self._online.requests[-1]])
        )
        self._show("took", f"{(time.monotonic() - began) * 1000:.0f} ms")
        self._hold(result.headers.get("x-served-by") == self._online.name, "the fallback answered")

    def _unknown_key(self) -> None:
        self._title("An unknown key", "")
        self._refused(Client(self._gateway.url, "sk-nobody-knows").chat("deepseek-r1", "hi"), 401, "invalid_api_key")

    def _forbidden_model(self) -> None:
        self._title("A forbidden model", "acme may use `deepseek-*` and `assistant`, not `claude-sonnet`")
        self._refused(self._acme.messages("claude-sonnet", "hi"), 403, None)

    def _model_list(self) -> None:
        self._title("GET /v1/models", "lists just what the key may use")
        names = [m["id"] for m in self._acme.get("/v1/models").json["data"]]
        self._show("acme", ", ".join(names))
        self._hold("claude-sonnet" not in names, "only allowed models are listed")

    def _limit(self) -> None:
        self._title("A limit", "globex may make three calls in any minute, and has made one")
        globex = Client(self._gateway.url, GLOBEX)
        results = [globex.messages("claude-sonnet", "Hello!") for _ in range(3)]
        self._show("statuses", ", ".join(str(result.status) for result in results))
        self._show("message", results[-1].json["error"]["message"])
        self._show("retry-after", f"{results[-1].headers.get('retry-after')} s")
        self._hold([result.status for result in results] == [200, 200, 429], "the fourth call was refused")

    def _key(self) -> None:
        self._title("A key of its own", "a consumer and its key by command; they work within a second, and end so too")
        self._command("consumer", "create", "initech", "--model", "deepseek-*")
        key = self._command("key", "create", "initech").strip()
        initech = Client(self._gateway.url, key)
        began = time.monotonic()
        until(lambda: initech.chat("deepseek-r1", "hi").status == 200, "the key works")
        self._show("the key worked after", f"{time.monotonic() - began:.1f} s")
        self._command("consumer", "disable", "initech")
        began = time.monotonic()
        until(lambda: initech.chat("deepseek-r1", "hi").status == 401, "the key works no more")
        self._show("and ended after", f"{time.monotonic() - began:.1f} s")
        self._hold(True, "no restart, and the database has only its hash")

    def _usage(self) -> None:
        self._title("Usage and money by consumer", "extproc usage; and extproc ledger verify")
        time.sleep(0.5)  # rows are written in batches
        report = self._command("usage")
        print("".join(f"    {line}\n" for line in report.splitlines()), end="")
        self._show("ledger verify", self._command("ledger", "verify").strip())
        self._hold(all(f"\n{name} " in report for name in ("acme", "globex", "initech")), "each call is in the books")

    def _command(self, *words: str) -> str:
        """What `extproc …` prints."""
        command = [sys.executable, "-m", "extproc", *words, "--config", str(self._gateway.file)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    # --- printing ---------------------------------------------------------------------------------------------

    def _title(self, what: str, how: str) -> None:
        self._step += 1
        print(f"\n{self._step}. {what}" + (f": {how}" if how else ""))

    @staticmethod
    def _show(name: str, value: object) -> None:
        print(f"    {name + ':':38}{value}")

    def _refused(self, result: Result, status: int, code: str | None) -> None:
        error = result.json["error"]
        self._show("status", result.status)
        self._show("message", error["message"])
        self._hold(result.status == status and (code is None or error["code"] == code), f"refused with {status}")

    def _hold(self, holds: bool, what: str) -> None:
        print(f"    {'✓' if holds else '✗'} {what}")
        if not holds:
            self._failed.append(f"step {self._step}: {what}")


def run(*, keep: bool) -> int:
    """The tour. Returns the exit status: 0 when everything held."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # from make, `timeout` or a closed terminal: nothing may be left
        signal.signal(number, _end)
    big = StubProvider("self-hosted", behaviour=Behaviour(events=8, pace=0.01))
    online = StubProvider("deepseek", behaviour=Behaviour(events=8, key="demo-deepseek-key", usage="last_chunk"))
    claude = StubProvider("claude", "anthropic", behaviour=Behaviour(key="demo-claude-key"))
    print("Starting three stub providers, the server and a real Envoy ...")
    with running(big, online, claude), tempfile.TemporaryDirectory(prefix="extproc-demo-") as logs:
        gateway = Gateway(configuration(big, online, claude), log=Path(logs) / "log")
        with gateway:
            print(f"Envoy listens on {gateway.url}, the admin port is {gateway.http}, the configuration {gateway.file}")
            failed = Tour(gateway, big, online).walk()
            if keep:
                _stay(gateway)
    if failed:
        print("\nThis did not hold: " + "; ".join(failed), file=sys.stderr)
        return 1
    if not keep:
        print("\nEverything held, and nothing is left running. To keep it up for calls of your own:")
        print("\n    .venv/bin/extproc demo --keep\n")
    return 0


def _end(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _stay(gateway: Gateway) -> None:
    print("\nStill running; Ctrl-C ends it. For example:\n")
    print(f"    curl {gateway.base_url}/chat/completions -H 'authorization: Bearer {ACME}' \\")
    print("""      -H 'content-type: application/json' \\
      -d '{"model": "deepseek-r1", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'\n""")
    print(f"Edit {gateway.file} and it takes effect at once; the log is {gateway.log_file}.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print()
