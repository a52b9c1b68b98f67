"""The endpoints that clients call, and the dialect that each speaks."""

from dataclasses import dataclass
from typing import Literal

DialectName = Literal["openai", "anthropic"]
EndpointName = Literal["chat", "completions", "embeddings", "responses", "messages"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One API operation.

    ``path`` is what clients call; ``suffix`` is the same below a provider's base URL, which for the
    OpenAI dialect already ends in its version (``/v1``, ``/compatible-mode/v1``).
    """

    name: EndpointName
    dialect: DialectName
    path: str
    suffix: str


CHAT = Endpoint("chat", "openai", "/v1/chat/completions", "/chat/completions")
COMPLETIONS = Endpoint("completions", "openai", "/v1/completions", "/completions")
EMBEDDINGS = Endpoint("embeddings", "openai", "/v1/embeddings", "/embeddings")
RESPONSES = Endpoint("responses", "openai", "/v1/responses", "/responses")
MESSAGES = Endpoint("messages", "anthropic", "/v1/messages", "/v1/messages")

MODELS_PATH = "/v1/models"
ENDPOINTS: dict[str, Endpoint] = {e.path: e for e in (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES)}
BY_NAME: dict[str, Endpoint] = {e.name: e for e in ENDPOINTS.values()}


def dialect_of(path: str) -> DialectName:
    """The dialect in which to answer a call to ``path`` (no query), known endpoint or not."""
    return "anthropic" if path.startswith("/v1/messages") else "openai"
