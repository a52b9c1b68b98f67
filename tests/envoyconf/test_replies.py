"""What Envoy says by itself."""

import json
import re

import pytest

from extproc.envoyconf.replies import access_log, local_reply_config

MAPPERS = local_reply_config()["mappers"]


def expression(mapper: dict[str, object]) -> str:
    found = mapper["filter"]["extension_filter"]["typed_config"]["expression"]  # type: ignore[index]
    return str(found)


@pytest.mark.parametrize("mapper", MAPPERS, ids=expression)
def test_a_reply(mapper: dict[str, object]) -> None:
    """JSON of the dialect of its path, with a call id, and never in place of an answer of ours."""
    body = json.loads(mapper["body"]["inline_string"])  # type: ignore[index]
    condition = expression(mapper)

    assert condition.startswith("!(response.code_details.startsWith('extproc_'))")
    if condition.endswith("!request.path.startsWith('/v1/messages')"):
        assert set(body["error"]) == {"message", "type", "param", "code"}
    else:
        assert condition.endswith("request.path.startsWith('/v1/messages')")
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
    assert mapper["headers_to_add"][0]["header"]["key"] == "x-extproc-call-id"  # type: ignore[index]
    assert mapper["body_format_override"]["content_type"] == "application/json"  # type: ignore[index]


def test_the_last_takes_every_error() -> None:
    """No error of Envoy's stays plain text."""
    assert ["response.code >= 400" in expression(mapper) for mapper in MAPPERS[-2:]] == [True, True]


@pytest.mark.parametrize(
    ("code", "status"),
    [("policy_unavailable", 503), ("request_too_large", 413), ("request_timeout", 408), ("provider_timeout", 504),
     ("provider_unavailable", 503), ("provider_error", 502), ("unknown_endpoint", 404)],
)  # fmt: skip
def test_codes(code: str, status: int) -> None:
    """Each reason has its code and status, once for each dialect."""
    [mapper] = [m for m in MAPPERS if f'"code":"{code}"' in m["body"]["inline_string"]]

    assert mapper["status_code"] == status


def test_fields_of_the_access_log() -> None:
    """Consumer, model, target and tokens are in Envoy's own line."""
    [log] = access_log("-")
    line = log["typed_config"]["log_format"]["json_format"]

    ours = {name for name, value in line.items() if re.fullmatch(r"%DYNAMIC_METADATA\(extproc:\w+\)%", value)}
    assert {"call_id", "consumer", "model", "provider", "target", "attempts", "input_tokens", "output_tokens"} <= ours
    assert {"status", "details", "flags", "duration_ms"} <= set(line)
    assert not [
        value for value in line.values() if re.search(r"%REQ\((authorization|x-api-key|api-key)", value, re.IGNORECASE)
    ]
