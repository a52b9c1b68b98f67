"""What Envoy is asked to tell us later, by the access log service that the supervisor serves.

The connection manager's log tells of calls that ended without our last word, the router's log of each attempt whose
answer is about the provider's key.
"""

from typing import Any, Final

from extproc.config.schema import Config
from extproc.core.evidence import PROVIDER_KEY, SETTLED
from extproc.providers.pool import LADDERS
from extproc.wire.names import KEY_HEADER, NAMESPACE

Tree = dict[str, Any]
TYPE: Final = "type.googleapis.com/"
CLUSTER: Final = "extproc-access-log"
_FLUSH: Final = "0.2s"


def ended(config: Config) -> list[Tree]:
    """For the connection manager: calls that our router stage began, and did not settle."""
    began = {"matcher": _matcher("call_id", {"present_match": True}), "match_if_key_not_found": False}
    unsettled = {"matcher": _matcher(SETTLED, {"string_match": {"exact": "no"}}), "match_if_key_not_found": True}
    log = _log(config, "extproc-ended")
    if not log:
        return []
    log["typed_config"]["common_config"]["custom_tags"] = [_target_tag(name) for name in ("provider", "target")]
    return [log | {"filter": {"and_filter": {"filters": [{"metadata_filter": f} for f in (began, unsettled)]}}}]


def refused_keys(config: Config) -> list[Tree]:
    """For the router: attempts answered with a status that is about the key."""
    log = _log(config, "extproc-keys")
    if not log:
        return []
    log["typed_config"]["additional_response_headers_to_log"] = [KEY_HEADER, "retry-after"]
    return [log | {"filter": {"or_filter": {"filters": [_status(status) for status in LADDERS]}}}]


def key_mark(config: Config) -> list[Tree]:
    """For a target's cluster: notes on the answer which key was used, since the router's log sees no metadata.

    The router stage takes the note off again with all else that is `x-extproc-*`.
    """
    if config.server.log_address is None:
        return []
    note = {"header": {"key": KEY_HEADER, "value": f"%DYNAMIC_METADATA({NAMESPACE}:{PROVIDER_KEY})%"}}
    mutation = {
        "@type": f"{TYPE}envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        "mutations": {
            "response_mutations": [
                {"remove": KEY_HEADER},  # a provider's own
                {"append": {**note, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}},
            ]
        },
    }
    return [{"name": "envoy.filters.http.header_mutation", "typed_config": mutation}]


def _log(config: Config, name: str) -> Tree:
    """Empty where we serve no access log service."""
    if config.server.log_address is None:
        return {}
    return {
        "name": "envoy.access_loggers.http_grpc",
        "typed_config": {
            "@type": f"{TYPE}envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            "common_config": {
                "log_name": name,
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": CLUSTER}},
                "buffer_flush_interval": _FLUSH,
            },
        },
    }


def _matcher(field: str, value: Tree) -> Tree:
    return {"filter": NAMESPACE, "path": [{"key": field}], "value": value}


def _target_tag(name: str) -> Tree:
    key = {"key": NAMESPACE, "path": [{"key": name}]}
    return {"tag": name, "metadata": {"kind": {"cluster": {}}, "metadata_key": key}}


def _status(status: int) -> Tree:
    # Envoy wants a name under which the number could be changed at run time; nobody does.
    value = {"default_value": status, "runtime_key": f"extproc.status_{status}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}
