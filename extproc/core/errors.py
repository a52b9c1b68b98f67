"""Every "no" that a client can get from us, and the one place where it becomes HTTP."""

from enum import Enum
from typing import Final

from extproc.core.messages import Answer
from extproc.dialects import base as dialects
from extproc.dialects.endpoints import DialectName


class Source(Enum):
    """Whose fault it is; log level and metric follow from it."""

    CALLER = "caller"
    UPSTREAM = "upstream"
    US = "us"


class Refusal(Exception):  # noqa: N818 - a refusal is the design's word, and no error of ours
    """A call that we decline. ``code`` and ``message`` are shown to the client, ``code`` counts in the metrics."""

    status: int = 400
    type: str = "invalid_request_error"
    code: str = "invalid_request"
    source: Source = Source.CALLER

    def __init__(self, message: str, *, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers or {}


class InvalidKey(Refusal):
    status, code = 401, "invalid_api_key"


class ModelNotAllowed(Refusal):
    status, type, code = 403, "permission_error", "model_not_allowed"


class EndpointNotAllowed(Refusal):
    status, type, code = 403, "permission_error", "endpoint_not_allowed"


class ModelNotFound(Refusal):
    status, code = 404, "model_not_found"


class UnknownEndpoint(Refusal):
    status, code = 404, "unknown_endpoint"


class MethodNotAllowed(Refusal):
    status, code = 405, "method_not_allowed"


class InvalidRequest(Refusal):
    status, code = 400, "invalid_json"


class RequestTooLarge(Refusal):
    status, code = 413, "request_too_large"


class RateLimited(Refusal):
    """Too much in too short a time."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"


class InsufficientQuota(Refusal):
    """What was granted for the period is used up."""

    status, type, code = 429, "insufficient_quota", "insufficient_quota"


class ContentBlocked(Refusal):
    """A text that may not pass, where the policy wants an error and no completion."""

    type, code = "content_policy_violation", "content_blocked"

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message, param=param)
        self.status = status


class PolicyUnavailable(Refusal):
    """We could not judge the call, so it does not pass."""

    status, type, code, source = 503, "server_error", "policy_unavailable", Source.US


class ProviderRejected(Refusal):
    """The provider refused our own credentials: nothing that the client can mend, and nothing it should read."""

    status, type, code, source = 502, "upstream_error", "provider_auth_failed", Source.UPSTREAM


class ProviderFailed(Refusal):
    """The provider failed in a way that cannot be shown as it is. ``status``: its own, where it gave one."""

    type, code, source = "upstream_error", "provider_error", Source.UPSTREAM

    def __init__(self, message: str, *, status: int = 502) -> None:
        super().__init__(message)
        self.status = status


class ProviderStalled(Refusal):
    """The provider fell silent in the middle of an answer."""

    status, type, code, source = 504, "upstream_error", "provider_timeout", Source.UPSTREAM


class ProtocolError(Exception):
    """Envoy sent a message out of turn, or one that we do not ask for: a wrong configuration, or a bug."""


UNEXPECTED: Final = "The call could not be checked, so it was not let through. Please try again."


def refusal_of(error: Exception) -> Refusal:
    """The refusal for any exception of a filter: itself, or "policy unavailable" without a word of what broke."""
    return error if isinstance(error, Refusal) else PolicyUnavailable(UNEXPECTED)


def to_body(refusal: Refusal, dialect: DialectName) -> bytes:
    """The refusal as JSON, as the dialect's own API would have written it."""
    return dialects.error_body(
        dialect,
        status=refusal.status,
        type=refusal.type,
        code=refusal.code,
        message=refusal.message,
        param=refusal.param,
    )


def to_answer(refusal: Refusal, dialect: DialectName) -> Answer:
    """The refusal as HTTP."""
    headers = {"content-type": "application/json", **refusal.headers}
    return Answer(refusal.status, headers, to_body(refusal, dialect), f"extproc_{refusal.code}")
