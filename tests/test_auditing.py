"""The audit as it is configured."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc import auditing
from extproc.audit.record import Retention
from extproc.config.load import ConfigError, Loaded, parse

DAY = 86400.0
SLS = {
    "endpoint": "cn-hangzhou.log.aliyuncs.com",
    "project": "p",
    "logstore": "l",
    "key_id": {"env": "SLS_ID"},
    "key_secret": {"value": "hidden-secret"},
}


def loaded(**document: Any) -> Loaded:
    return parse(yaml.safe_dump(document).encode(), Path("extproc.yaml"))


def test_nothing_is_configured() -> None:
    """Records are kept for 90 days, masked, and go nowhere else."""
    made = loaded(policies={"default": {}})

    assert auditing.sinks(made) == []
    assert auditing.retention(made.config) == Retention(90 * DAY)
    assert made.config.policies["default"].audit.text == "masked"


def test_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind, with its secrets, which are shown nowhere."""
    monkeypatch.setenv("SLS_ID", "LTAI-1")
    otlp = {"endpoint": "http://collector:4318/v1/logs", "headers": {"authorization": {"value": "Bearer hidden"}}}
    made = loaded(
        audit={"sinks": [{"file": {"path": "audit.jsonl", "max_size": "1MiB"}}, {"otlp": otlp}, {"sls": SLS}]}
    )

    sinks = auditing.sinks(made)
    for each in sinks:
        each.close()

    assert [each.name for each in sinks] == ["file:audit.jsonl", "otlp", "sls"]
    assert made.sink_secrets[2]["key_id"].reveal() == "LTAI-1"
    assert "hidden" not in repr(made)


def test_retention() -> None:
    """A policy may have its own; without one for all, other records stay for ever."""
    made = loaded(audit={"retention": None}, policies={"short": {"audit": {"retention": "7d"}}, "other": {}})

    assert auditing.retention(made.config) == Retention(None, {"short": 7 * DAY})


@pytest.mark.parametrize(
    ("audit", "problem"),
    [
        ({"sinks": [{}]}, "a sink is {file: …}, {otlp: …} or {sls: …}"),
        ({"sinks": [{"sls": SLS}]}, "audit.sinks[0].sls.key_id: the environment variable SLS_ID is not set"),
        ({"sinks": [{"otlp": {"endpoint": "collector"}}]}, "audit.sinks[0].otlp.endpoint"),
        ({"retention": 0}, "audit.retention"),
    ],
)
def test_what_is_wrong(audit: dict[str, Any], problem: str) -> None:
    """It is refused, with its place and reason."""
    with pytest.raises(ConfigError) as refused:
        loaded(audit=audit)

    assert problem in str(refused.value)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said which, and where to read on."""
    monkeypatch.setitem(sys.modules, "aliyun.log", None)
    made = loaded(audit={"sinks": [{"sls": {**SLS, "key_id": {"value": "i"}}}]})

    with pytest.raises(ConfigError, match=r"audit\.sinks\[0\]: aliyun\.log is not installed: see docs/audit\.md"):
        auditing.sinks(made)
