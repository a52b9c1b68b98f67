"""Refusals as HTTP."""

import msgspec
import pytest

from extproc.core import errors
from extproc.core.errors import (
    PolicyUnavailable,
    ProviderFailed,
    Refusal,
    Source,
    refusal_of,
    to_answer,
    to_body,
)

# Statuses and codes are those of design.md, section 7: clients' programs read them.
TABLE = {
    "InvalidKey": (401, "invalid_request_error", "invalid_api_key", Source.CALLER),
    "ModelNotAllowed": (403, "permission_error", "model_not_allowed", Source.CALLER),
    "EndpointNotAllowed": (403, "permission_error", "endpoint_not_allowed", Source.CALLER),
    "RateLimited": (429, "rate_limit_error", "rate_limit_exceeded", Source.CALLER),
    "InsufficientQuota": (429, "insufficient_quota", "insufficient_quota", Source.CALLER),
    "ModelNotFound": (404, "invalid_request_error", "model_not_found", Source.CALLER),
    "UnknownEndpoint": (404, "invalid_request_error", "unknown_endpoint", Source.CALLER),
    "MethodNotAllowed": (405, "invalid_request_error", "method_not_allowed", Source.CALLER),
    "InvalidRequest": (400, "invalid_request_error", "invalid_json", Source.CALLER),
    "RequestTooLarge": (413, "invalid_request_error", "request_too_large", Source.CALLER),
    "ContentBlocked": (400, "content_policy_violation", "content_blocked", Source.CALLER),
    "PolicyUnavailable": (503, "server_error", "policy_unavailable", Source.US),
    "ProviderRejected": (502, "upstream_error", "provider_auth_failed", Source.UPSTREAM),
    "ProviderFailed": (502, "upstream_error", "provider_error", Source.UPSTREAM),
    "ProviderStalled": (504, "upstream_error", "provider_timeout", Source.UPSTREAM),
}
ANTHROPIC = {
    "InvalidKey": "authentication_error",
    "ModelNotAllowed": "permission_error",
    "EndpointNotAllowed": "permission_error",
    "RateLimited": "rate_limit_error",
    "InsufficientQuota": "rate_limit_error",
    "ModelNotFound": "not_found_error",
    "UnknownEndpoint": "not_found_error",
    "MethodNotAllowed": "invalid_request_error",
    "InvalidRequest": "invalid_request_error",
    "RequestTooLarge": "request_too_large",
    "ContentBlocked": "invalid_request_error",
    "PolicyUnavailable": "overloaded_error",
    "ProviderRejected": "api_error",
    "ProviderFailed": "api_error",
    "ProviderStalled": "api_error",
}
KINDS = {kind.__name__: kind for kind in Refusal.__subclasses__() if kind.__module__ == errors.__name__}
TEXT = 'a "quote", a \\ and 中文'


def test_tables_name_every_refusal() -> None:
    """No refusal is forgotten below."""
    assert set(KINDS) == set(TABLE) == set(ANTHROPIC)


@pytest.mark.parametrize("name", TABLE)
def test_openai(name: str) -> None:
    """The OpenAI dialect has message, type, param and code."""
    status, kind, code, source = TABLE[name]
    refusal = KINDS[name](TEXT)

    sent = to_answer(refusal, "openai")

    assert (sent.status, refusal.source, sent.reason) == (status, source, f"extproc_{code}")
    assert sent.headers == {"content-type": "application/json"}
    assert msgspec.json.decode(sent.body) == {"error": {"message": TEXT, "type": kind, "param": None, "code": code}}


@pytest.mark.parametrize("name", ANTHROPIC)
def test_anthropic(name: str) -> None:
    """The Anthropic dialect has a type that follows from the status, and the message."""
    sent = to_answer(KINDS[name](TEXT), "anthropic")

    assert sent.status == TABLE[name][0]
    assert msgspec.json.decode(sent.body) == {"type": "error", "error": {"type": ANTHROPIC[name], "message": TEXT}}


def test_param_and_headers() -> None:
    """A refusal can name the field at fault and bring headers of its own."""
    refusal = Refusal("No.", param="model", headers={"allow": "POST"})

    assert msgspec.json.decode(to_body(refusal, "openai"))["error"]["param"] == "model"
    assert to_answer(refusal, "openai").headers == {"content-type": "application/json", "allow": "POST"}
    assert Refusal("No.").headers == {}


def test_provider_status_is_kept() -> None:
    """Where the provider gave a status, it is the answer's."""
    assert to_answer(ProviderFailed("No.", status=429), "openai").status == 429


@pytest.mark.parametrize(
    "bug", [ValueError("secret"), KeyError("secret"), TimeoutError(), ExceptionGroup("g", [OSError()])]
)
def test_other_exceptions_say_nothing(bug: Exception) -> None:
    """Any other exception is "policy unavailable", and none of its words are shown."""
    refusal = refusal_of(bug)

    assert isinstance(refusal, PolicyUnavailable)
    assert "secret" not in refusal.message
    assert refusal_of(refusal) is refusal
