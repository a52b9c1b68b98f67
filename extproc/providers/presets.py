"""What is known of each kind of provider: where it is, how it wants its key, and the quirks that we must act upon.

Each preset names the public documentation that it comes from; docs/providers.md tells the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from extproc.dialects.endpoints import DialectName

KeyStyle = Literal["bearer", "raw", "api-key", "x-api-key"]
"""`Authorization: Bearer KEY`, `Authorization: KEY`, `api-key: KEY` or `x-api-key: KEY`."""

StreamUsage = Literal["ask", "reported", "never"]
"""Usage of a chat or completions stream: we add `stream_options.include_usage`; it comes by itself; or the server
refuses to be asked, so that the client's own `stream_options` are taken out too."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One kind. ``base_url``: None where only the operator knows it. ``headers``: set where the client sent none."""

    kind: str
    base_url: str | None = None
    dialect: DialectName = "openai"
    key_style: KeyStyle = "bearer"
    stream_usage: StreamUsage = "ask"
    headers: Mapping[str, str] = field(default_factory=dict)


ANTHROPIC: Final = Preset(
    # https://docs.anthropic.com/en/api/overview: x-api-key, and anthropic-version is required.
    "anthropic",
    "https://api.anthropic.com",
    dialect="anthropic",
    key_style="x-api-key",
    stream_usage="reported",
    headers={"anthropic-version": "2023-06-01"},
)

PRESETS: Final[dict[str, Preset]] = {
    preset.kind: preset
    for preset in (
        # https://platform.openai.com/docs/api-reference
        Preset("openai", "https://api.openai.com/v1"),
        ANTHROPIC,
        # https://learn.microsoft.com/azure/ai-services/openai/reference: the key goes into `api-key`; the path is
        # /openai/v1, or /openai/deployments/NAME with an api-version.
        Preset("azure", key_style="api-key"),
        # https://api-docs.deepseek.com: chat; completions below /beta, Anthropic's messages below /anthropic, and the
        # Responses API at the host itself are other base URLs.
        Preset("deepseek", "https://api.deepseek.com/v1"),
        # https://www.alibabacloud.com/help/en/model-studio/base-url: Beijing; each region and workspace has its own.
        Preset("dashscope", "https://dashscope.aliyuncs.com/compatible-mode/v1"),
        # https://www.alibabacloud.com/help/en/pai/user-guide/call-a-service-over-a-public-endpoint: the token alone,
        # without `Bearer`; the service's own path stands before /v1.
        Preset("pai-eas", key_style="raw"),
        # https://www.modelscope.cn/docs/model-service/API-Inference/intro
        Preset("modelscope", "https://api-inference.modelscope.cn/v1"),
        # https://docs.ollama.com/api/openai-compatibility
        Preset("ollama", "http://127.0.0.1:11434/v1"),
        # https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
        Preset("vllm"),
        # https://docs.sglang.ai/basic_usage/openai_api.html
        Preset("sglang"),
        # Anything else that speaks OpenAI's API.
        Preset("openai-compatible"),
    )
}
