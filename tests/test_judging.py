"""The judges of a configuration, from YAML to an opinion."""

from pathlib import Path

import pytest
from judges import ACCESS_KEY_ID, ACCESS_KEY_SECRET, stub_judges

from extproc.config.load import ConfigError, Loaded, parse
from extproc.judging import build_judges
from extproc.moderation.types import Item, JudgeFailed

KINDS = """
judges:
  omni: {{kind: openai, base_url: "{url}/v1", key: {{value: sk-omni-12345678}}}}
  guard: {{kind: guard-model, format: qwen3guard, base_url: "{url}/v1", timeout: 2s, max_chars: 100}}
  green:
    kind: aliyun
    endpoint: "{url}"
    access_key_id: {{value: {id}}}
    access_key_secret: {{env: GREEN_SECRET}}
    concurrency: 2
  mine: {{kind: grpc, address: "unix:{url}.sock", timeout: 100ms, breaker: {{failures: 1, pause: 1m}}}}
"""


def read(text: str) -> Loaded:
    return parse(text.encode(), Path("extproc.yaml"))


def problems(text: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return {problem.path: problem.message for problem in caught.value.problems}


async def test_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of judge is made with its keys and bounds, and answers by its name."""
    monkeypatch.setenv("GREEN_SECRET", ACCESS_KEY_SECRET)
    async with stub_judges() as stub:
        loaded = read(KINDS.format(url=stub.url, id=ACCESS_KEY_ID))
        judges = build_judges(loaded.config, loaded.judge_keys)
        bad = Item("a bomb", "request")

        assert list(judges) == [judge.name for judge in judges.values()] == ["omni", "guard", "green", "mine"]
        assert dict((await judges["omni"].judge(bad)).scores) == {"violence": 0.93}
        assert dict((await judges["guard"].judge(bad)).scores) == {"violent": 0.9}
        assert dict((await judges["green"].judge(bad)).scores) == {"violence": 0.9}
        assert judges["guard"].max_chars == 100
        for reason in ("error", "open"):
            with pytest.raises(JudgeFailed) as failed:
                await judges["mine"].judge(bad)
            assert failed.value.reason == reason
        for judge in judges.values():
            await judge.close()


def test_no_repr_tells_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the document nor what was loaded prints a key; a missing variable is named by its path."""
    text = KINDS.format(url="http://127.0.0.1:9", id=ACCESS_KEY_ID)
    monkeypatch.delenv("GREEN_SECRET", raising=False)
    assert problems(text) == {"judges.green.access_key_secret": "the environment variable GREEN_SECRET is not set"}

    monkeypatch.setenv("GREEN_SECRET", ACCESS_KEY_SECRET)
    loaded = read(text)
    assert set(loaded.judge_keys["green"]) == {"access_key_id", "access_key_secret"}
    assert loaded.judge_keys["guard"] == {}
    for key in ("sk-omni-12345678", ACCESS_KEY_ID, ACCESS_KEY_SECRET):
        assert key not in repr(loaded)


@pytest.mark.parametrize(
    ("judge", "path", "message"),
    [
        ("{kind: openai, formt: x}", "judges.j.formt", "unknown key"),
        ("{kind: guard-model, base_url: 'http://x'}", "judges.j.format", "is missing"),
        ("{kind: grpc, address: nowhere}", "judges.j.address", "pattern"),
        ("{kind: grpc, address: 'unix:x', tls: {cert: c.pem}}", "judges.j.tls", "cert and key go together"),
        ("{kind: oracle}", "judges.j", "'openai', 'guard-model', 'aliyun', 'grpc'"),
        ("{base_url: 'http://x'}", "judges.j", "kind"),
        ("{kind: aliyun, access_key_id: {value: a}}", "judges.j.access_key_secret", "is missing"),
    ],
)
def test_a_mistake_and_its_path(judge: str, path: str, message: str) -> None:
    """Each mistake is named as it stands in the file."""
    found = problems(f"judges: {{j: {judge}}}")

    assert list(found) == [path]
    assert message in found[path]


def test_a_judge_that_is_not_there() -> None:
    """A policy that asks a judge nobody defined is refused."""
    text = (
        "policies: {strict: {moderation: {response: [{judge: qwen}]}}}\njudges: {mine: {kind: grpc, address: 'unix:x'}}"
    )

    assert problems(text) == {
        "policies.strict.moderation.response[0].judge": "no judge is called 'qwen'; there are: mine"
    }
