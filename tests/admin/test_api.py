"""The HTTP admin API: what it shows, what it changes, what it refuses, and what it never tells."""

import asyncio
import csv
import io
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from admin.office import FILE_KEY, TOKEN, Office, row
from fastapi.openapi.models import OpenAPI
from structlog.testing import capture_logs

from extproc.accounts.keys import digest, is_ours
from extproc.stores.ports import DatabaseUnavailable, Difference

FULL: dict[str, Any] = {
    "models": ["gpt-*"],
    "endpoints": ["chat"],
    "policy": "strict",
    "quota": [{"tokens": "10M", "per": "month"}],
    "limits": [{"requests": 60, "per": "minute"}, {"concurrent": 8}],
}


@pytest.fixture(name="office")
async def _office(tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(tmp_path)
    yield office
    await asyncio.to_thread(office.database.close)


@pytest.fixture(name="client")
async def _client(office: Office) -> AsyncIterator[httpx.AsyncClient]:
    async with office.client() as client:
        yield client


async def made(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(path, json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def reason(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"code", "message"}
    return answer.status_code, error["code"], error["message"]


# --- teams and consumers --------------------------------------------------------------------------------------


async def test_the_life_of_a_team(client: httpx.AsyncClient) -> None:
    """Made, shown, changed and deleted; rules are shown normalised."""
    created = await made(client, "/api/teams", name="growth", **FULL)
    listed = (await client.get("/api/teams")).json()
    changed = (await client.patch("/api/teams/growth", json={"models": ["*"], "policy": None})).json()
    deleted = await client.delete("/api/teams/growth")

    assert created["quota"] == [{"tokens": 10_000_000, "per": "month"}]
    assert created["source"] == "database"
    assert [team["name"] for team in listed] == ["growth", "listed"]
    assert changed == {**created, "models": ["*"], "policy": None}
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert reason(await client.get("/api/teams/growth")) == (404, "not_found", "there is no team 'growth'")


async def test_the_life_of_a_consumer(client: httpx.AsyncClient) -> None:
    """Made, shown, changed, disabled, enabled and deleted."""
    await made(client, "/api/teams", name="growth")
    created = await made(client, "/api/consumers", name="acme", team="growth", note="中文", **FULL)
    disabled = (await client.post("/api/consumers/acme/disable")).json()
    shown = (await client.get("/api/consumers/acme")).json()
    enabled = (await client.post("/api/consumers/acme/enable")).json()
    changed = (await client.patch("/api/consumers/acme", json={"team": None, "limits": []})).json()
    deleted = await client.delete("/api/consumers/acme")

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", created["created"])
    assert shown == disabled == {**created, "disabled": True}
    assert enabled == created
    assert changed == {**created, "team": None, "limits": []}
    assert deleted.status_code == 204
    assert (await client.get("/api/consumers/acme")).status_code == 404


async def test_consumers_of_a_team(client: httpx.AsyncClient) -> None:
    """The list can be narrowed; those of the file are in it."""
    await made(client, "/api/consumers", name="acme", team="listed")
    await made(client, "/api/consumers", name="alone")

    everybody = (await client.get("/api/consumers")).json()
    of_team = (await client.get("/api/consumers", params={"team": "listed"})).json()

    assert [(c["name"], c["source"]) for c in everybody] == [
        ("acme", "database"),
        ("alone", "database"),
        ("filed", "file"),
        ("org/filed", "file"),
    ]
    assert [c["name"] for c in of_team] == ["acme", "filed"]


@pytest.mark.parametrize("name", ["filed", "org/filed", "org%2Ffiled"])
async def test_what_is_in_the_file_is_changed_there(client: httpx.AsyncClient, name: str) -> None:
    """It is shown, whatever its name, and every change of it is refused with that sentence."""
    path = f"/api/consumers/{name}"
    shown = (await client.get(path)).json()
    answers = [
        await client.patch(path, json={"note": "x"}),
        await client.post(f"{path}/disable"),
        await client.post(f"{path}/enable"),
        await client.delete(path),
    ]

    assert (shown["source"], shown["created"]) == ("file", None)
    for answer in answers:
        status, code, message = reason(answer)
        assert (status, code) == (409, "conflict")
        assert message.endswith("is in the configuration file: change it there")


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_teams_of_the_file_too(client: httpx.AsyncClient, method: str) -> None:
    """A team of the configuration file is shown with its rules, and changed there."""
    shown = (await client.get("/api/teams/listed")).json()
    answer = await client.request(method, "/api/teams/listed", json={})

    assert (shown["source"], shown["limits"]) == ("file", [{"concurrent": 8}])
    assert answer.status_code == 409


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("consumers", {"name": "acme"}, 409, "there is a consumer 'acme' already"),
        ("consumers", {"name": "filed"}, 409, "in the configuration file"),
        ("teams", {"name": "listed"}, 409, "in the configuration file"),
        ("consumers", {"name": "b", "team": "nobody"}, 404, "there is no team 'nobody'"),
        ("consumers", {"name": "b", "policy": "lax"}, 409, "no policy is called 'lax'"),
        ("consumers", {"name": "b", "modles": []}, 422, "modles: unknown key"),
        ("consumers", {}, 422, "name: is missing"),
        (
            "consumers",
            {"name": "b", "quota": [{"tokens": "lots", "per": "day"}]},
            422,
            "quota[0].tokens: 'lots' should",
        ),
        ("teams", {"name": "=b"}, 422, "name: "),
        ("teams", [], 422, ""),
    ],
)
async def test_what_cannot_be_made(client: httpx.AsyncClient, path: str, body: Any, status: int, message: str) -> None:
    """Each refusal is a code for programs and a sentence that names the place."""
    await made(client, "/api/consumers", name="acme")

    found = reason(await client.post(f"/api/{path}", json=body))

    assert found[0] == status
    assert message in found[2]


async def test_a_team_with_consumers_stays(client: httpx.AsyncClient) -> None:
    """The refusal names them."""
    await made(client, "/api/teams", name="growth")
    await made(client, "/api/consumers", name="acme", team="growth")

    status, _, message = reason(await client.delete("/api/teams/growth"))

    assert status == 409
    assert "acme" in message


async def test_a_body_that_is_no_json(client: httpx.AsyncClient) -> None:
    """Broken JSON is refused like anything else that is wrong, and so is what a form of a web page could send."""
    broken = await client.post("/api/teams", content=b"{", headers={"content-type": "application/json"})
    form = await client.post("/api/teams", content=b'{"name": "x"}', headers={"content-type": "text/plain"})

    assert reason(broken)[:2] == reason(form)[:2] == (422, "invalid")
    assert [team["name"] for team in (await client.get("/api/teams")).json()] == ["listed"]


# --- keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("consumer", ["acme", "filed", "org/filed"])
async def test_a_key_is_shown_once(client: httpx.AsyncClient, office: Office, consumer: str) -> None:
    """It is in the answer that made it; no list, document, log or table of the database has it."""
    await made(client, "/api/consumers", name="acme")
    with capture_logs() as lines:
        created = await made(client, f"/api/consumers/{consumer}/keys", label="ci", expires="90d")
        key = created["key"]
        paths = [f"/api/consumers/{consumer}/keys", f"/api/consumers/{consumer}", "/api/keys", "/api/consumers"]
        texts = [(await client.get(path)).text for path in (*paths, "/api/openapi.json", "/api/docs", "/api/usage")]
        rotated = await client.post(f"/api/keys/{created['id']}/rotate")

    files = b"".join(file.read_bytes() for file in Path(office.database.engine.url.database or "").parent.iterdir())
    assert is_ours(key)
    assert (created["consumer"], created["label"], created["hint"], created["state"]) == (
        consumer,
        "ci",
        key[-4:],
        "active",
    )
    assert [text for text in (*texts, rotated.text, str(lines)) if key in text] == []
    assert key.encode() not in files
    assert created["id"] in texts[0]
    assert office.database.register.key(created["id"]).digest == digest(key)


async def test_a_key_of_the_file_is_nowhere(client: httpx.AsyncClient) -> None:
    """Neither it nor its digest is told; tokens neither."""
    paths = ["/api/consumers", "/api/consumers/filed", "/api/consumers/filed/keys", "/api/openapi.json", "/api/docs"]
    texts = [(await client.get(path)).text for path in paths]

    assert [text for text in texts if FILE_KEY in text or digest(FILE_KEY).hex() in text or TOKEN in text] == []


async def test_rotation(client: httpx.AsyncClient) -> None:
    """The new key is there at once, labelled and to live as long as the old one, which ends after the overlap."""
    await made(client, "/api/consumers", name="acme")
    old = await made(client, "/api/consumers/acme/keys", label="ci", expires="30d")

    new = await made(client, f"/api/keys/{old['id']}/rotate", overlap="2h")

    assert new["key"] != old["key"]
    assert (new["label"], new["state"], new["expires"][:13]) == ("ci", "active", old["expires"][:13])
    assert (new["replaces"]["id"], new["replaces"]["state"]) == (old["id"], "active")
    left = time.mktime(time.strptime(new["replaces"]["expires"], "%Y-%m-%dT%H:%M:%SZ")) - time.mktime(time.gmtime())
    assert left == pytest.approx(2 * 3600, abs=10)
    assert len((await client.get("/api/consumers/acme/keys")).json()) == 2


async def test_rotation_prolongs_nothing(client: httpx.AsyncClient) -> None:
    """A key that ends before the overlap is over ends then."""
    await made(client, "/api/consumers", name="acme")
    old = await made(client, "/api/consumers/acme/keys", expires="1h")

    new = await made(client, f"/api/keys/{old['id']}/rotate", overlap="24h")

    assert new["replaces"]["expires"] == old["expires"]


async def test_rotation_without_overlap(client: httpx.AsyncClient) -> None:
    """The old key ends at once, and cannot be rotated again."""
    await made(client, "/api/consumers", name="acme")
    old = await made(client, "/api/consumers/acme/keys")

    new = await made(client, f"/api/keys/{old['id']}/rotate", overlap=0)

    assert new["replaces"]["state"] == "expired"
    assert reason(await client.post(f"/api/keys/{old['id']}/rotate"))[0] == 409


async def test_revoking_and_deleting(client: httpx.AsyncClient) -> None:
    """A revoked key stays in the list, a deleted one does not."""
    await made(client, "/api/consumers", name="acme")
    key = await made(client, "/api/consumers/acme/keys")

    revoked = (await client.post(f"/api/keys/{key['id']}/revoke")).json()
    listed = (await client.get("/api/keys")).json()
    deleted = await client.delete(f"/api/keys/{key['id']}")

    assert revoked["state"] == "revoked"
    assert listed == [revoked]
    assert deleted.status_code == 204
    assert (await client.get("/api/keys")).json() == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/consumers/nobody/keys", {}, 404),
        ("GET", "/api/consumers/nobody/keys", None, 404),
        ("POST", "/api/consumers/filed/keys", {"expires": "1999-01-01"}, 422),
        ("POST", "/api/consumers/filed/keys", {"expires": "soon"}, 422),
        ("POST", "/api/consumers/filed/keys", {"label": "a\nb"}, 422),
        ("POST", "/api/keys/key-none/rotate", {}, 404),
        ("POST", "/api/keys/key-none/rotate", {"overlap": "-1h"}, 422),
        ("POST", "/api/keys/key-none/revoke", None, 404),
        ("DELETE", "/api/keys/key-none", None, 404),
        ("PUT", "/api/keys/key-none", None, 405),
        ("GET", "/api/nothing", None, 404),
    ],
)
async def test_what_cannot_be_done_to_keys(
    client: httpx.AsyncClient, method: str, path: str, body: Any, status: int
) -> None:
    """Every refusal looks alike."""
    assert reason(await client.request(method, path, json=body))[0] == status


