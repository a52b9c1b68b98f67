import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis_server import free_ports

from extproc.moderation.judges.bounded import Bounded
from extproc.moderation.types import Image, Item, JudgeFailed, Match, Opinion, QuestionRefused
from extproc.wire import generate
from extproc.wire.judge import SERVICE, GrpcJudge, JudgeTls
from extproc.wire.proto import moderation_pb2 as pb

SCRIPT = Path(__file__).parent.parent / "judges.py"


@contextmanager
def judge_process(address: str) -> Iterator[subprocess.Popen[str]]:
    """A judge as a process of its own, which answers when this yields; killed at the end."""
    command = [sys.executable, SCRIPT, "grpc", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=SCRIPT.parent.parent) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


@pytest.fixture(name="address", scope="module", params=["unix", "tcp"])
def _address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("judge")
    address = f"unix:{directory}/judge.sock" if request.param == "unix" else f"127.0.0.1:{free_ports(1)[0]}"
    with judge_process(address):
        yield address


@asynccontextmanager
async def judging(address: str, **more: Any) -> AsyncIterator[GrpcJudge]:
    judge = GrpcJudge("mine", address, **{"timeout": 5.0, **more})
    try:
        yield judge
    finally:
        await judge.close()


async def failure(judge: GrpcJudge | Bounded, text: str) -> JudgeFailed:
    with pytest.raises(JudgeFailed) as failed:
        await judge.judge(Item(text, "request"))
    return failed.value


async def outcome(judge: GrpcJudge) -> str:
    try:
        await judge.judge(Item("hello", "request"))
    except JudgeFailed as failed:
        return failed.reason
    return "well"


def certificate(directory: Path) -> tuple[Path, Path]:
    """The files of a key, and of a certificate for judge.test that it signs itself."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("judge.test")]), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = directory / "key.pem", directory / "cert.pem"
    files[0].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    files[1].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return files


async def well_again(judge: GrpcJudge | Bounded, within: float = 10.0) -> Opinion:
    """The first opinion that it gives again."""
    end = monotonic() + within
    while True:
        try:
            return await judge.judge(Item("a bomb", "request"))
        except JudgeFailed:
            assert monotonic() < end
            await asyncio.sleep(0.05)


async def test_opinions(address: str) -> None:
    """Findings become scores and spans, in characters whatever they are."""
    async with judging(address) as judge:
        assert await judge.judge(Item("今天😀炸弹", "request")) == Opinion(
            {"violence": 0.9}, (Match(3, 5, "violence", 0.9, "the word 炸弹"),)
        )
        assert await judge.judge(Item("hello", "request")) == Opinion({}, ())


async def test_all_that_is_asked(address: str) -> None:
    """The judge is told direction, role, context, images, policy, the call and how long it has."""
    context = [("system", "be kind"), ("user", "hi"), ("tool", "42")]
    images = [Image("https://example.com/x.png")]
    asked = Item("echo", "response", "assistant", images, context, "strict", "call-7")  # type: ignore[arg-type]
    async with judging(address, timeout=20.0) as judge:
        (said,) = (await judge.judge(asked)).scores

    assert said.split(" | ") == [
        *["ROLE_SYSTEM be kind", "ROLE_USER hi", "ROLE_TOOL 42"],
        *["ROLE_ASSISTANT", "DIRECTION_RESPONSE", "strict", "call-7", "https://example.com/x.png", "20"],
    ]


async def test_late(address: str) -> None:
    """The deadline is the call's own: a judge that is late is a timeout."""
    async with judging(address, timeout=0.2) as judge:
        assert (await failure(judge, "slow")).reason == "timeout"


@pytest.mark.parametrize("text", ["garbage", "outside"])
async def test_garbage(address: str, text: str) -> None:
    """A score that is none, and a span outside of the text, make the whole answer garbage."""
    async with judging(address) as judge:
        assert (await failure(judge, text)).reason == "garbage"


