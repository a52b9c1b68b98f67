"""Where text stands in the bodies of every dialect, so that it can be judged and replaced in its place."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple

import msgspec

from extproc.dialects.document import Document, InvalidField

Role = Literal["system", "user", "assistant", "tool"]
What = Literal["text", "json", "image", "unread"]


class Place(NamedTuple):
    """One text of a request, and what was said by whom.

    ``path`` is the name under which it can be replaced: ``messages[2].content[0].text``. ``images`` are ``http(s)`` and
    ``data:`` URLs: those of a message are with its first text, or with an empty one at the message's own path. Not
    ``readable``: something stands there that is neither text nor image (audio, a file, token ids, an unknown field).
    """

    role: Role
    path: str
    text: str
    images: tuple[str, ...] = ()
    readable: bool = True


class Piece(NamedTuple):
    """More of one text of an answer.

    ``key`` names the text: ``choice/kind`` and what else tells it from others: ``0/content``, ``1/arguments/2``. All
    pieces of a key, in order, are the text. Kinds: ``content``, ``reasoning``, ``refusal``, ``arguments`` (JSON) and,
    rarer, ``summary``, ``code``, ``transcript``, ``other``. ``path`` is where a whole answer has it. ``again``: this is
    no more of the text but the whole of it so far, which passed in pieces before. ``copy``: another piece of the same
    event says the same under another key. Not ``readable``: something that is no text stands there, and has no key.
    """

    key: str
    text: str
    path: str = ""
    again: bool = False
    copy: bool = False
    readable: bool = True


class Slot(NamedTuple):
    """``holder[at]``, somewhere in decoded JSON: a text, an object to be read as JSON text, the URL of an image."""

    path: str
    text: str
    holder: Any
    at: Any
    role: Role
    what: What = "text"

    def put(self, text: str) -> None:
        """Replace it. An object stays one, whatever became of its JSON."""
        if self.what == "text":
            self.holder[self.at] = text
        elif self.what == "json":
            self.holder[self.at] = _object(text)


class Said(NamedTuple):
    """A slot of an answer and the key of its text. ``whole``: it has the whole text; ``once``: no other has more."""

    key: str
    slot: Slot
    whole: bool = False
    once: bool = False
    copy: bool = False


# fmt: off
_TEXT: Final = frozenset((
    "content", "text", "thinking", "reasoning_content", "reasoning", "summary", "refusal", "output", "arguments",
    "input", "title", "context", "transcript", "partial_json", "cited_text", "quote", "stdout", "stderr", "code",
    "logs", "query", "queries", "command", "commands", "diff", "pattern", "error", "message", "prompt", "suffix",
    "instructions", "system", "delta",
))
_NAMES: Final = frozenset((
    "type", "id", "role", "name", "index", "status", "phase", "call_id", "tool_call_id", "tool_use_id", "item_id",
    "response_id", "cache_control", "signature", "thought_signature", "encrypted_content", "encrypted_index",
    "detail", "media_type", "mime_type", "format", "filename", "page_age", "ttl", "finish_reason", "stop_reason",
    "stop_sequence", "object", "model", "server_label", "server_name", "namespace", "approval_request_id",
    "container_id", "working_directory", "button", "keys", "channel",
))
"""What has no text of its own: identifiers, and what only the provider can read. Names of tools stay as they are."""
# fmt: on
_KINDS: Final[Mapping[str, What]] = {**dict.fromkeys(_TEXT, "text"), "image_url": "image"}
_JSON: Final = frozenset({"arguments", "input"})
_OPEN: Final = frozenset({"variables"})
"""An object whose fields have names of the client's own, and text."""
_OPAQUE: Final = frozenset({"redacted_thinking", "reasoning.encrypted"})
_REFERENCES: Final = frozenset({"url", "uri", "file_id", "source"})
_REFERRING: Final = ("citation", "_location", "file_path", "search_result", "url", "open_page", "find_in_page", "find")
_TRACES: Final = frozenset({"logprobs", "token_ids"})
_ROLES: Final[Mapping[str, Role]] = {
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def walk(holder: Any, at: Any, path: str, role: Role = "assistant") -> Iterator[Slot]:
    """Everything in ``holder[at]`` that someone may read, in order. Strings under names that we do not know: unread."""
    waiting = [(holder, at, path, str(at), role)]
    while waiting:
        holder, at, path, name, role = waiting.pop()
        value = holder[at]
        if isinstance(value, str):
            if value and name not in _NAMES:
                yield Slot(path, value, holder, at, role, _KINDS.get(name, "unread"))
        elif isinstance(value, dict):
            if at in _JSON:
                if value:
                    yield _json(path, value, holder, at, role)
                continue
            if image := _image(name, value):
                yield Slot(path, image, holder, at, role, "image")
                continue
            role = _role(value, role)
            waiting.extend(
                (value, key, step(path, key), _name(name, value, key), role)
                for key in reversed(value)
                if not _is_silent(value, key)
            )
        elif isinstance(value, list):
            if name in _TEXT and any(type(item) in (int, float) for item in value):
                yield Slot(path, "", holder, at, role, "unread")  # token ids
            waiting.extend(
                (value, i, f"{path}[{i}]", name, role)
                for i in range(len(value) - 1, -1, -1)
                if isinstance(value[i], (str, dict, list))
            )
        elif name in _TEXT and value is not None and not isinstance(value, bool):
            yield Slot(path, "", holder, at, role, "unread")


def _image(name: str, value: dict[Any, Any]) -> str | None:
    """The URL of the image that an object is: of an ``image_url``, of Anthropic's block with a source."""
    if name == "image_url":
        return value["url"] if isinstance(value.get("url"), str) else None
    source = value.get("source")
    if value.get("type") != "image" or not isinstance(source, dict):
        return None
    if isinstance(source.get("url"), str):
        return str(source["url"])
    return f"data:{source.get('media_type')};base64,{source['data']}" if isinstance(source.get("data"), str) else None


def _name(name: str, value: dict[Any, Any], key: str) -> str:
    """What the field ``key`` is called, for what it is."""
    is_text = name in _OPEN or (key == "data" and value.get("type") == "text")
    return "text" if is_text else key


def _is_silent(value: dict[Any, Any], key: str) -> bool:
    kind = value.get("type")
    if not isinstance(kind, str):
        return False
    return (kind in _OPAQUE and key == "data") or (key in _REFERENCES and kind.endswith(_REFERRING))


def _role(value: dict[Any, Any], role: Role) -> Role:
    said, kind = value.get("role"), value.get("type")
    if isinstance(said, str):
        return _ROLES.get(said, "user")
    if not isinstance(kind, str):
        return role
    if kind.endswith(("_output", "tool_result")):
        return "tool"
    return "assistant" if kind.endswith("_call") or kind == "reasoning" else role


def step(path: str, key: str) -> str:
    return f"{path}.{key}" if key.isidentifier() else f"{path}[{_encoded(key)}]"


def _json(path: str, value: Any, holder: Any, at: Any, role: Role) -> Slot:
    text = _encoded(value)
    return Slot(path, text, holder, at, role, "json" if text else "unread")


def _encoded(value: Any) -> str:
    """As JSON; empty where it has a number too big to be written."""
    try:
        return msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, OverflowError, RecursionError):
        return ""