# --- reports and state ----------------------------------------------------------------------------------------


async def test_usage(client: httpx.AsyncClient, office: Office) -> None:
    """JSON unless CSV is asked for, by parameter or header, which then has the same lines."""
    await asyncio.to_thread(office.database.ledger.add, [row(1), row(2), row(3, consumer="other")])

    lines = (await client.get("/api/usage")).json()
    by_format = await client.get("/api/usage", params={"format": "csv"})
    by_header = await client.get("/api/usage", headers={"accept": "text/csv"})
    narrowed = (await client.get("/api/usage", params={"by": "consumer,day", "consumer": "other"})).json()

    assert [(line["consumer"], line["calls"], line["money"]) for line in lines] == [
        ("acme", 2, "0.003"),
        ("other", 1, "0.0015"),
    ]
    assert by_format.headers["content-type"] == "text/csv; charset=utf-8"
    assert by_format.text == by_header.text
    table = list(csv.DictReader(io.StringIO(by_format.text)))
    assert [{name: str(value) for name, value in line.items()} for line in lines] == table
    assert [(line["consumer"], line["day"], line["calls"]) for line in narrowed] == [("other", "2026-01-01", 1)]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("by=colour", "usage is not kept by 'colour'"),
        ("since=yesterday", "'yesterday' should look like 7d"),
        ("timezone=Mars", "timezone: there is no time zone 'Mars'"),
        ("consumers=acme", "consumers: unknown key"),
        ("format=xml", "format: "),
    ],
)
async def test_usage_that_is_not_understood(client: httpx.AsyncClient, query: str, message: str) -> None:
    """A mistyped filter is refused: it would be a bill over everything."""
    status, code, said = reason(await client.get(f"/api/usage?{query}"))

    assert (status, code) == (422, "invalid")
    assert said.startswith(message)


