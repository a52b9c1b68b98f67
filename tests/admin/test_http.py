"""The admin port: what it tells, and how it comes and goes."""

import asyncio
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from admin.office import TOKEN, Office
from wire.rig import Certificates, certificates

from extproc.admin.http import AdminServer, application
from extproc.config.schema import Address, AdminTls
from extproc.demo.gateway import free_port

TEXT = 'calls_total{consumer="中"} 1.0\n'


class Subject:
    """Something to report on."""

    def __init__(self) -> None:
        self.ready = True
        self.status = "ok"

    def report(self) -> dict[str, Any]:
        return {"status": self.status, "workers": [{"index": 0, "state": "serving"}]}


@pytest.fixture(name="subject")
def _subject() -> Subject:
    return Subject()


@pytest.fixture(name="address")
def _address() -> Address:
    return Address(host="127.0.0.1", port=free_port())


@asynccontextmanager
async def serving(
    subject: Subject, address: Address, exposition: Callable[[], bytes] = lambda: b"calls_total 1.0\n"
) -> AsyncIterator[httpx.AsyncClient]:
    server = AdminServer(application(subject, exposition), address)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=10) as client:
            yield client
    finally:
        await server.stop()


async def test_health_is_the_report(subject: Subject, address: Address) -> None:
    """`/healthz` shows the report as it is at that moment, and is 200 while anybody is there to say it."""
    async with serving(subject, address) as client:
        before = await client.get("/healthz")
        subject.status = "degraded"
        after = await client.get("/healthz")

    assert before.json() == {"status": "ok", "workers": [{"index": 0, "state": "serving"}]}
    assert (after.status_code, after.json()["status"]) == (200, "degraded")


async def test_ready_is_a_status(subject: Subject, address: Address) -> None:
    """`/readyz` is 200 or 503, which is all that a load balancer looks at."""
    async with serving(subject, address) as client:
        ready = await client.get("/readyz")
        subject.ready = False
        not_ready = await client.get("/readyz")

    assert (ready.status_code, ready.text) == (200, "ready\n")
    assert (not_ready.status_code, not_ready.text) == (503, "not ready\n")


async def test_metrics_are_passed_as_they_are(subject: Subject, address: Address) -> None:
    """`/metrics` has the content type of Prometheus's text format."""
    async with serving(subject, address, TEXT.encode) as client:
        answer = await client.get("/metrics")

    assert answer.content.decode() == TEXT
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_metrics_hold_up_nobody(subject: Subject, address: Address) -> None:
    """While the metrics of many processes are gathered, health is told all the same."""
    gathered = threading.Event()

    def exposition() -> bytes:
        return b"waited\n" if gathered.wait(10) else b"in vain\n"

    async with serving(subject, address, exposition) as client:
        metrics = asyncio.ensure_future(client.get("/metrics"))
        health = await client.get("/healthz")
        gathered.set()

        assert health.status_code == 200
        assert (await metrics).text == "waited\n"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("GET", "/healthz/x", 404), ("POST", "/healthz", 405)]
)
async def test_there_is_nothing_else(subject: Subject, address: Address, method: str, path: str, status: int) -> None:
    """Other paths and methods are plain errors."""
    async with serving(subject, address) as client:
        assert (await client.request(method, path)).status_code == status


