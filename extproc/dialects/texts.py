"""The text inside requests and answers, whatever their shape: for estimates, so nothing here is refused."""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

_TEXT_KEYS: Final = frozenset(
    {
        "content",
        "text",
        "thinking",
        "reasoning_content",
        "reasoning",
        "summary",
        "refusal",
        "output",
        "tool_calls",
        "function",
        "function_call",
        "custom",
        "name",
        "arguments",
        "input",
        "source",
        "title",
    }
)
"""Where chat, messages and responses keep text, or parts that do. Images, audio and files are under other keys."""
_JSON_KEYS: Final = frozenset({"arguments", "input"})
"""Here an object is text too: the arguments of a tool, as JSON."""


def texts_of(value: Any) -> Iterator[str]:
    """Every text in messages, input items, content parts or output items, in order."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            waiting.extend(reversed(item))
        elif isinstance(item, dict):
            found = [_as_text(key, part) for key, part in item.items() if key in _TEXT_KEYS]
            if item.get("type") == "text" and "data" in item:  # the source of a plain text document
                found.append(item["data"])
            waiting.extend(reversed(found))


def token_ids(value: Any) -> int:
    """How many tokens there are in an input given as token ids: a list of them, or a list of such lists."""
    if not isinstance(value, list):
        return 0
    return sum(len(item) if isinstance(item, list) else 1 for item in value if isinstance(item, list | int))


def _as_text(key: str, value: Any) -> Any:
    return msgspec.json.encode(value).decode() if key in _JSON_KEYS and isinstance(value, dict) else value
