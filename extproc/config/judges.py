"""Remote judges, which the checks of policies use by their names."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from extproc.config.parts import Part, Positive, SecretRef
from extproc.config.units import Count

Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/]+")]
Chars = Annotated[int, Field(ge=100, le=1_000_000)]


class Breaker(Part):
    """When a judge that fails is not asked for a while."""

    failures: Annotated[int, Field(ge=1)] = 5
    """After so many failures in a row; what a single text brings about is not counted."""
    pause: Positive = 10.0
    """For so long; then one question is let through, and decides."""


class Verdicts(Part):
    """The short memory of what a judge said."""

    entries: Annotated[Count, Field(ge=0)] = 10_000
    """Opinions that are remembered; with 0 each text is asked about anew."""
    ttl: Positive = 300.0
    """How long."""


class Bounds(Part):
    """What all judges have in common."""

    timeout: Positive = 2.0
    """Time for a question, waiting for its turn included. A long text is several questions."""
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 16
    """Questions at once."""
    queue: Annotated[int, Field(ge=0)] = 256
    """Questions that may wait for their turn; above that, the judge is busy."""
    breaker: Breaker = Breaker()
    """When it is not asked for a while."""
    cache: Verdicts = Verdicts()
    """How long its opinions are remembered."""


class OpenAiJudge(Bounds):
    """OpenAI's moderation API, or a service that speaks it: texts and images."""

    kind: Literal["openai"]
    """What it is."""
    base_url: Url = "https://api.openai.com/v1"
    """Where it is, with the path that stands before `/moderations`."""
    key: SecretRef | None = None
    """Its API key."""
    model: str = "omni-moderation-latest"
    """The moderation model."""
    max_chars: Chars = 20_000
    """Characters of one question."""
    ca: Path | None = None
    """Certificates that sign the service's."""


class GuardModelJudge(Bounds):
    """A guard model behind an OpenAI-compatible API: texts."""

    kind: Literal["guard-model"]
    """What it is."""
    format: Literal["llamaguard", "qwen3guard", "shieldgemma"]
    """How it is asked and answers: Llama Guard 3 and 4, Qwen3Guard-Gen or ShieldGemma."""
    base_url: Url
    """Where it is, with the path that stands before `/chat/completions`."""
    key: SecretRef | None = None
    """Its API key."""
    model: str | None = None
    """The server's name for the model; a usual one of the format where not set."""
    max_chars: Chars = 8_000
    """Characters of one question; it must fit the model's context."""
    ca: Path | None = None
    """Certificates that sign the service's."""


class AliyunJudge(Bounds):
    """Alibaba Cloud's content security. Needs `pip install 'extproc[aliyun]'`."""

    kind: Literal["aliyun"]
    """What it is."""
    action: Literal["TextModerationPlus", "MultiModalGuard"] = "TextModerationPlus"
    """The API: texts, or texts and images."""
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$")] = "cn-shanghai"
    """Its region."""
    endpoint: str | None = None
    """Its host, where it is not the region's public one."""
    access_key_id: SecretRef
    """Of a RAM user that may use it."""
    access_key_secret: SecretRef
    """Of the same."""
    service: str | None = None
    """The service for texts; where not set, the ones for what goes into models and for what comes out."""


class JudgeTls(Part):
    """TLS to a judge."""

    ca: Path | None = None
    """Certificates that sign the judge's; the system's own where not set."""
    cert: Path | None = None
    """Our own certificate chain, where the judge wants one."""
    key: Path | None = None
    """Its private key."""
    name: str = ""
    """The name in the judge's certificate, where it is not the host of `address`."""

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together")
        return self


class GrpcJudge(Bounds):
    """A judge of your own, in any language, by the contract in `proto/extproc/moderation/v1`."""

    kind: Literal["grpc"]
    """What it is."""
    address: Annotated[str, StringConstraints(pattern=r"^(unix:.+|[^:\s]+:\d+|\[.+\]:\d+)$")]
    """Where it listens: `unix:PATH` or `host:port`."""
    tls: JudgeTls | None = None
    """TLS to it."""
    max_chars: Chars = 100_000
    """Characters of one question."""


Judge = Annotated[OpenAiJudge | GuardModelJudge | AliyunJudge | GrpcJudge, Field(discriminator="kind")]


def secrets(judge: Bounds) -> dict[str, SecretRef]:
    """The secrets of a judge by their keys."""
    return {key: value for key, value in judge if isinstance(value, SecretRef)}
