"""The outermost concern: every call leaves one trace, however it ended."""

from collections.abc import Callable

from extproc.core.call import Call, Outcome
from extproc.core.filter import Filter

Observe = Callable[[Call, Outcome], None]


class Audit(Filter):
    def __init__(self, call: Call, observe: Observe) -> None:
        self._call = call
        self._observe = observe

    async def on_done(self, outcome: Outcome) -> None:
        self._observe(self._call, outcome)


class AuditPlugin:
    def __init__(self, observe: Observe) -> None:
        self._observe = observe

    def open(self, call: Call) -> Filter:
        return Audit(call, self._observe)
