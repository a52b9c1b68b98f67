"""The tour, walked once for real: each step's words are what a newcomer reads, so they are checked one by one."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from extproc.config.load import parse
from extproc.demo.stub import StubProvider
from extproc.demo.tour import ACME, GLOBEX, configuration
from extproc.demo.waiting import until

pytestmark = pytest.mark.e2e

PROVIDER_KEYS = ("demo-deepseek-key", "demo-claude-key")


@dataclass
class Walk:
    """What was printed, by steps: their numbers lead to their text; 0 is what comes before the first."""

    status: int
    out: str
    err: str
    steps: dict[int, str]
    mark: str
    temporary: Path

    def fields(self, step: int) -> dict[str, str]:
        """The lines `name: value` of a step."""
        return dict(re.findall(r"^    (\S[^:\n]*): +(.+)$", self.steps[step], re.MULTILINE))

    def marks(self, step: int) -> list[str]:
        return re.findall(r"^    ([✓✗] .+)$", self.steps[step], re.MULTILINE)


@pytest.fixture(name="walk", scope="module")
def _walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    temporary, mark = tmp_path_factory.mktemp("tour"), uuid4().hex
    done = subprocess.run(
        [sys.executable, "-m", "extproc", "demo"],
        env={**os.environ, "TMPDIR": str(temporary), "TOUR_MARK": mark, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    first, *rest = re.split(r"^(\d+)\. ", done.stdout, flags=re.MULTILINE)
    steps = {0: first} | {int(number): text for number, text in zip(rest[::2], rest[1::2], strict=True)}
    return Walk(done.returncode, done.stdout, done.stderr, steps, mark, temporary)


def processes(mark: str) -> list[int]:
    """Everything that runs with this mark in its environment, as every process of the tour has."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:  # it has just ended
            continue
    return found


def test_everything_holds(walk: Walk) -> None:
    """It ends with 0, has eleven steps, and every one of them holds."""
    assert (walk.status, walk.err) == (0, "")
    assert list(walk.steps) == list(range(12))
    assert [step for step in range(1, 12) if not walk.marks(step)] == []
    assert "✗" not in walk.out
    assert "nothing is left running" in walk.out


