"""A judge of the operator's own, by the contract in proto/extproc/moderation/v1."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from extproc.moderation.types import Direction, Item, JudgeFailed, Match, Opinion, QuestionRefused, Role
from extproc.wire.proto import moderation_pb2 as pb

SERVICE: Final = "extproc.moderation.v1.Moderator"
MAX_CHARS: Final = 100_000

_DIRECTIONS: Final[dict[Direction, Any]] = {"request": pb.DIRECTION_REQUEST, "response": pb.DIRECTION_RESPONSE}
_ROLES: Final[dict[Role, Any]] = {
    "system": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_send_message_length", -1),  # images may be in it
    ("grpc.use_local_subchannel_pool", 1),
    # A judge that comes back is found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 5000),  # by its name a pause; it is how long a connection may take to open
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_http_proxy", 0),
    # Health is watched by no other policy of balancing.
    (
        "grpc.service_config",
        f'{{"loadBalancingConfig": [{{"round_robin": {{}}}}], "healthCheckConfig": {{"serviceName": "{SERVICE}"}}}}',
    ),
)


@dataclass(frozen=True, slots=True)
class JudgeTls:
    """PEM files. ``ca``: who signs the judge's certificate; ``cert`` and ``key``: our own; ``name``: its name."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    name: str = ""


class GrpcJudge:
    """Asks the server at ``unix:path`` or ``host:port``, within ``timeout`` seconds, and tells it this deadline.

    Made in a running loop. Raises OSError where the files of ``tls`` cannot be read.
    """

    def __init__(
        self,
        name: str,
        address: str,
        *,
        timeout: float = 2.0,
        tls: JudgeTls | None = None,
        max_chars: int = MAX_CHARS,
    ) -> None:
        self.name = name
        self.max_chars = max_chars
        self._timeout = timeout
        self._channel = _channel(address, tls)
        self._judge = self._channel.unary_unary(
            f"/{SERVICE}/Judge",
            request_serializer=pb.JudgeRequest.SerializeToString,
            response_deserializer=pb.JudgeResponse.FromString,
        )

    async def judge(self, item: Item) -> Opinion:
        """Raises JudgeFailed."""
        try:
            answer = await self._judge(_request(item), timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            # What else it says is the judge's own, and may quote the text.
            code = error.code()
            if code is grpc.StatusCode.INVALID_ARGUMENT:
                raise QuestionRefused(code.name) from None
            raise JudgeFailed("timeout" if code is grpc.StatusCode.DEADLINE_EXCEEDED else "error", code.name) from None
        return _opinion(answer, len(item.text))

    async def close(self) -> None:
        await self._channel.close()


def _channel(address: str, tls: JudgeTls | None) -> Any:
    if tls is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    ca, key, cert = (None if file is None else file.read_bytes() for file in (tls.ca, tls.key, tls.cert))
    named = (("grpc.ssl_target_name_override", tls.name),) if tls.name else ()
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), options=(*_OPTIONS, *named))


def _request(item: Item) -> pb.JudgeRequest:
    return pb.JudgeRequest(
        text=item.text,
        direction=_DIRECTIONS[item.direction],
        role=_ROLES[item.role],
        context=[pb.Turn(role=_ROLES[role], text=text) for role, text in item.context],
        images=[pb.Image(url=image.url) for image in item.images],
        policy=item.policy,
        call_id=item.call_id,
    )


def _opinion(answer: pb.JudgeResponse, length: int) -> Opinion:
    scores: dict[str, float] = {}
    matches: list[Match] = []
    for finding in answer.findings:
        if not finding.category or not 0 <= finding.score <= 1:
            raise JudgeFailed("garbage", "a finding without category, or with a score that is not from 0 to 1")
        scores[finding.category] = max(finding.score, scores.get(finding.category, 0.0))
        for span in finding.spans:
            if not span.start < span.end <= length:
                raise JudgeFailed("garbage", "a span outside of the text")
            matches.append(Match(span.start, span.end, finding.category, finding.score, finding.reason))
    return Opinion(scores, tuple(sorted(matches)))