def _object(text: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"text": text}


def descriptions(holder: Any, at: Any, path: str) -> Iterator[Slot]:
    """What tools and schemas say of themselves."""
    waiting = [(holder, at, path)]
    while waiting:
        holder, at, path = waiting.pop()
        value = holder[at]
        if isinstance(value, str):
            if value and at == "description":
                yield Slot(path, value, holder, at, "system")
        elif isinstance(value, dict):
            waiting.extend((value, key, step(path, key)) for key in reversed(value))
        elif isinstance(value, list):
            waiting.extend((value, i, f"{path}[{i}]") for i in range(len(value) - 1, -1, -1))


_SCHEMAS: Final = frozenset({"tools", "functions", "response_format", "text"})


def request_places(document: Document, fields: Mapping[str, Role]) -> list[Place]:
    """The texts in the ``fields`` of a request, message by message."""
    found: list[Place] = []
    for name, role in fields.items():
        try:
            value = document.get(name, Any)
        except InvalidField:
            found.append(Place(role, name, "", readable=False))
            continue
        for path, slots in _messages(name, value, role):
            found += _places(path, slots)
    return found


def rewrite_request(document: Document, fields: Mapping[str, Role], changes: Mapping[str, str]) -> None:
    """Replace texts by their paths. A field without a change keeps its bytes."""
    for name, role in fields.items():
        if not any(path.startswith(name) for path in changes):
            continue
        try:
            value = document.get(name, Any)
        except InvalidField:
            continue
        holder = {name: value}
        changed = [slot for slot in _slots(holder, name, role) if slot.text != changes.get(slot.path, slot.text)]
        for slot in changed:
            slot.put(changes[slot.path])
        if changed:
            document.set(name, holder[name])