def test_nothing_is_left(walk: Walk) -> None:
    """No process of it, no file."""
    until(lambda: not processes(walk.mark), "the last process has ended", 5)

    assert list(walk.temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("when", ["Starting three", "Still running"])
def test_nothing_is_left_by_one_that_is_ended(tmp_path: Path, number: signal.Signals, when: str) -> None:
    """By make, a time limit, a closed terminal or Ctrl-C, as it starts or later: it takes along what it started."""
    mark = uuid4().hex
    environment = {**os.environ, "TMPDIR": str(tmp_path), "TOUR_MARK": mark, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "extproc", "demo", "--keep"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as demo:
        assert demo.stdout is not None
        assert any(when.encode() in line for line in demo.stdout)
        until(lambda: len(processes(mark)) > 1, "the gateway is being started", 10)
        demo.send_signal(number)
        demo.stdout.read()
        demo.wait(20)
    until(lambda: not processes(mark), "the last process has ended", 10)

    assert list(tmp_path.iterdir()) == []


def test_a_process_of_the_tour_would_be_found() -> None:
    """The search for processes finds a child that is there."""
    mark = uuid4().hex
    with subprocess.Popen(["sleep", "60"], env={"TOUR_MARK": mark}) as child:
        until(lambda: processes(mark) == [child.pid], "it is found", 5)
        child.kill()


def test_no_key_of_a_provider_is_shown(walk: Walk) -> None:
    """A demonstration shows how keys are kept, too."""
    assert [key for key in PROVIDER_KEYS if key in walk.out] == []
    assert GLOBEX not in walk.out


def test_the_beginning(walk: Walk) -> None:
    """It says what it starts, and where things are."""
    assert "three stub providers" in walk.steps[0]
    assert re.search(r"Envoy listens on http://127\.0\.0\.1:\d+, the admin port is http://127\.0\.0\.1:\d+", walk.out)
    assert re.search(r"the configuration \S+/extproc\.yaml", walk.steps[0])


def test_a_plain_call(walk: Walk) -> None:
    """The public name became the provider's; there is an answer, usage and an id."""
    fields = walk.fields(1)

    assert fields["status"] == "200"
    assert fields["model the provider saw"] == "DeepSeek-R1"
    assert "self-hosted" in fields["answer"]
    assert re.fullmatch(r"[1-9]\d* in, [1-9]\d* out", fields["usage"])
    assert re.fullmatch(r"[0-9a-f]{32}", fields["x-extproc-call-id"])


def test_a_streamed_call(walk: Walk) -> None:
    """Usage was asked for, and the client, who had not asked, did not see it."""
    fields = walk.fields(2)

    assert int(fields["events"]) > 8
    assert "self-hosted" in fields["text"]
    assert fields["provider was asked"] == "stream_options = {'include_usage': True}"
    assert fields["events with usage seen by the client"] == "0"


def test_the_anthropic_dialect(walk: Walk) -> None:
    """The stub takes its own key only, so an answer means that it got it."""
    fields = walk.fields(3)

    assert fields["status"] == "200"
    assert "claude" in fields["answer"]


def test_the_split(walk: Walk) -> None:
    """Two hundred calls in all, most of them at the heavier target, and some at the other."""
    shares = {name: re.match(r"(\d+) calls, (\d+)%", value) for name, value in walk.fields(4).items()}
    calls = {name: int(share[1]) for name, share in shares.items() if share}

    assert set(calls) == {"self-hosted", "deepseek"}
    assert sum(calls.values()) == 200
    assert calls["self-hosted"] >= 160


def test_the_fallback(walk: Walk) -> None:
    """Both models of the dead provider are tried, then the online API answers, all within one call."""
    fields = walk.fields(5)

    assert fields["status"] == "200"
    assert "deepseek" in fields["answer"]
    assert fields["attempts"] == "DeepSeek-R1 → DeepSeek-R1-Distill-Qwen-32B → deepseek-flash"
    assert int(fields["took"].removesuffix(" ms")) < 5000


@pytest.mark.parametrize(("step", "status", "what"), [(6, 401, "not valid"), (7, 403, "may not use")])
def test_refusals(walk: Walk, step: int, status: int, what: str) -> None:
    """The status, and a message that says why."""
    fields = walk.fields(step)

    assert fields["status"] == str(status)
    assert what in fields["message"]
    assert walk.marks(step) == [f"✓ refused with {status}"]


def test_the_model_list(walk: Walk) -> None:
    """What the key may use, and no more."""
    assert set(walk.fields(8)["acme"].split(", ")) == {"deepseek-r1", "assistant"}


def test_the_limit(walk: Walk) -> None:
    """The call beyond the limit is refused, with the time to wait."""
    fields = walk.fields(9)

    assert fields["statuses"] == "200, 200, 429"
    assert "3 requests in 1m0s" in fields["message"]
    assert 0 < int(fields["retry-after"].removesuffix(" s")) <= 61


def test_the_key(walk: Walk) -> None:
    """A key made by a command works within seconds, and ends so; it is not shown."""
    fields = walk.fields(10)

    assert float(fields["the key worked after"].removesuffix(" s")) < 5
    assert float(fields["and ended after"].removesuffix(" s")) < 5
    assert "sk-" not in walk.steps[10]


def test_usage_by_consumer(walk: Walk) -> None:
    """A row for each consumer, model and provider that was used, with calls, tokens and money; and the books agree."""
    rows = {tuple(row[:3]): row[3:] for line in walk.steps[11].splitlines() if len(row := line.split()) == 8}
    rows = {names: row for names, row in rows.items() if names[0] not in ("consumer", "ledger")}

    assert set(rows) == {
        ("acme", "assistant", "deepseek"),
        ("acme", "assistant", "self-hosted"),
        ("acme", "deepseek-r1", "deepseek"),
        ("acme", "deepseek-r1", "self-hosted"),
        ("globex", "claude-sonnet", "claude"),
        ("initech", "deepseek-r1", "self-hosted"),
    }
    assert all(int(number) > 0 for row in rows.values() for number in row[:3])
    assert float(rows["acme", "deepseek-r1", "self-hosted"][3]) > 0
    assert walk.fields(11)["ledger verify"] == "the numbers agree with the rows"


def test_the_configuration_is_a_good_example() -> None:
    """It is whole in itself: who keeps it running can go on from there."""
    stubs = [StubProvider("big", port=1), StubProvider("online", port=2), StubProvider("claude", "anthropic", port=3)]
    loaded = parse(yaml.safe_dump(configuration(*stubs)).encode(), Path("extproc.yaml"))

    assert set(loaded.config.consumers) == {"acme", "globex"}
    assert [key["value"] for key in configuration(*stubs)["consumers"]["acme"]["keys"]] == [ACME]