async def test_ledger(client: httpx.AsyncClient, office: Office) -> None:
    """Rows, the newest first, with bounds; CSV likewise."""
    await asyncio.to_thread(office.database.ledger.add, [row(1), row(2), row(3, consumer="other")])

    rows = (await client.get("/api/ledger", params={"limit": 2})).json()
    until = (await client.get("/api/ledger", params={"until": rows[-1]["started"]})).json()
    of_other = await client.get("/api/ledger", params={"consumer": "other", "format": "csv"})

    assert [each["call_id"] for each in rows] == ["call-0003", "call-0002"]
    assert [each["call_id"] for each in until] == ["call-0001"]
    assert len(of_other.text.splitlines()) == 2


async def test_verify(client: httpx.AsyncClient, office: Office) -> None:
    """What the server finds is passed on; nothing is an empty list."""
    before = (await client.get("/api/ledger/verify")).json()
    office.differences = [Difference(where="calls of acme", ledger=2, found=3)]
    after = (await client.get("/api/ledger/verify")).json()

    assert (before, after) == ([], [{"where": "calls of acme", "ledger": 2, "found": 3}])


async def test_providers(client: httpx.AsyncClient) -> None:
    """The pools are as the supervisor knows them."""
    assert (await client.get("/api/providers")).json() == [{"provider": "p", "label": "main", "state": "used"}]