async def test_a_question_that_it_refuses(address: str) -> None:
    """INVALID_ARGUMENT is about the question; what the judge says of it stays out of the error."""
    async with judging(address) as judge:
        failed = await failure(judge, "refuse my secret")

    assert isinstance(failed, QuestionRefused)
    assert str(failed) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_killed_and_started_again(tmp_path: Path, kind: str) -> None:
    """A judge that is killed is an error at once; when it is back, it is found without anybody's doing."""
    address = f"unix:{tmp_path}/judge.sock" if kind == "unix" else f"127.0.0.1:{free_ports(1)[0]}"
    inner = GrpcJudge("mine", address)
    judge = Bounded(inner, timeout=2.0, breaker=(3, 0.3), cache=(0, 0.0))
    with judge_process(address) as process:
        assert (await judge.judge(Item("a bomb", "request"))).scores == {"violence": 0.9}
        asking = asyncio.ensure_future(failure(judge, "slow"))
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        assert (await asking).reason == "error"
        process.wait()
    began = monotonic()
    assert [(await failure(judge, f"{n}")).reason for n in range(3)] == ["error", "error", "open"]
    assert monotonic() - began < 1.5
    with judge_process(address):
        assert (await well_again(judge)).scores == {"violence": 0.9}
    await judge.close()


async def test_not_there_yet(tmp_path: Path) -> None:
    """A judge may be started after us."""
    address = f"unix:{tmp_path}/judge.sock"
    async with judging(address) as judge:
        assert (await failure(judge, "hello")).reason == "error"
        with judge_process(address):
            assert (await well_again(judge)).scores == {"violence": 0.9}


async def test_health(tmp_path: Path) -> None:
    """A judge that says it is not serving is not asked."""
    address = f"unix:{tmp_path}/judge.sock"
    with judge_process(address):
        async with judging(address) as judge:
            assert (await judge.judge(Item("sick", "request"))).scores == {}
            end = monotonic() + 5
            while (said := await outcome(judge)) == "well" and monotonic() < end:
                await asyncio.sleep(0.02)

    assert said == "error"


@pytest.mark.parametrize("mutual", [False, True])
async def test_tls(tmp_path: Path, mutual: bool) -> None:
    """TLS to a judge whose certificate we know, and which may want to know ours."""
    key, cert = certificate(tmp_path)
    server = grpc.aio.server()
    answer = grpc.unary_unary_rpc_method_handler(lambda *_: pb.JudgeResponse().SerializeToString())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Judge": answer}),))
    pair = [(key.read_bytes(), cert.read_bytes())]
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials(pair, cert.read_bytes() if mutual else None, mutual)
    )
    await server.start()
    try:
        known = JudgeTls(ca=cert, cert=cert, key=key, name="judge.test")
        async with judging(f"127.0.0.1:{port}", tls=known) as judge:
            assert await judge.judge(Item("hello", "request")) == Opinion({}, ())
        stranger = JudgeTls(ca=cert, name="judge.test") if mutual else JudgeTls(name="judge.test")
        async with judging(f"127.0.0.1:{port}", tls=stranger) as judge:
            assert (await failure(judge, "hello")).reason == "error"
    finally:
        await server.stop(0)


def test_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is not there is known when the judge is made."""
    with pytest.raises(OSError, match="No such file"):
        GrpcJudge("mine", "127.0.0.1:1", tls=JudgeTls(ca=tmp_path / "ca.pem"))


def test_the_contract_is_compiled() -> None:
    """What is committed is what proto/ says."""
    assert generate.main(["--check"]) == 0


def test_a_stale_contract_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that are missing or differ fail the check by name; generating them makes it pass."""
    monkeypatch.setattr(generate, "_TARGET", tmp_path)
    (tmp_path / "moderation_pb2.py").write_text("stale")

    assert generate.main(["--check"]) == 1
    assert "moderation_pb2.py is not what proto/ says" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
