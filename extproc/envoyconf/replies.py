"""What Envoy says by itself: its own replies, in the dialect of the path, and its access log."""

from typing import Any, Final

from extproc.core.exchange import CALL_ID
from extproc.dialects.base import error_body
from extproc.dialects.endpoints import DialectName
from extproc.wire.names import NAMESPACE

Tree = dict[str, Any]
TYPE: Final = "type.googleapis.com/"

_DETAILS: Final = "response.code_details"
# What Envoy's details begin with → the status and text for the client. The first that fits is used.
_REPLIES: Final[tuple[tuple[str, int, str, str, str], ...]] = (
    # condition (CEL), status, type, code, message
    (
        f"{_DETAILS}.startsWith('ext_proc_error') || {_DETAILS}.startsWith('ext_proc_')",
        503,
        "server_error",
        "policy_unavailable",
        "The call could not be checked, so it was not let through. Please try again.",
    ),
    (
        "response.code == 413",
        413,
        "invalid_request_error",
        "request_too_large",
        "The request body is too large.",
    ),
    (
        f"{_DETAILS}.startsWith('response_payload_too_large')",
        502,
        "upstream_error",
        "provider_error",
        "The provider's answer is larger than this gateway takes in one piece.",
    ),
    ("response.code == 408", 408, "invalid_request_error", "request_timeout", "The request did not arrive in time."),
    (
        "response.code == 504",
        504,
        "upstream_error",
        "provider_timeout",
        "No provider of this model answered in time.",
    ),
    (
        "response.code == 503 || response.code == 502",
        503,
        "upstream_error",
        "provider_unavailable",
        "No provider of this model can be reached.",
    ),
    ("response.code == 404", 404, "invalid_request_error", "unknown_endpoint", "There is nothing at this path."),
    ("response.code >= 500", 500, "server_error", "gateway_error", "The gateway failed. Please try again."),
    ("response.code >= 400", 0, "invalid_request_error", "invalid_request", "The request is not valid."),
)


def local_reply_config() -> Tree:
    """Envoy's local replies as JSON of the dialect. Our own immediate replies say it already, and are left alone."""
    return {
        "mappers": [
            _mapper(condition, status, dialect, type_, code, message)
            for condition, status, type_, code, message in _REPLIES
            for dialect in ("anthropic", "openai")
        ]
    }


def _mapper(condition: str, status: int, dialect: DialectName, type_: str, code: str, message: str) -> Tree:
    path = "request.path.startsWith('/v1/messages')"
    of_dialect = path if dialect == "anthropic" else f"!{path}"
    ours = f"{_DETAILS}.startsWith('extproc_')"
    body = error_body(dialect, status=status or 400, type=type_, code=code, message=message)
    return {
        "filter": _cel(f"!({ours}) && ({condition}) && {of_dialect}"),
        **({"status_code": status} if status else {}),
        "body": {"inline_string": body.decode()},
        "body_format_override": {
            "text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"},
            "content_type": "application/json",
        },
        "headers_to_add": [
            {
                "header": {"key": CALL_ID, "value": f"%DYNAMIC_METADATA({NAMESPACE}:call_id)%"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
    }


def _cel(expression: str) -> Tree:
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": {
                "@type": f"{TYPE}envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                "expression": expression,
            },
        }
    }


_FIELDS: Final = (
    "call_id",
    "consumer",
    "model",
    "provider",
    "target",
    "attempts",
    "provider_key",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "usage_source",
)


def access_log(path: str) -> list[Tree]:
    """One JSON line a call, with what we know of it. ``path``: `-` is standard output, empty is none."""
    if not path:
        return []
    line = {
        "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "status": "%RESPONSE_CODE%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "duration_ms": "%DURATION%",
        "first_byte_ms": "%RESPONSE_DURATION%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
        "cluster": "%UPSTREAM_CLUSTER%",
        **{name: f"%DYNAMIC_METADATA({NAMESPACE}:{name})%" for name in _FIELDS},
    }
    kind = "stream.v3.StdoutAccessLog" if path == "-" else "file.v3.FileAccessLog"
    name = "envoy.access_loggers.stdout" if path == "-" else "envoy.access_loggers.file"
    return [
        {
            "name": name,
            "typed_config": {
                "@type": f"{TYPE}envoy.extensions.access_loggers.{kind}",
                **({} if path == "-" else {"path": path}),
                "log_format": {"json_format": line},
            },
        }
    ]
