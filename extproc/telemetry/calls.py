"""One call → one canonical log line and its metrics."""

from collections.abc import Callable

from extproc.core.attempt import Attempt
from extproc.core.call import Call, Outcome
from extproc.dialects.usage import Usage
from extproc.telemetry import log, metrics

_LOG = log.get()


def observer(clock: Callable[[], float]) -> Callable[[Call, Outcome], None]:
    """What the audit filter calls when a call is over; ``clock`` is the one that ``call.started`` was read from."""

    def observe(call: Call, outcome: Outcome) -> None:
        seconds = clock() - call.started
        _count(call, outcome, seconds)
        _LOG.info("call", **_line(call, outcome, seconds))

    return observe


def count_attempt(attempt: Attempt) -> None:
    metrics.counter(metrics.ATTEMPTS, attempt.provider, attempt.target, str(attempt.number)).inc()


def count_judge_failure(judge: str, reason: str) -> None:
    metrics.counter(metrics.JUDGE_FAILURES, judge, reason).inc()


def error(stage: str) -> Callable[[str, BaseException], None]:
    """What a state machine calls with an exception that nobody foresaw."""

    def on_error(call_id: str, exception: BaseException) -> None:
        metrics.counter(metrics.ERRORS, stage).inc()
        _LOG.error("unexpected", stage=stage, call_id=call_id, exc_info=exception)

    return on_error


def _count(call: Call, outcome: Outcome, seconds: float) -> None:
    endpoint = call.endpoint.name if call.endpoint else "other"
    consumer = call.consumer.name if call.consumer else ""
    model = call.model.name if call.model else ""
    streamed = "yes" if call.reader is not None else "no"
    metrics.counter(metrics.CALLS, endpoint, model, consumer, outcome.how, str(outcome.status)).inc()
    if outcome.how in ("refused", "failed"):
        metrics.counter(metrics.REFUSALS, outcome.code).inc()
    for verdict in call.verdicts:
        metrics.counter(metrics.VERDICTS, verdict.direction, verdict.check, verdict.category, verdict.action).inc()
    if call.held:
        metrics.histogram(metrics.HELD_SECONDS, endpoint).observe(call.held)
    metrics.histogram(metrics.CALL_SECONDS, endpoint, streamed).observe(seconds)
    metrics.histogram(metrics.OWN_SECONDS, "router").observe(call.own_seconds)
    if call.first_byte_at is not None:
        metrics.histogram(metrics.FIRST_BYTE_SECONDS, endpoint, streamed).observe(call.first_byte_at - call.started)
    if call.usage is not None:
        provider = call.answered.provider if call.answered else ""
        for kind, tokens in _kinds(call.usage):
            metrics.counter(metrics.TOKENS, consumer, model, provider, kind, call.usage.source).inc(tokens)


def _kinds(usage: Usage) -> list[tuple[str, int]]:
    kinds = [("input", usage.input), ("output", usage.output)]
    for kind, tokens in (
        ("cached", usage.cached),
        ("cache_creation", usage.cache_creation),
        ("reasoning", usage.reasoning),
    ):
        if tokens:
            kinds.append((kind, tokens))
    return kinds


def _line(call: Call, outcome: Outcome, seconds: float) -> dict[str, object]:
    line: dict[str, object] = {
        "call_id": call.id,
        "how": outcome.how,
        "status": outcome.status,
        "endpoint": call.endpoint.name if call.endpoint else call.path[:100],
        "seconds": round(seconds, 6),
        "own_seconds": round(call.own_seconds, 6),
    }
    if outcome.code:
        line["code"] = outcome.code
    if call.consumer is not None:
        line["consumer"] = call.consumer.name
    if call.request is not None:
        line["model"] = call.request.model[:128]
        line["stream"] = call.request.stream
    if call.answered is not None and call.answered.provider:
        line |= {
            "provider": call.answered.provider,
            "target": call.answered.target,
            "attempts": call.answered.attempts,
        }
    if call.verdicts:
        line["verdicts"] = sorted({f"{v.direction}/{v.check}/{v.category}/{v.action}" for v in call.verdicts})
    if call.first_byte_at is not None:
        line["first_byte_seconds"] = round(call.first_byte_at - call.started, 6)
    if call.events:
        line["events"] = call.events
    if call.usage is not None:
        line |= {
            "input_tokens": call.usage.input,
            "output_tokens": call.usage.output,
            "cached_tokens": call.usage.cached,
            "cache_creation_tokens": call.usage.cache_creation,
            "reasoning_tokens": call.usage.reasoning,
            "usage": call.usage.source,
        }
    return line