async def test_quota(client: httpx.AsyncClient) -> None:
    """The numbers of one consumer; who is not there has none."""
    assert (await client.get("/api/consumers/filed/quota")).json() == [
        {"counter": "consumer:filed/tokens/month", "used": 3}
    ]
    assert reason(await client.get("/api/consumers/nobody/quota"))[0] == 404


async def test_quota_where_nobody_knows(tmp_path: Path) -> None:
    """The sentence says what to ask for instead."""
    office = Office(tmp_path, quota=None)
    async with office.client() as client:
        status, code, message = reason(await client.get("/api/consumers/filed/quota"))
    await asyncio.to_thread(office.database.close)

    assert (status, code) == (501, "not_implemented")
    assert "usage" in message


async def test_a_database_that_is_away(client: httpx.AsyncClient, office: Office) -> None:
    """The answer says so, and that it may be tried again."""

    def away() -> list[Any]:
        raise DatabaseUnavailable("postgresql://db/accounts: connection refused")

    office.database.register.consumers = away  # type: ignore[method-assign]

    found = reason(await client.get("/api/consumers"))

    assert found == (503, "database_unavailable", "postgresql://db/accounts: connection refused")


# --- log and document -----------------------------------------------------------------------------------------


async def test_every_change_is_one_line_of_the_log(client: httpx.AsyncClient) -> None:
    """What was done, and to what; looking is not logged, and neither is what was refused."""
    with capture_logs() as lines:
        await made(client, "/api/teams", name="growth")
        await client.patch("/api/teams/growth", json={"models": []})
        await made(client, "/api/consumers", name="acme", note="private words")
        await client.patch("/api/consumers/acme", json={"note": "other words"})
        await client.post("/api/consumers/acme/disable")
        await client.post("/api/consumers/acme/enable")
        key = await made(client, "/api/consumers/acme/keys")
        new = await made(client, f"/api/keys/{key['id']}/rotate")
        await client.post(f"/api/keys/{key['id']}/revoke")
        await client.delete(f"/api/keys/{key['id']}")
        await client.delete("/api/consumers/acme")
        await client.delete("/api/teams/growth")
        await client.get("/api/consumers")
        await client.delete("/api/teams/growth")

    assert {line["event"] for line in lines} == {"admin"}
    assert [(line["action"], line["name"]) for line in lines] == [
        ("team created", "growth"),
        ("team updated", "growth"),
        ("consumer created", "acme"),
        ("consumer updated", "acme"),
        ("consumer disabled", "acme"),
        ("consumer enabled", "acme"),
        ("key created", key["id"]),
        ("key rotated", key["id"]),
        ("key revoked", key["id"]),
        ("key deleted", key["id"]),
        ("consumer deleted", "acme"),
        ("team deleted", "growth"),
    ]
    assert (lines[7]["consumer"], lines[7]["successor"]) == ("acme", new["id"])
    assert not [text for text in (key["key"], new["key"], TOKEN, "words") if text in str(lines)]


