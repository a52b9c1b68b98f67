"""The routes of the admin API. What blocks runs in threads."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import PlainTextResponse
from msgspec.structs import asdict
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from extproc.admin import reports
from extproc.admin.bodies import (
    AuditPageQuery,
    AuditQuery,
    ConsumerChange,
    ConsumerView,
    CreatedKey,
    Format,
    KeyView,
    NewConsumer,
    NewKey,
    NewTeam,
    Rotation,
    RowsQuery,
    TeamChange,
    TeamView,
    UsageQuery,
)
from extproc.admin.guard import WHO
from extproc.admin.operations import Operations
from extproc.admin.records import Records
from extproc.config.schema import Config
from extproc.stores.ports import Difference, Ledger

Pools = Callable[[], list[dict[str, Any]]]
Verify = Callable[[], Awaitable[list[Difference]]]
Quota = Callable[[str], Awaitable[list[dict[str, Any]]]]


class Reason(BaseModel):
    """A code for programs, a sentence for people."""

    code: str
    message: str


class Error(BaseModel):
    """Why not."""

    error: Reason


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    descriptions = {404: "There is no such thing", 409: "It does not fit what is there", 501: "Nobody can say"}
    return {status: {"model": Error, "description": descriptions[status]} for status in statuses}


def add_teams(made: FastAPI, operations: Operations) -> None:
    @made.get("/teams", tags=["teams"])
    def list_teams() -> list[TeamView]:
        """All teams, of the database and of the configuration file."""
        return operations.teams()

    @made.post("/teams", status_code=201, responses=_errors(409), tags=["teams"])
    def create_team(new: NewTeam) -> TeamView:
        """Make a team."""
        return operations.create_team(new)

    @made.get("/teams/{name:path}", responses=_errors(404), tags=["teams"])
    def show_team(name: str) -> TeamView:
        """One team."""
        return operations.team(name)

    @made.patch("/teams/{name:path}", responses=_errors(404, 409), tags=["teams"])
    def update_team(name: str, change: TeamChange) -> TeamView:
        """Change what is named. A list takes the place of the one before."""
        return operations.update_team(name, change)

    @made.delete("/teams/{name:path}", status_code=204, responses=_errors(404, 409), tags=["teams"])
    def delete_team(name: str) -> None:
        """Only one that has no consumers."""
        operations.delete_team(name)


def add_consumers(made: FastAPI, operations: Operations, quota: Quota | None) -> None:
    @made.get("/consumers", tags=["consumers"])
    def list_consumers(team: str | None = None) -> list[ConsumerView]:
        """All consumers, of the database and of the configuration file."""
        return operations.consumers(team)

    @made.post("/consumers", status_code=201, responses=_errors(409), tags=["consumers"])
    def create_consumer(new: NewConsumer) -> ConsumerView:
        """Make a consumer; it has no keys yet."""
        return operations.create_consumer(new)

    @made.get("/consumers/{name:path}/keys", responses=_errors(404), tags=["keys"])
    def list_keys_of(name: str) -> list[KeyView]:
        """The keys of a consumer that are in the database."""
        return operations.keys(name)

    @made.post("/consumers/{name:path}/keys", status_code=201, responses=_errors(404), tags=["keys"])
    def create_key(name: str, new: NewKey | None = None) -> CreatedKey:
        """Make a key. It is in this answer, and nowhere else."""
        return operations.create_key(name, new or NewKey())

    @made.post("/consumers/{name:path}/enable", responses=_errors(404, 409), tags=["consumers"])
    def enable_consumer(name: str) -> ConsumerView:
        """Let its keys work again."""
        return operations.enable_consumer(name)

    @made.post("/consumers/{name:path}/disable", responses=_errors(404, 409), tags=["consumers"])
    def disable_consumer(name: str) -> ConsumerView:
        """Let none of its keys work until it is enabled."""
        return operations.disable_consumer(name)

    @made.get("/consumers/{name:path}/quota", responses=_errors(404, 501), tags=["consumers"])
    async def show_quota(name: str) -> list[dict[str, Any]]:
        """The numbers of its quotas and limits as they are now."""
        await asyncio.to_thread(operations.consumer, name)
        if quota is None:
            raise HTTPException(501, "This server does not know the numbers in use: ask for the usage.")
        return await quota(name)

    # After everything that goes on behind a consumer's name, which may have slashes in it.
    @made.get("/consumers/{name:path}", responses=_errors(404), tags=["consumers"])
    def show_consumer(name: str) -> ConsumerView:
        """One consumer."""
        return operations.consumer(name)

    @made.patch("/consumers/{name:path}", responses=_errors(404, 409), tags=["consumers"])
    def update_consumer(name: str, change: ConsumerChange) -> ConsumerView:
        """Change what is named. A list takes the place of the one before."""
        return operations.update_consumer(name, change)

    @made.delete("/consumers/{name:path}", status_code=204, responses=_errors(404, 409), tags=["consumers"])
    def delete_consumer(name: str) -> None:
        """Its keys go with it; its rows of the ledger stay."""
        operations.delete_consumer(name)


def add_keys(made: FastAPI, operations: Operations) -> None:
    @made.get("/keys", tags=["keys"])
    def list_keys() -> list[KeyView]:
        """All keys of the database."""
        return operations.keys()

    @made.post("/keys/{key_id}/rotate", status_code=201, responses=_errors(404, 409), tags=["keys"])
    def rotate_key(key_id: str, rotation: Rotation | None = None) -> CreatedKey:
        """Make the key that takes its place; the old one works until the overlap is over."""
        return operations.rotate_key(key_id, rotation or Rotation())

    @made.post("/keys/{key_id}/revoke", responses=_errors(404), tags=["keys"])
    def revoke_key(key_id: str) -> KeyView:
        """Let it work no more. It stays in the list."""
        return operations.revoke_key(key_id)

    @made.delete("/keys/{key_id}", status_code=204, responses=_errors(404), tags=["keys"])
    def delete_key(key_id: str) -> None:
        """Let it work no more, and take it out of the list."""
        operations.delete_key(key_id)


def add_reports(made: FastAPI, ledger: Ledger, config: Callable[[], Config], verify: Verify) -> None:
    both: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}

    @made.get("/usage", response_model=list[dict[str, Any]], responses=both, tags=["reports"])
    def show_usage(request: Request, query: Annotated[UsageQuery, Query()]) -> Any:
        """What was used, from the totals. Money is a decimal, in ``currency``."""
        return _report(request, query.format, *reports.usage(ledger, query, config().accounts.timezone))

    @made.get("/ledger", response_model=list[dict[str, Any]], responses=both, tags=["reports"])
    def list_rows(request: Request, query: Annotated[RowsQuery, Query()]) -> Any:
        """Calls, the newest first."""
        return _report(request, query.format, *reports.calls(ledger, query, config().accounts.timezone))

    @made.get("/ledger/verify", tags=["reports"])
    async def verify_ledger() -> list[dict[str, Any]]:
        """Where the totals and the numbers in use differ from the rows; an empty list is what should be."""
        return [asdict(difference) for difference in await verify()]


def add_audit(made: FastAPI, records: Records) -> None:
    @made.get("/audit", tags=["audit"])
    def search_audit(request: Request, query: Annotated[AuditPageQuery, Query()]) -> dict[str, Any]:
        """Records without their texts, the newest first; ``next`` is the ``cursor`` of what follows. It is noted."""
        found, following = records.search(_who(request), query, limit=query.limit, cursor=query.cursor)
        return {"records": found, "next": following}

    @made.delete("/audit", responses=_errors(409), tags=["audit"])
    def delete_audit(request: Request, query: Annotated[AuditQuery, Query()]) -> dict[str, int]:
        """Delete the records that match; all of them, where nothing is asked for, is refused. It is noted."""
        return {"deleted": records.delete(_who(request), query)}

    @made.get("/audit/readings", tags=["audit"])
    def list_readings(request: Request, limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> list[dict[str, Any]]:
        """Who has looked at the audit or deleted from it, the newest first. It is noted."""
        return records.readings(_who(request), limit)

    @made.get("/audit/{call_id}", responses=_errors(404), tags=["audit"])
    def show_record(request: Request, call_id: str) -> dict[str, Any]:
        """The whole record of one call, with its texts as the policy keeps them. It is noted."""
        return records.show(_who(request), call_id)


def _who(request: Request) -> str:
    return str(request.scope["state"][WHO])


def add_providers(made: FastAPI, pools: Pools) -> None:
    @made.get("/providers", tags=["providers"])
    def list_providers() -> list[dict[str, Any]]:
        """The pools of providers' keys, without the keys."""
        return pools()


def _report(
    request: Request, wanted: Format | None, columns: Sequence[str], lines: list[reports.Line]
) -> list[reports.Line] | Response:
    if (wanted or ("csv" if "text/csv" in request.headers.get("accept", "") else "json")) == "json":
        return lines
    return PlainTextResponse(reports.csv_text(lines, columns), media_type="text/csv")
