"""The HTTP admin API: teams, consumers, keys, usage, ledger, audit. What blocks runs in threads."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from extproc.admin import routes
from extproc.admin.errors import Invalid
from extproc.admin.guard import error
from extproc.admin.operations import Operations
from extproc.admin.records import Records
from extproc.audit.record import AuditStore
from extproc.config.load import described
from extproc.config.schema import Config
from extproc.stores.ports import Conflict, DatabaseUnavailable, Ledger, NotFound, Register, StateUnavailable
from extproc.telemetry import log

_LOG = log.get()
_ABOUT: Final = (
    "Teams, consumers and keys of the database, usage, ledger and audit. Every request needs a token "
    "(`Authorization: Bearer TOKEN`) or, where the server asks for them, a client certificate."
)
_STATUSES: Final[dict[type[Exception], tuple[int, str]]] = {
    Invalid: (422, "invalid"),
    NotFound: (404, "not_found"),
    Conflict: (409, "conflict"),
    DatabaseUnavailable: (503, "database_unavailable"),
    StateUnavailable: (503, "state_unavailable"),
}
_CODES: Final = {404: "not_found", 405: "method_not_allowed", 501: "not_implemented"}


@dataclass(frozen=True, slots=True)
class Backend:
    """What the API shows and changes. ``config`` and ``tokens`` (SHA-256) give what is in force.

    ``pools``: the state of providers' key pools. ``verify``: where the books do not agree. ``quota``: of a consumer by
    name, the numbers as they are now; None where nobody can say.
    """

    register: Register
    ledger: Ledger
    audit: AuditStore
    config: Callable[[], Config]
    tokens: Callable[[], Sequence[bytes]]
    pools: routes.Pools
    verify: routes.Verify
    quota: routes.Quota | None = None


def api(backend: Backend) -> FastAPI:
    """The application, to be mounted behind a Guard."""
    made = FastAPI(
        title="extproc admin API",
        description=_ABOUT,
        version=version("extproc"),
        docs_url=None,
        redoc_url=None,
        responses={
            401: {"model": routes.Error, "description": "No token, or a wrong one"},
            422: {"model": routes.Error, "description": "What was sent cannot be used"},
            503: {"model": routes.Error, "description": "The database or the hot state is away"},
        },
        # For the document alone: the Guard has seen to it before.
        dependencies=[Security(HTTPBearer(auto_error=False))],
        exception_handlers={
            **dict.fromkeys(_STATUSES, _on_error),
            RequestValidationError: _on_invalid,
            HTTPException: _on_http,
            Exception: _on_unexpected,
        },
    )

    def changed(action: str, name: str, **more: str) -> None:
        _LOG.info("admin", action=action, name=name, **more)

    operations = Operations(backend.register, backend.config, changed)
    routes.add_teams(made, operations)
    routes.add_consumers(made, operations, backend.quota)
    routes.add_keys(made, operations)
    routes.add_reports(made, backend.ledger, backend.config, backend.verify)
    routes.add_audit(made, Records(backend.audit, lambda: backend.config().accounts.timezone))
    routes.add_providers(made, backend.pools)

    @made.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(_page(made.openapi()))

    return made


# --- errors ---------------------------------------------------------------------------------------------------


async def _on_error(_: Request, problem: Any) -> Response:
    status, code = _STATUSES[type(problem)]
    return error(code, str(problem), status)


async def _on_invalid(_: Request, problem: Any) -> Response:
    # The first part of a place says that it is of the body, or of the query.
    errors = [{**each, "loc": each["loc"][1:]} for each in problem.errors()]
    return error("invalid", "; ".join(str(each) for each in described(errors)), 422)


async def _on_http(_: Request, problem: Any) -> Response:
    return error(_CODES.get(problem.status_code, "error"), str(problem.detail), problem.status_code, problem.headers)


async def _on_unexpected(_: Request, __: Any) -> Response:
    return error("unexpected", "Something went wrong; the log says what.", 500)


# --- documentation --------------------------------------------------------------------------------------------


def _page(document: dict[str, Any]) -> str:
    """A table of the routes: no script, and nothing from elsewhere, runs where tokens are at hand."""
    rows = [
        f"<tr><td>{method.upper()}<td>{html.escape(path)}<td>{html.escape(operation.get('description', ''))}"
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]
    title = html.escape(document["info"]["title"])
    about = html.escape(document["info"]["description"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1><p>{about}</p>'
        f'<p>Bodies and answers are described in <a href="openapi.json">openapi.json</a>.</p>'
        f"<table>{''.join(rows)}</table></html>"
    )