async def test_the_document(client: httpx.AsyncClient) -> None:
    """It is valid OpenAPI; every route is in it with an id of its own, the lock, and errors of one shape."""
    document = (await client.get("/api/openapi.json")).json()

    OpenAPI.model_validate(document)
    assert document["openapi"].startswith("3.")
    assert document["servers"] == [{"url": "/api"}]
    (lock,) = document["components"]["securitySchemes"].items()
    assert (lock[1]["type"], lock[1]["scheme"]) == ("http", "bearer")
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]
    assert {name for name, _ in operations} == {
        "GET /teams",
        "POST /teams",
        "GET /teams/{name}",
        "PATCH /teams/{name}",
        "DELETE /teams/{name}",
        "GET /consumers",
        "POST /consumers",
        "GET /consumers/{name}",
        "PATCH /consumers/{name}",
        "DELETE /consumers/{name}",
        "POST /consumers/{name}/enable",
        "POST /consumers/{name}/disable",
        "GET /consumers/{name}/keys",
        "POST /consumers/{name}/keys",
        "GET /consumers/{name}/quota",
        "GET /keys",
        "POST /keys/{key_id}/rotate",
        "POST /keys/{key_id}/revoke",
        "DELETE /keys/{key_id}",
        "GET /usage",
        "GET /ledger",
        "GET /ledger/verify",
        "GET /providers",
        "GET /audit",
        "DELETE /audit",
        "GET /audit/readings",
        "GET /audit/{call_id}",
    }
    assert len({operation["operationId"] for _, operation in operations}) == len(operations)
    for name, operation in operations:
        assert operation["security"] == [{lock[0]: []}], name
        assert operation["description"], name
        assert {"401", "422", "503"} <= set(operation["responses"]), name
        for status, response in operation["responses"].items():
            if status >= "400":
                assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', str(document).replace("'", '"')))
    assert references <= set(document["components"]["schemas"])


async def test_the_page(client: httpx.AsyncClient) -> None:
    """It names every route, and runs no script beside which a token could be typed."""
    page = await client.get("/api/docs")
    document = (await client.get("/api/openapi.json")).json()

    assert page.headers["content-type"].startswith("text/html")
    assert [path for path in document["paths"] if path not in page.text] == []
    assert "<script" not in page.text
    assert "http" not in page.text.replace("openapi.json", "")
