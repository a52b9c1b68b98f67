"""The audit by the HTTP API: what it shows and deletes, and that nobody looks unseen."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from admin.office import TOKEN, Office
from audit.records import NOON, record, verdict

WHO = f"token {hashlib.sha256(TOKEN.encode()).hexdigest()[:12]}"


@pytest.fixture(name="office")
async def _office(tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(tmp_path)
    office.database.audit.add(
        [
            record("a", NOON, "请用人工智能写合同", "好", cost=12_500_000_000, currency="CNY"),
            record("b", NOON + 1, "call 13812345678", user="ann", verdicts=[verdict("phone", "mask", "pii")]),
            record("c", NOON + 2, consumer="beta", how="refused", status=403),
        ]
    )
    yield office
    await asyncio.to_thread(office.database.close)


@pytest.fixture(name="client")
async def _client(office: Office) -> AsyncIterator[httpx.AsyncClient]:
    async with office.client() as client:
        yield client


async def searched(client: httpx.AsyncClient, **query: Any) -> list[str]:
    answer = await client.get("/api/audit", params=query)
    assert answer.status_code == 200, answer.text
    return [each["call_id"] for each in answer.json()["records"]]


async def readings(client: httpx.AsyncClient) -> list[tuple[str, str, int]]:
    found = (await client.get("/api/audit/readings")).json()
    assert {each["who"] for each in found} <= {WHO}
    return [(each["what"], each["asked"], each["found"]) for each in found]


async def test_search(client: httpx.AsyncClient) -> None:
    """By text, by verdict, by time and by who it was; lines have no texts."""
    assert await searched(client) == ["c", "b", "a"]
    assert await searched(client, text="人工智能") == ["a"]
    assert await searched(client, category="phone", action="mask", check="pii") == ["b"]
    assert await searched(client, person="ann") == ["b"]
    assert await searched(client, consumer="beta", status=403) == ["c"]
    # Of the accounts' time zone, which is eight hours ahead.
    assert await searched(client, since="2025-03-03T20:00:01", until="2025-03-03T20:00:02") == ["b"]
    lines = (await client.get("/api/audit")).json()["records"]
    assert {"request", "answer", "metadata"} & set(lines[0]) == set()
    assert (lines[2]["money"], lines[2]["time"]) == ("12.50", "2025-03-03T12:00:00.000Z")


async def test_pages(client: httpx.AsyncClient) -> None:
    """The cursor of a page leads to the next."""
    first = (await client.get("/api/audit", params={"limit": 2})).json()
    second = (await client.get("/api/audit", params={"limit": 2, "cursor": first["next"]})).json()

    assert [each["call_id"] for each in first["records"] + second["records"]] == ["c", "b", "a"]
    assert second["next"] == ""


async def test_show(client: httpx.AsyncClient) -> None:
    """The whole record, with its texts; a call without one is not there."""
    shown = (await client.get("/api/audit/a")).json()

    assert shown["request"] == [{"role": "user", "text": "请用人工智能写合同"}]
    assert (await client.get("/api/audit/none")).status_code == 404


async def test_every_look_is_noted(client: httpx.AsyncClient) -> None:
    """Who asked, what, and how many there were: also of the notes themselves, and of what was not found."""
    await searched(client, text="合同", consumer="acme")
    await client.get("/api/audit/a")
    await client.get("/api/audit/none")
    await readings(client)

    assert await readings(client) == [
        ("readings", "", 5 - 1),
        ("show", "none", 0),
        ("show", "a", 1),
        ("show", "a", 0),
        ("search", '{"consumer":"acme","text":"合同"}', 1),
    ]


async def test_delete(client: httpx.AsyncClient) -> None:
    """Of a person, and of what is older than a time; the number is noted. All at once is refused."""
    deleted = await client.delete("/api/audit", params={"person": "ann"})
    older = await client.delete("/api/audit", params={"until": "2025-03-03T20:00:01"})
    everything = await client.delete("/api/audit")

    assert (deleted.json(), older.json()) == ({"deleted": 1}, {"deleted": 1})
    assert everything.status_code == 422
    assert await searched(client) == ["c"]
    assert ("delete", '{"person":"ann"}', 1) in await readings(client)


@pytest.mark.parametrize(
    "query", [{"since": "yesterday"}, {"action": "kill"}, {"limit": 0}, {"cursor": "x"}, {"colour": "red"}]
)
async def test_what_cannot_be_asked(client: httpx.AsyncClient, query: dict[str, Any]) -> None:
    """It is refused with a reason."""
    answer = await client.get("/api/audit", params=query)

    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid"
