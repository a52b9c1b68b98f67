"""Content security: what goes in is judged before the provider reads it, what comes out before the client does."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from extproc.core.call import Call, Consumer, Model, Outcome, Verdict
from extproc.core.errors import ContentBlocked, InvalidRequest, PolicyUnavailable
from extproc.core.filter import Cut, Filter, Reply
from extproc.core.tasks import Tasks
from extproc.dialects import base as dialects
from extproc.dialects.document import InvalidField
from extproc.dialects.places import Piece, Place
from extproc.dialects.sse import Event
from extproc.moderation.masks import Restorer, Vault
from extproc.moderation.rules import Guard, Rule, blocking
from extproc.moderation.types import Action, Image, Item, JudgeFailed, Match, Role
from extproc.moderation.window import Running

_LARGE: Final = 16_384
"""Characters that are judged in a thread, so that other calls go on."""
_CONTEXT: Final = 4
"""Messages before the one that a judge is asked about."""
_BORDERS: Final = frozenset("。！？；\n.!?;")
_SEEN: Final = 100_000
_UNREADABLE: Final = Verdict("response", "moderation", "unreadable", "block")


@dataclass(slots=True)
class _Held:
    """An event of a stream, with where each of its pieces ends in its text."""

    event: Event
    ends: list[tuple[Running, Piece, int]]
    came: float


@dataclass(slots=True)
class _Text:
    """One running text of the answer."""

    running: Running
    restorer: Restorer | None
    asked: int = 0
    sent: str = field(default="", repr=False)


class Moderation(Filter):
    def __init__(self, call: Call, plugin: "ModerationPlugin") -> None:
        self._call = call
        self._plugin = plugin
        self._guard = plugin.default
        self._vaults: dict[str, Vault] = {}
        self._places: list[Place] = []
        self._thinking: asyncio.Task[list[Verdict]] | None = None
        self._texts: dict[str, _Text] = {}
        self._held: deque[_Held] = deque()
        self._tasks = Tasks()
        self._unreadable = False

    # --- what goes in -----------------------------------------------------------------------------------------

    async def on_request(self) -> Reply | None:
        call = self._call
        if call.endpoint is None or call.document is None or call.consumer is None:
            return None
        model = self._plugin.models.get(call.request.model) if call.request else None
        self._guard = guard = self._plugin.guard(call.consumer, model)
        if not guard.request:
            return None
        try:
            self._places = places = dialects.request_texts(call.endpoint, call.document)
        except InvalidField as error:
            raise InvalidRequest(str(error), param=error.name) from error
        if guard.refuse_unreadable and (unread := next((p for p in places if not p.readable), None)):
            raise ContentBlocked(f"A part of the request cannot be checked: {unread.path}.", param=unread.path)
        for style in ("label", "stars", "hash"):
            self._vaults[style] = Vault((place.text for place in places), style=style)
        if sum(len(place.text) for place in places) > _LARGE:
            changed, verdicts = await asyncio.to_thread(self._check, places)
        else:
            changed, verdicts = self._check(places)
        call.verdicts += verdicts
        if blocked := blocking(verdicts):
            return self._blocked(blocked)
        judged = [place._replace(text=changed.get(place.path, place.text)) for place in places]
        if changed:
            dialects.rewrite_request(call.endpoint, call.document, changed)
        blocked = blocking(await self._ask(judged, parallel=False))
        if blocked is not None:
            return self._blocked(blocked)
        if any(rule.judge and rule.parallel for rule in guard.request):
            self._thinking = self._tasks.spawn(self._ask(judged, parallel=True))
        return None

    def _check(self, places: Sequence[Place]) -> tuple[dict[str, str], list[Verdict]]:
        """The checks of this process, in order: each sees what the one before it masked."""
        texts = {place.path: place.text for place in places if place.text}
        changed: dict[str, str] = {}
        verdicts: list[Verdict] = []
        for rule in self._guard.request:
            if rule.check is None:
                continue
            for place in places:
                text = texts.get(place.path)
                if text is None or not rule.concerns(place.role):
                    continue
                masks = []
                for match, action in rule.judged(rule.check.find(text)):
                    verdicts.append(rule.verdict(match, action, "request", place.path))
                    if action is Action.MASK:
                        masks.append(match)
                if masks:
                    texts[place.path] = changed[place.path] = self._masked(rule, text, masks)
        return changed, verdicts

    def _masked(self, rule: Rule, text: str, matches: Sequence[Match]) -> str:
        vault = self._vaults["label" if rule.restore else rule.style]
        return vault.mask(text, matches, rule.restore)

    async def _ask(self, places: Sequence[Place], *, parallel: bool) -> list[Verdict]:
        """The judges, all at once. Raises PolicyUnavailable where one has no opinion and must have."""
        asked = [
            self._judge(rule, self._item(places, number), place.path, "request")
            for rule in self._guard.request
            if rule.judge is not None and rule.parallel is parallel
            for number, place in enumerate(places)
            if (place.text.strip() or place.images) and rule.concerns(place.role)
        ]
        verdicts = [verdict for found in await asyncio.gather(*asked) for verdict in found]
        self._call.verdicts += verdicts
        return verdicts

    @staticmethod
    def _item(places: Sequence[Place], number: int) -> Item:
        place = places[number]
        before: list[tuple[Role, str]] = [
            (p.role, p.text) for p in places[max(number - _CONTEXT, 0) : number] if p.text
        ]
        last = number == len(places) - 1
        return Item(place.text, "request", place.role, [Image(url) for url in place.images], before if last else ())

    async def _judge(self, rule: Rule, item: Item, place: str, direction: str) -> list[Verdict]:
        assert rule.judge is not None  # noqa: S101 - only such rules come here
        digest = _digest(rule.name, item)
        if digest in self._plugin.passed:
            return []
        try:
            opinion = await rule.judge.judge(item)
        except JudgeFailed as error:
            self._plugin.on_failure(rule.name, error.reason)
            failed = Verdict(direction, rule.name, error.reason, "error", 0.0, place)
            if not rule.refuse_on_error:
                return [failed]
            self._call.verdicts.append(failed)
            raise PolicyUnavailable("The text could not be checked, so it was not let through.") from error
        verdicts = rule.verdicts(opinion, item.direction, place)
        if not verdicts:
            self._plugin.passed.add(digest)
        return verdicts

    # --- what comes out ---------------------------------------------------------------------------------------

    async def on_response_head(self) -> Reply | None:
        """The verdict of judges that thought while the provider worked, before the client gets anything."""
        if self._thinking is None:
            return None
        blocked = blocking(await self._thinking)
        return self._blocked(blocked) if blocked else None

    async def on_response(self) -> None:
        call = self._call
        if call.endpoint is None or (call.answered is not None and call.answered.status >= 300):
            return
        pieces = dialects.answer_texts(call.endpoint, call.answer)
        if self._guard.response and self._guard.refuse_unreadable and not all(piece.readable for piece in pieces):
            self._replace(_UNREADABLE)
            return
        changed: dict[str, str] = {}
        for piece in pieces:
            if not piece.key or not piece.text:
                continue
            running = self._running(piece.key).running
            running.add(piece.text)
            verdicts = running.settle(due=True, final=True)
            if blocking(verdicts) is None:
                verdicts += await self._ask_about(piece.text, piece.path)
            call.verdicts += verdicts
            if blocked := blocking(verdicts):
                self._replace(blocked)
                return
            said = self._said(piece, len(piece.text), final=True)
            if said != piece.text:
                changed[piece.path] = said
        if changed:
            call.answer = dialects.rewrite_answer(call.endpoint, call.answer, changed)

    def _replace(self, blocked: Verdict) -> None:
        reply = self._blocked(blocked)
        self._call.answer = reply.body
        if self._call.answered is not None:
            for name, value in reply.headers.items():
                self._call.answered.headers[name] = value

    async def on_events(self, events: Sequence[Event], *, final: bool) -> Sequence[Event]:
        call, guard = self._call, self._guard
        if call.reader is None or call.endpoint is None or not (guard.response or self._originals):
            return events
        now = self._plugin.clock()
        for event in events:
            self._held.append(self._hold(event, now))
        if self._unreadable and guard.response and guard.refuse_unreadable:
            self._end(_UNREADABLE)
        due = bool(self._held) and now - self._held[0].came >= guard.hold.time
        for text in self._texts.values():
            await self._settle(text, due=due, final=final)
        out = self._released(final=final)
        waited = now - self._held[0].came if self._held else 0.0
        call.wake_after = max(guard.hold.time - waited, guard.hold.time / 4) if self._held else None
        return out

    @property
    def _originals(self) -> Mapping[str, str]:
        vault = self._vaults.get("label")
        return vault.originals if vault else {}

    def _hold(self, event: Event, now: float) -> _Held:
        ends = []
        for piece in event.chunk.pieces if event.chunk is not None else ():
            if not piece.readable:
                self._unreadable = True
            if not piece.key:
                continue
            running = self._running(piece.key).running
            if not piece.again:
                running.add(piece.text)
            ends.append((running, piece, running.end))
        return _Held(event, ends, now)

    def _running(self, key: str) -> _Text:
        known = self._texts.get(key)
        if known is None:
            json = "/arguments" in key
            running = Running(key, self._guard.response, hold=self._guard.hold.chars, mask=self._mask_of)
            vault = self._vaults.get("label")
            known = self._texts[key] = _Text(running, vault.restorer(json=json) if vault and vault.originals else None)
        return known

    def _mask_of(self, rule: Rule, text: str, match: Match) -> str:
        vault = self._vaults.setdefault(f"out/{rule.style}", Vault(style=rule.style))
        return vault.mask(text, [match._replace(start=0, end=len(text))], False)

    async def _settle(self, text: _Text, *, due: bool, final: bool) -> None:
        """As far as checks and judges allow; raises Cut where one of them blocks."""
        running, judges = text.running, [rule for rule in self._guard.response if rule.judge is not None]
        until = None
        verdicts: list[Verdict] = []
        if judges:
            window = running.text(text.asked, running.end)
            border = max((place for place, letter in enumerate(window) if letter in _BORDERS), default=-1) + 1
            if final or due or len(window) >= self._guard.hold.window:
                border = len(window)
            if border:
                overlap = running.text(max(text.asked - 100, 0), text.asked)
                verdicts += await self._ask_about(overlap + window[:border], running.place)
                text.asked += border
            until = text.asked
        if blocking(verdicts) is None:
            verdicts = running.settle(due=due, final=final, until=until) + verdicts
        self._call.verdicts += verdicts
        if blocked := blocking(verdicts):
            self._end(blocked)

    async def _ask_about(self, text: str, place: str) -> list[Verdict]:
        rules = [rule for rule in self._guard.response if rule.judge is not None]
        if not rules or not text.strip():
            return []
        asked = [(p.role, p.text) for p in self._places[-1:] if p.text]
        item = Item(text, "response", "assistant", (), asked)
        found = await asyncio.gather(*(self._judge(rule, item, place, "response") for rule in rules))
        return [verdict for verdicts in found for verdict in verdicts]

    def _end(self, blocked: Verdict) -> None:
        call = self._call
        assert call.reader is not None  # noqa: S101 - a stream
        body = b"".join(event.raw for event in self._released(final=False))
        raise Cut(body + call.reader.blocked(self._plugin.ending(call, self._sentence(blocked))), "content_blocked")

    def _released(self, *, final: bool) -> list[Event]:
        """The events, in order, whose texts are settled."""
        out: list[Event] = []
        left = Counter(piece.key for held in self._held for _, piece, _ in held.ends) if final else None
        while self._held and (final or all(end <= running.settled for running, _, end in self._held[0].ends)):
            held = self._held.popleft()
            self._call.held = max(self._call.held, self._plugin.clock() - held.came)
            last = set(held.event.chunk.closes) if held.event.chunk is not None else set()
            if left is not None:
                left.subtract(piece.key for _, piece, _ in held.ends)
                last.update(piece.key for _, piece, _ in held.ends if not left[piece.key])
            out += self._rewritten(held, last)
        if self._call.reader is not None:
            for event in out:
                self._call.reader.sent(event)
        return out

    def _rewritten(self, held: _Held, last: AbstractSet[str]) -> list[Event]:
        """``last``: keys of texts that end with this event."""
        call, event = self._call, held.event
        if call.endpoint is None or event.chunk is None:
            return [event]
        said, changed = [], False
        for _, piece, end in held.ends:
            text = self._said(piece, end, final=piece.key in last)
            changed = changed or text != piece.text
            said.append(text)
        before = [
            Event(dialects.text_event(call.endpoint, event, key, rest))
            for key in last - {piece.key for _, piece, _ in held.ends}
            if (rest := self._rest(key))
        ]
        if changed:
            texts = iter(said)
            whole = [next(texts) if piece.key else piece.text for piece in event.chunk.pieces]
            event = Event(
                dialects.rewrite_event(call.endpoint, event, whole), event.data, event.type, chunk=event.chunk
            )
        return [*before, event]

    def _rest(self, key: str) -> str:
        text = self._texts.get(key)
        rest = text.restorer.feed("", final=True) if text and text.restorer else ""
        if text:
            text.sent += rest
        return rest

    def _said(self, piece: Piece, end: int, *, final: bool) -> str:
        """What of a piece goes to the client."""
        text = self._texts[piece.key]
        if piece.again:
            return text.sent
        said, _ = text.running.take(end)
        if text.restorer is not None:
            said = text.restorer.feed(said, final=final)
        text.sent += said
        return said

    # --- ends -------------------------------------------------------------------------------------------------

    async def on_done(self, outcome: Outcome) -> None:
        """A judge whose opinion nobody waits for need not give it."""
        del outcome
        await self._tasks.cancel()

    def _sentence(self, blocked: Verdict) -> str:
        asked = next((place.text for place in reversed(self._places) if place.role == "user"), "")
        return self._guard.sentence(blocked.category, asked)

    def _blocked(self, blocked: Verdict) -> Reply:
        """A normal completion that says the sentence; an error where the policy, or the endpoint, has it so."""
        call, guard, sentence = self._call, self._guard, self._sentence(blocked)
        call.metadata["blocked"] = blocked.category
        if guard.status is None and call.endpoint is not None and call.request is not None:
            ending = self._plugin.ending(call, sentence)
            answer = dialects.blocked_answer(call.endpoint, ending, stream=call.request.stream)
            if answer is not None:
                body, kind = answer
                return Reply(body, headers={"content-type": kind})
        raise ContentBlocked(sentence, status=guard.status or 400)


class Passed:
    """Digests of texts that a judge had nothing against: the newest, as many as fit."""

    def __init__(self, room: int = _SEEN) -> None:
        self._room = room
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        if digest not in self._known:
            return False
        self._known.move_to_end(digest)
        return True

    def add(self, digest: bytes) -> None:
        self._known[digest] = None
        if len(self._known) > self._room:
            self._known.popitem(last=False)


def _digest(rule: str, item: Item) -> bytes:
    said = blake2b(digest_size=16)
    for part in (rule, item.direction, item.role, item.text, *(image.url for image in item.images)):
        said.update(len(part).to_bytes(8) + part.encode("utf-8", "surrogatepass"))
    for role, text in item.context if item.direction == "response" else ():
        said.update(f"{role}\0{text}\0".encode("utf-8", "surrogatepass"))
    return said.digest()


class ModerationPlugin:
    """``guard`` gives what the policy of a consumer and a model says; ``clock`` is monotonic, ``wall`` is not."""

    def __init__(
        self,
        *,
        guard: Callable[[Consumer, Model | None], Guard],
        models: Mapping[str, Model],
        on_failure: Callable[[str, str], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.guard = guard
        self.models = models
        self.on_failure = on_failure
        self.clock = clock
        self.wall = wall
        self.default = Guard()
        self.passed = Passed()

    def open(self, call: Call) -> Filter | None:
        return Moderation(call, self) if call.endpoint else None

    def ending(self, call: Call, sentence: str) -> dialects.Ending:
        usage = call.request is not None and call.request.wants_stream_usage
        return dialects.Ending(sentence=sentence, created=int(self.wall()), call_id=call.id, include_usage=usage)