def _slots(holder: dict[str, Any], name: str, role: Role) -> list[Slot]:
    return list(descriptions(holder, name, name) if name in _SCHEMAS else walk(holder, name, name, role))


def _messages(name: str, value: Any, role: Role) -> Iterator[tuple[str, list[Slot]]]:
    slots = _slots({name: value}, name, role)
    if name in ("messages", "input") and isinstance(value, list):
        by_message: dict[str, list[Slot]] = {}
        for slot in slots:
            by_message.setdefault(slot.path[: slot.path.find("]") + 1] or name, []).append(slot)
        yield from by_message.items()
    else:
        yield name, slots


def _places(path: str, slots: Iterable[Slot]) -> list[Place]:
    places = [
        Place(slot.role, slot.path, slot.text if slot.what != "unread" else "", readable=slot.what != "unread")
        for slot in slots
        if slot.what != "image"
    ]
    images = [slot for slot in slots if slot.what == "image"]
    if images:
        urls = tuple(slot.text for slot in images)
        at = next((i for i, place in enumerate(places) if place.readable), None)
        if at is None:
            places.append(Place(images[0].role, path, "", urls))
        else:
            places[at] = places[at]._replace(images=urls)
    return places


class Running:
    """The texts of one stream: which have begun, and which may go on."""

    __slots__ = ("_count", "_once", "_open", "_seen")

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._open: dict[str, None] = {}
        self._once: list[str] = []
        self._count = 0

    def pieces(self, said: Iterable[Said]) -> list[Piece]:
        """What one event says."""
        found: list[Piece] = []
        for key, slot, whole, once, copy in said:
            if slot.what not in ("text", "json"):
                found.append(Piece("", "", slot.path, readable=False))
            elif once:
                self._count += 1
                self._once.append(f"{key}#{self._count}")
                found.append(Piece(self._once[-1], slot.text, slot.path, copy=copy))
            else:
                found.append(Piece(key, slot.text, slot.path, whole and key in self._seen, copy))
                self._seen.add(key)
                self._open[key] = None
        return found

    def closed(self, ends: Callable[[str], bool] | None = None) -> list[str]:
        """The keys of the texts that are complete with this event; to be asked once for each."""
        closed, self._once = self._once, []
        if ends is not None:
            closed += [key for key in self._open if ends(key)]
            for key in closed:
                self._open.pop(key, None)
        return closed


def whole_pieces(said: Iterable[Said]) -> list[Piece]:
    """What a whole answer says."""
    return [
        Piece(key, slot.text, slot.path, copy=copy)
        if slot.what in ("text", "json")
        else Piece("", "", slot.path, readable=False)
        for key, slot, _, _, copy in said
    ]


UNREADABLE: Final = Piece("", "", readable=False)
"""Stands for a body or an event that is not what its API says."""


def erase_traces(value: Any) -> None:
    """Take away what tells the text a second time, token by token."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, dict):
            for name in _TRACES & item.keys():
                item[name] = [] if isinstance(item[name], list) else None
            waiting.extend(item.values())