async def test_a_port_in_use_is_an_error_that_names_its_setting(subject: Subject) -> None:
    """The error says which key of the file to change, and which address was taken."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = Address(host="127.0.0.1", port=other.getsockname()[1])
        server = AdminServer(application(subject, bytes), address)

        with pytest.raises(OSError, match=f"server.http: cannot listen on {address}: Address already in use"):
            await server.start()

        await server.stop()


async def test_ipv6(subject: Subject) -> None:
    """A host with colons is an IPv6 address."""
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        address = Address(host="::1", port=probe.getsockname()[1])

    async with serving(subject, address) as client:
        assert (await client.get("/readyz")).status_code == 200


async def test_stop_frees_the_port(subject: Subject, address: Address) -> None:
    """An idle connection does not hold up the end, and the next server can have the port at once."""
    server = AdminServer(application(subject, bytes), address)
    await server.start()
    async with httpx.AsyncClient(base_url=f"http://{address}") as client:
        await client.get("/readyz")
        async with asyncio.timeout(5):
            await server.stop()
        with pytest.raises(httpx.TransportError):
            await client.get("/readyz")

    async with serving(subject, address) as again:
        assert (await again.get("/readyz")).status_code == 200


async def test_a_server_never_started_can_be_stopped(subject: Subject, address: Address) -> None:
    """A start that failed half way ends like any other."""
    await AdminServer(application(subject, bytes), address).stop()

    async with serving(subject, address) as client:
        assert (await client.get("/readyz")).status_code == 200


async def test_signals_are_not_its_business(subject: Subject, address: Address) -> None:
    """The handlers of the process stay as they are: the supervisor decides when to stop."""
    before = [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)]

    async with serving(subject, address) as client:
        await client.get("/readyz")
        assert [signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)] == before


# --- TLS ------------------------------------------------------------------------------------------------------


@pytest.fixture(name="office")
async def _office(tmp_path: Path) -> AsyncIterator[Office]:
    office = Office(tmp_path)
    yield office
    await asyncio.to_thread(office.database.close)


@pytest.fixture(name="known")
def _known(tmp_path: Path) -> Certificates:
    return certificates(tmp_path)


@pytest.fixture(name="strangers")
def _strangers(tmp_path: Path) -> Certificates:
    """Certificates of an authority that nobody here trusts."""
    (tmp_path / "strangers").mkdir()
    return certificates(tmp_path / "strangers")


@asynccontextmanager
async def serving_tls(
    office: Office, address: Address, known: Certificates, *, ask: bool
) -> AsyncIterator[Callable[..., Any]]:
    """Gives what asks for a path over TLS: with a client certificate and a token, or without."""
    tls = AdminTls(cert=known.cert, key=known.key, client_ca=known.ca if ask else None)
    server = AdminServer(office.app, address, tls)
    await server.start()

    async def get(path: str, *, shown: Certificates | None = None, token: str = "") -> httpx.Response:
        context = ssl.create_default_context(cafile=known.ca)
        if shown is not None:
            context.load_cert_chain(shown.client_cert, shown.client_key)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(verify=context, timeout=10) as client:
            return await client.get(f"https://{address}{path}", headers=headers)

    try:
        yield get
    finally:
        await server.stop()


async def test_tls(office: Office, address: Address, known: Certificates) -> None:
    """With a certificate the whole port speaks TLS; who may do what stays the same."""
    async with serving_tls(office, address, known, ask=False) as get:
        assert (await get("/healthz")).status_code == 200
        assert (await get("/api/teams")).status_code == 401
        assert (await get("/api/teams", token=TOKEN)).status_code == 200
        assert (await get("/api/teams", shown=known)).status_code == 401
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://{address}/healthz")


async def test_mutual_tls(office: Office, address: Address, known: Certificates) -> None:
    """A certificate of the operators' authority opens the API; a token still does; probes need neither."""
    async with serving_tls(office, address, known, ask=True) as get:
        assert (await get("/healthz")).status_code == 200
        assert (await get("/api/teams")).status_code == 401
        assert (await get("/api/teams", token="wrong")).status_code == 401
        assert (await get("/api/teams", shown=known)).status_code == 200
        assert (await get("/api/teams", shown=known, token="wrong")).status_code == 200
        assert (await get("/api/teams", token=TOKEN)).status_code == 200


async def test_mutual_tls_without_tokens(office: Office, address: Address, known: Certificates) -> None:
    """Certificates are enough to run it."""
    office.tokens = []
    async with serving_tls(office, address, known, ask=True) as get:
        assert (await get("/api/teams", shown=known)).status_code == 200
        assert (await get("/api/teams", token=TOKEN)).status_code == 401


async def test_a_certificate_of_strangers(
    office: Office, address: Address, known: Certificates, strangers: Certificates
) -> None:
    """It ends the connection: not even health is told, whatever token comes with it."""
    async with serving_tls(office, address, known, ask=True) as get:
        for path in ("/healthz", "/api/teams"):
            with pytest.raises(httpx.TransportError):
                await get(path, shown=strangers, token=TOKEN)

        assert (await get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cert": Path("none.pem")}, "admin.tls: .*No such file"),
        ({"key": Path("none.key")}, "admin.tls: .*No such file"),
        ({"client_ca": Path("none.pem")}, "admin.tls: .*No such file"),
        ({"client_ca": Path(__file__)}, "admin.tls: "),
        ({"cert": Path(__file__)}, "admin.tls: "),
    ],
)
async def test_certificates_that_cannot_be_used(
    office: Office, address: Address, known: Certificates, changes: dict[str, Path], reason: str
) -> None:
    """The server does not start, and says which part of the file is to blame."""
    tls = AdminTls.model_validate({"cert": known.cert, "key": known.key, "client_ca": known.ca, **changes})

    with pytest.raises(OSError, match=reason):
        await AdminServer(office.app, address, tls).start()
