"""How a stub provider answers."""

from dataclasses import dataclass, field
from typing import Literal

Fault = Literal["reset", "silent", "reset_mid", "stall_mid", "garbage"]
UsageStyle = Literal["reported", "none", "always", "last_chunk"]
KeyStyle = Literal["bearer", "api-key", "x-api-key", "raw-authorization"]


@dataclass(slots=True)
class Behaviour:
    """How a stub answers from the next call on; may be changed at any time, from any thread.

    ``status``: any other than 200 is answered with an error in the dialect's shape.
    ``fault``: ``reset`` the connection before any answer; stay ``silent`` for ever; after ``fault_after`` SSE events
    (of whatever kind) or half of a JSON body, ``reset_mid`` or ``stall_mid``; ``garbage`` as the body of a 200.
    ``delay``: seconds before the first byte. ``pace``: seconds between SSE events.
    ``text``: the answer, by default a greeting that names the stub, in ``events`` pieces; it is repeated where it has
    fewer characters than that. ``reasoning`` goes before it, a word a piece.
    ``usage``: ``reported`` as the dialect's own API does; ``none``; ``always`` in every chunk of a stream, as vLLM's
    continuous statistics; ``last_chunk`` on the last chunk with choices, asked for or not, as DeepSeek (Anthropic:
    all of it in ``message_delta``).
    ``queue``: seconds for which headers are out and only blank lines (JSON) or comments (SSE) follow, as DeepSeek.
    ``refuse_stream_options``: 400 for a body that carries them, as old servers do.
    ``chunking``: bytes in each network piece of an answer's body. ``gzip``: compress, asked or not.
    ``tool_calls``: call the request's first tool, if it has one, with ``tool_arguments``.
    ``input_tokens``: by default the words of the request; for Anthropic, what the caches hold comes on top.
    ``reasoning_tokens``: by default the pieces of ``reasoning``; output tokens are these and the pieces of the answer.
    ``headers`` join the answer's. ``key`` is required where set, sent as ``key_style`` (by default: openai bearer,
    anthropic x-api-key or bearer).
    """

    status: int = 200
    fault: Fault | None = None
    fault_after: int = 2
    delay: float = 0.0
    pace: float = 0.0
    events: int = 4
    text: str | None = None
    reasoning: str = ""
    usage: UsageStyle = "reported"
    queue: float = 0.0
    refuse_stream_options: bool = False
    chunking: int | None = None
    gzip: bool = False
    tool_calls: bool = False
    tool_arguments: str = '{"city": "Hangzhou"}'
    input_tokens: int | None = None
    cached_tokens: int = 0
    cache_creation_tokens: int = 0
    reasoning_tokens: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    key: str | None = None
    key_style: KeyStyle | None = None
