"""The filters of one call, outermost first: requests pass them in order, answers in reverse."""

from collections.abc import Callable, Sequence
from typing import Final

from extproc.core.call import Call, Outcome
from extproc.core.filter import Filter, Plugin, Reply
from extproc.dialects.sse import Event

_HOOKS: Final = tuple(name for name in vars(Filter) if name.startswith("on_"))
_overridden: Final[dict[type[Filter], frozenset[str]]] = {}


def _overrides(kind: type[Filter], hook: str) -> bool:
    hooks = _overridden.get(kind)
    if hooks is None:
        hooks = frozenset(name for name in _HOOKS if getattr(kind, name) is not getattr(Filter, name))
        _overridden[kind] = hooks
    return hook in hooks


class Chain:
    """Runs one phase after the other; stops at the first filter that answers or refuses."""

    __slots__ = ("_filters", "_reached")

    def __init__(self, filters: Sequence[Filter]) -> None:
        self._filters = filters
        self._reached = len(filters)

    @classmethod
    def open(cls, plugins: Sequence[Plugin], call: Call) -> "Chain":
        return cls([f for plugin in plugins if (f := plugin.open(call)) is not None])

    async def request_head(self) -> Reply | None:
        for index, each in enumerate(self._filters):
            if _overrides(type(each), "on_request_head") and (reply := await each.on_request_head()) is not None:
                self._reached = index
                return reply
        return None

    async def request(self) -> Reply | None:
        for index, each in enumerate(self._filters):
            if _overrides(type(each), "on_request") and (reply := await each.on_request()) is not None:
                self._reached = index
                return reply
        return None

    async def response_head(self) -> Reply | None:
        for index in range(self._reached - 1, -1, -1):
            each = self._filters[index]
            if _overrides(type(each), "on_response_head") and (reply := await each.on_response_head()) is not None:
                self._reached = index
                return reply
        return None

    async def events(self, events: Sequence[Event], *, final: bool) -> Sequence[Event]:
        for each in self._returning("on_events"):
            events = await each.on_events(events, final=final)
        return events

    async def response(self) -> None:
        """A reply passes only the filters outside the one that made it."""
        for each in self._returning("on_response"):
            await each.on_response()

    async def done(self, outcome: Outcome, on_error: Callable[[BaseException], None]) -> None:
        """Every filter's ``on_done``; one that breaks does not keep the others from settling."""
        for each in reversed(self._filters):
            if _overrides(type(each), "on_done"):
                try:
                    await each.on_done(outcome)
                except Exception as error:  # noqa: BLE001 - each filter settles on its own
                    on_error(error)

    def _returning(self, hook: str) -> list[Filter]:
        return [f for f in reversed(self._filters[: self._reached]) if _overrides(type(f), hook)]
