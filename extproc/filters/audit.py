"""The outermost concern: every call leaves one trace, however it ended, and a record of what was said."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from extproc.audit.record import Message, Record, TextForm, kept
from extproc.audit.record import Verdict as Judged
from extproc.core.call import Call, Outcome
from extproc.core.filter import Filter, Reply
from extproc.dialects import base as dialects
from extproc.dialects.document import Document, InvalidField
from extproc.dialects.endpoints import Endpoint
from extproc.dialects.sse import Event
from extproc.dialects.usage import Usage
from extproc.moderation.masks import Vault
from extproc.moderation.types import Check

Observe = Callable[[Call, Outcome], None]
MAX_TEXT: Final = 1 << 20
"""Characters of an answer that a record keeps."""


class Audit(Filter):
    def __init__(self, call: Call, plugin: "AuditPlugin") -> None:
        self._call = call
        self._plugin = plugin
        self._form: TextForm = "none"
        self._asked = b""
        self._said: dict[str, list[str]] = {}
        self._room = MAX_TEXT

    async def on_request(self) -> Reply | None:
        call = self._call
        if call.consumer is not None:
            self._form = self._plugin.form(call)
            if call.document is not None:
                self._asked = call.document.body
        return None

    async def on_response(self) -> None:
        """What the client gets, after everything that was done about it."""
        call = self._call
        if self._form != "none" and call.endpoint is not None:
            for piece in dialects.answer_texts(call.endpoint, call.answer):
                self._note(piece.key, piece.text)

    async def on_events(self, events: Sequence[Event], *, final: bool) -> Sequence[Event]:
        del final
        if self._form != "none":
            for event in events:
                for piece in event.chunk.pieces if event.chunk is not None else ():
                    if not piece.again:
                        self._note(piece.key, piece.text)
        return events

    def _note(self, key: str, text: str) -> None:
        if key and self._room > 0:
            self._said.setdefault(key, []).append(text[: self._room])
            self._room -= len(text)

    async def on_done(self, outcome: Outcome) -> None:
        call, plugin = self._call, self._plugin
        plugin.observe(call, outcome)
        if call.consumer is None or call.endpoint is None:
            return
        if self._form == "none" or call.document is None:
            plugin.put(self._record(outcome, [], [], []))
            return
        # What was said is read once more, and masked, where no other call waits for it.
        request, answer, images = await asyncio.to_thread(self._texts, call.endpoint, call.document)
        plugin.put(self._record(outcome, request, answer, images))

    def _texts(self, endpoint: Endpoint, document: Document) -> tuple[list[Message], list[Message], list[str]]:
        form = self._form
        try:
            # Moderation has masked the document by now; to keep all of it is to keep what came.
            places = dialects.request_texts(endpoint, document if form == "masked" else Document.parse(self._asked))
        except ValueError:
            places = []
        asked = [(place.role, place.text) for place in places if place.text]
        said = [(key.split("/")[1], "".join(texts)) for key, texts in self._said.items()]  # by kind: content, reasoning
        if form == "masked":
            vault = Vault()
            asked = [(role, self._masked(vault, text)) for role, text in asked]
            said = [(role, self._masked(vault, text)) for role, text in said]
        images = [hashlib.sha256(url.encode()).hexdigest() for place in places for url in place.images]
        return kept(form, asked), kept(form, said), images

    def _masked(self, vault: Vault, text: str) -> str:
        found = [match for check in self._plugin.private for match in check.find(text)]
        return vault.mask(text, sorted(found), restore=False) if found else text

    def _record(self, outcome: Outcome, request: list[Message], answer: list[Message], images: list[str]) -> Record:
        call, plugin = self._call, self._plugin
        assert call.consumer is not None  # noqa: S101 - calls of nobody have no record
        answered, usage = call.answered, call.usage or Usage()
        return Record(
            call_id=call.id,
            time=call.time,
            consumer=call.consumer.name,
            team=call.consumer.team,
            key=call.key,
            model=call.model.name if call.model else "",
            endpoint=call.endpoint.name if call.endpoint else "",
            provider=answered.provider if answered else "",
            target=answered.target if answered else "",
            attempts=answered.attempts if answered else 0,
            how=outcome.how,
            status=outcome.status,
            code=outcome.code,
            stream=bool(call.request and call.request.stream),
            input=usage.input,
            output=usage.output,
            cached=usage.cached,
            cache_creation=usage.cache_creation,
            reasoning=usage.reasoning,
            usage=usage.source if call.usage else "",
            cost=call.cost,
            currency=plugin.currency,
            cache=call.cache,
            policy=plugin.policy(call),
            verdicts=[_judged(call, number) for number in range(len(call.verdicts))],
            seconds=plugin.clock() - call.started,
            first_byte=None if call.first_byte_at is None else call.first_byte_at - call.started,
            own=call.own_seconds,
            held=call.held,
            text=self._form,
            request=request,
            answer=answer,
            images=images,
            user=_field(call, "user", str, ""),
            metadata=_field(call, "metadata", dict, {}),
        )


def _judged(call: Call, number: int) -> Judged:
    verdict = call.verdicts[number]
    return Judged(
        check=verdict.check,
        category=verdict.category,
        action=verdict.action,
        score=verdict.score,
        direction="response" if verdict.direction == "response" else "request",
        place=verdict.place,
        start=verdict.start,
        end=verdict.end,
        what=verdict.what,
    )


def _field(call: Call, name: str, kind: type[Any], otherwise: Any) -> Any:
    try:
        found = call.document.get(name, kind) if call.document else None
    except InvalidField:
        return otherwise
    return otherwise if found is None else cast(Any, found)


class AuditPlugin:
    """``form``: how texts of a call are kept. ``policy``: which says so. ``private``: finds what `masked` masks.

    ``put`` takes the record, and never waits; ``clock`` is the one that ``call.started`` was read from.
    """

    def __init__(
        self,
        observe: Observe,
        *,
        put: Callable[[Record], None],
        form: Callable[[Call], TextForm],
        policy: Callable[[Call], str],
        private: Sequence[Check],
        clock: Callable[[], float],
        currency: str,
    ) -> None:
        self.observe = observe
        self.put = put
        self.form = form
        self.policy = policy
        self.private = private
        self.clock = clock
        self.currency = currency

    def open(self, call: Call) -> Filter:
        return Audit(call, self)
