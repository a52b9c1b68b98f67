"""What a call used: reported by the provider, or estimated and marked as such."""

from collections.abc import Callable, Sequence

import msgspec

from extproc.core.call import Call, Outcome
from extproc.core.filter import Filter, Reply
from extproc.dialects import base as dialects
from extproc.dialects.endpoints import Endpoint
from extproc.dialects.sse import Event
from extproc.dialects.usage import Usage

AsksUsage = Callable[[str, Endpoint, bool], bool]
"""Provider, endpoint, streamed → whether the attempt asked the provider for usage on the client's behalf."""


class UsageFilter(Filter):
    def __init__(self, call: Call, asks_usage: AsksUsage) -> None:
        self._call = call
        self._asks_usage = asks_usage
        self._hides_usage = False

    async def on_response_head(self) -> Reply | None:
        call = self._call
        if call.request is None or call.endpoint is None or call.answered is None or not call.request.stream:
            return None
        asked = self._asks_usage(call.answered.provider, call.endpoint, True)
        self._hides_usage = asked and not call.request.wants_stream_usage
        return None

    async def on_events(self, events: Sequence[Event], *, final: bool) -> Sequence[Event]:
        reader = self._call.reader
        if reader is None:
            return events
        if reader.usage is not None and reader.usage is not self._call.usage:
            self._book(reader.usage)
        if final and reader.usage_is_partial():
            self._book_what_passed(reader)
        if self._hides_usage:
            return [event for event in events if not reader.is_usage_only(event)]
        return events

    async def on_response(self) -> None:
        facts = self._call.facts
        if facts is None:
            return
        if facts.usage is not None:
            self._book(facts.usage)
        else:
            self._estimate(facts.estimate_output())

    async def on_done(self, outcome: Outcome) -> None:
        """A stream that ended early has used what passed."""
        reader = self._call.reader
        if outcome.how != "completed" and reader is not None and reader.usage_is_partial():
            self._book_what_passed(reader)

    def _book_what_passed(self, reader: dialects.StreamReader) -> None:
        if reader.usage is None:
            self._estimate(reader.estimate_output())
        else:  # the input was reported when the stream began
            self._book(msgspec.structs.replace(reader.usage, output=reader.estimate_output(), source="estimated"))

    def _estimate(self, output: int) -> None:
        call = self._call
        if call.endpoint is None or call.document is None:
            return
        prompt = dialects.estimate_prompt(call.endpoint, call.document)
        self._book(Usage(input=prompt, output=output, source="estimated"))

    def _book(self, usage: Usage) -> None:
        self._call.usage = usage
        self._call.metadata |= {
            "input_tokens": usage.input,
            "output_tokens": usage.output,
            "cached_tokens": usage.cached,
            "cache_creation_tokens": usage.cache_creation,
            "reasoning_tokens": usage.reasoning,
            "usage_source": usage.source,
        }


class UsagePlugin:
    def __init__(self, asks_usage: AsksUsage) -> None:
        self._asks_usage = asks_usage

    def open(self, call: Call) -> Filter | None:
        return UsageFilter(call, self._asks_usage) if call.endpoint else None
