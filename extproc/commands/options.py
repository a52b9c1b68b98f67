"""Options of consumers and teams, and what they are as fields."""

from typing import Annotated, Any

import typer

from extproc.commands import rules
from extproc.commands.common import fail

Models = Annotated[list[str] | None, typer.Option("--model", help="Glob of models that may be used; repeatable.")]
Endpoints = Annotated[list[str] | None, typer.Option("--endpoint", help="Endpoint that may be called; repeatable.")]
Quotas = Annotated[list[str] | None, typer.Option("--quota", help="Such as '10M tokens/month'; repeatable.")]
Limits = Annotated[
    list[str] | None, typer.Option("--limit", help="Such as '60 requests/minute' or '8 concurrent'; repeatable.")
]
Policy = Annotated[str | None, typer.Option("--policy", help="The policy of its calls.")]


def settings(
    *,
    model: list[str] | None,
    endpoint: list[str] | None,
    quota: list[str] | None,
    limit: list[str] | None,
    **more: str | None,
) -> dict[str, Any]:
    """The fields of those that were given; an empty text stands for what they are by themselves."""
    found: dict[str, Any] = {name: value or None for name, value in more.items() if value is not None}
    if model is not None:
        found["models"] = _given(model) or ["*"]
    if endpoint is not None:
        found["endpoints"] = _given(endpoint)
    try:
        if quota is not None:
            found["quota"] = [rules.quota(text) for text in _given(quota)]
        if limit is not None:
            found["limits"] = [rules.limit(text) for text in _given(limit)]
    except ValueError as error:
        fail(str(error), 2)
    return found


def _given(texts: list[str]) -> list[str]:
    return [text for text in texts if text]
