"""Who may use the API."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from admin.office import TOKEN, Office
from fastapi import FastAPI
from starlette.routing import Mount
from structlog.testing import capture_logs

from extproc.admin.api import api
from extproc.admin.guard import CERTIFIED, Guard


@pytest.fixture(name="office")
async def _office(tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(tmp_path)
    yield office
    await asyncio.to_thread(office.database.close)


def routes(made: FastAPI) -> set[tuple[str, str]]:
    """Every method and path, of the document and of what it leaves out."""
    found = {(method.upper(), path) for path, item in made.openapi()["paths"].items() for method in item}
    for route in made.routes:
        path = str(getattr(route, "path", ""))
        found |= {(method, path) for method in getattr(route, "methods", None) or ()}
    return {
        (method, f"/api{path.replace('{name:path}', 'acme').replace('{', '').replace('}', '')}")
        for method, path in found
    }


async def test_every_route_is_refused_without_a_token(office: Office) -> None:
    """Every method of every route, the document and its page too: 401 without a token and with a wrong one."""
    known = routes(api(office.backend()))
    assert len({path for _, path in known}) >= 15

    for token in (None, "", "wrong", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper()):
        async with office.client(token) as client:
            for method, path in sorted(known):
                answer = await client.request(method, path)
                assert (method, path, answer.status_code) == (method, path, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert method == "HEAD" or answer.json()["error"]["code"] == "unauthorized"


async def test_every_route_is_open_with_a_token(office: Office) -> None:
    """The paths that are refused above are those that work: none is a mistake of the test."""
    async with office.client() as client:
        for method, path in sorted(routes(api(office.backend()))):
            answer = await client.request(method, path)
            assert answer.status_code not in (401, 405, 500), (method, path)


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/nowhere", "/api/../api/consumers", "/api//consumers"])
async def test_what_is_no_route_is_refused_alike(office: Office, path: str) -> None:
    """Who has no token does not even learn what there is."""
    async with office.client(None) as client:
        answer = await client.get(path, follow_redirects=True)

    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/API/consumers", "//api/consumers", "/healthz/../api/consumers", "/apiconsumers"])
async def test_no_path_leads_around_it(office: Office, path: str) -> None:
    """A path that is written otherwise is refused, or leads nowhere."""
    async with office.client(None) as client:
        answer = await client.get(path)

    assert answer.status_code in (401, 404)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_health_is_open(office: Office, path: str) -> None:
    """Probes and Prometheus need no token."""
    async with office.client(None) as client:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "header", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER   {TOKEN} "], ids=["usual", "small", "spaces"]
)
async def test_a_token_opens(office: Office, header: str) -> None:
    """The scheme is written as one likes."""
    async with office.client(None) as client:
        answer = await client.get("/api/consumers", headers={"authorization": header})

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("header", [TOKEN, f"Basic {TOKEN}", f"Token {TOKEN}", "Bearer", "Bearer \xff\xfe"])
async def test_other_headers_do_not(office: Office, header: str) -> None:
    """Only a bearer token counts, and no header is too odd to be refused."""
    async with office.client(None) as client:
        answer = await client.get("/api/consumers", headers={"authorization": header.encode("latin-1")})

    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("place", "value"),
    [("cookie", f"token={TOKEN}"), ("x-api-key", TOKEN), ("x-forwarded-for", "127.0.0.1"), ("host", "localhost")],
)
async def test_nothing_else_counts(office: Office, place: str, value: str) -> None:
    """No cookie, and no header that a page or a proxy can set, stands for a token."""
    async with office.client(None) as client:
        answer = await client.get(f"/api/consumers?token={TOKEN}", headers={place: value})

    assert answer.status_code == 401


async def test_no_page_elsewhere_may_read(office: Office) -> None:
    """There is no CORS: a browser keeps the answer from other origins, and may not ask first."""
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    async with office.client() as client:
        answer = await client.get("/api/consumers", headers=headers)
        before = await client.options("/api/consumers", headers=headers)

    assert not [name for name in (*answer.headers, *before.headers) if name.startswith("access-control")]
    assert before.status_code == 405


async def test_tokens_change_while_it_runs(office: Office) -> None:
    """Those in force count: a new one at once, the old one no more."""
    async with office.client("another-token-in-force") as new, office.client() as old:
        before = [(await client.get("/api/teams")).status_code for client in (new, old)]
        office.tokens = ["another-token-in-force", "and-one-more"]
        after = [(await client.get("/api/teams")).status_code for client in (new, old)]

    assert (before, after) == ([401, 200], [200, 401])


async def test_without_tokens_it_is_closed(office: Office) -> None:
    """Nothing opens it, and the sentence says how it is set up."""
    office.tokens = []
    for token in (None, "", TOKEN):
        async with office.client(token) as client:
            answer = await client.get("/api/consumers")

        assert answer.status_code == 401
        assert "admin.tokens" in answer.json()["error"]["message"]
        assert "Authorization: Bearer" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("headers", "status"), [({}, 200), ({"origin": "https://evil.example"}, 401)])
async def test_a_certificate_opens_but_not_for_pages(office: Office, headers: dict[str, str], status: int) -> None:
    """A browser adds its certificate to what any page sends, so that alone does not count where a page asks."""
    mount = next(route for route in office.app.routes if isinstance(route, Mount))

    async def certified(scope: object, receive: object, send: object) -> None:
        assert isinstance(scope, dict)
        await mount.app({**scope, "state": {CERTIFIED: "ops"}}, receive, send)  # type: ignore[arg-type]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(certified), base_url="http://admin") as client:
        answer = await client.post("/teams", json={"name": "growth"}, headers=headers)

    assert answer.status_code == (201 if status == 200 else status)


async def test_a_body_is_not_read_before_the_token(office: Office) -> None:
    """Who has none cannot make us take in what he sends."""
    taken = []

    async def receive() -> dict[str, object]:
        taken.append(1)
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    guard = Guard(office.app, list)
    scope = {"type": "http", "method": "POST", "path": "/consumers", "headers": []}
    await guard(scope, receive, send)  # type: ignore[arg-type]

    assert (taken, sent[0]["status"]) == ([], 401)


async def test_what_fails_is_logged_and_not_shown(office: Office) -> None:
    """A bug is a traceback in our log, and a plain 500 for the client."""

    def broken() -> list[object]:
        raise RuntimeError("inner workings")

    office.database.register.teams = broken  # type: ignore[method-assign,assignment]
    with capture_logs() as lines:
        async with office.client() as client:
            answer = await client.get("/api/teams")

    assert answer.status_code == 500
    assert answer.json() == {"error": {"code": "unexpected", "message": "Something went wrong; the log says what."}}
    (line,) = lines
    assert (line["event"], line["log_level"], line["exc_info"]) == ("admin failed", "error", True)
    assert TOKEN not in str(line)
