"""Judges that find the words of ``WORDS`` in a text, each in the protocol of a real one, well or badly, as told.

``python tests/judges.py http PORT`` speaks OpenAI's moderation API, guard models' chat completions and Alibaba Cloud's
green API; ``python tests/judges.py grpc ADDRESS`` our own contract. Each says "ready" and stays until it is ended.
"""

import asyncio
import hashlib
import hmac
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs

from extproc.demo.stub.http1 import BadRequestError, Received, RequestParser, head

WORDS: Final = {"bomb": "violence", "炸弹": "violence", "naked": "sexual"}
"""What is wrong with a text → its category. An image is wrong if its URL has one of these words."""

ACCESS_KEY_ID, ACCESS_KEY_SECRET = "ak-id-5a5a5a5a", "ak-secret-6b6b6b6b"
"""What requests to the stub of Alibaba Cloud must be signed with."""


def found(text: str) -> list[str]:
    return [word for word in WORDS if word in text]


@dataclass
class StubJudges:
    """An HTTP server on loopback. ``body`` and ``status`` replace its answers, ``delay`` is in seconds."""

    port: int = 0
    delay: float = 0.0
    status: int = 200
    body: bytes | None = None
    logprobs: bool = True
    received: list[Received] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    _server: asyncio.Server | None = None
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections)
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        parser = RequestParser()
        try:
            while data := await reader.read(1 << 16):
                parser.feed(data)
                while (request := parser.next_request()) is not None:
                    writer.write(await self._answer(request))
                    await writer.drain()
        except (ConnectionError, BadRequestError, asyncio.CancelledError):
            pass  # streams of asyncio log a handler that is cancelled as an error
        finally:
            self._connections.discard(connection)
            writer.transport.abort()

    async def _answer(self, request: Received) -> bytes:
        self.received.append(request)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.open -= 1
        status, answer = self._judge(request)
        body = answer if self.body is None else self.body
        fields = {"content-type": "application/json", "content-length": str(len(body))}
        return head(status if self.status == 200 else self.status, fields) + body

    def _judge(self, request: Received) -> tuple[int, bytes]:
        if "x-acs-action" in request.headers:
            status, answer = aliyun(request)
        else:
            request.json = json.loads(request.body)
            if request.path.endswith("/moderations"):
                status, answer = 200, moderation(request.json)
            elif request.path.endswith("/chat/completions"):
                status, answer = 200, self._completion(request.json)
            else:
                status, answer = 404, {"error": {"message": "no such path"}}
        return status, json.dumps(answer, ensure_ascii=False).encode()

    def _completion(self, asked: dict[str, Any]) -> dict[str, Any]:
        last = asked["messages"][-1]
        words = found(last["content"])
        model = asked["model"].lower()
        logprobs = None
        if "shield" in model:
            guideline = asked["chat_template_kwargs"]["guideline"]
            policy = {"Dangerous": "violence", "Sexually": "sexual"}
            bad = any(mark in guideline and WORDS[word] == kind for mark, kind in policy.items() for word in words)
            text = "Yes" if bad else "No"
            if self.logprobs and asked.get("logprobs"):
                likely = [{"token": text, "logprob": -0.05}, {"token": "No" if bad else "Yes", "logprob": -3.0}]
                logprobs = {"content": [{"token": text, "logprob": -0.05, "top_logprobs": likely}]}
        elif "llama" in model:
            hazards = {"violence": "S1", "sexual": "S12"}
            text = "\n\nunsafe\n" + ",".join(hazards[WORDS[word]] for word in words) if words else "\n\nsafe"
        else:
            labels = {"violence": "Violent", "sexual": "Sexual Content or Sexual Acts"}
            named = ", ".join(labels[WORDS[word]] for word in words) or "None"
            safety = "Unsafe" if words else "Controversial" if "dubious" in last["content"] else "Safe"
            text = f"Safety: {safety}\nCategories: {named}"
            text += "\nRefusal: No" if last["role"] == "assistant" else ""
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}
        return {"id": "chatcmpl-judge", "object": "chat.completion", "model": asked["model"], "choices": [choice]}


def moderation(asked: dict[str, Any]) -> dict[str, Any]:
    parts = [{"text": asked["input"]}] if isinstance(asked["input"], str) else asked["input"]
    text = " ".join(part.get("text") or part["image_url"]["url"] for part in parts)
    scores = {"violence": 0.0001, "sexual": 0.0002, "self-harm/intent": 0.00001}
    scores |= {WORDS[word]: 0.93 for word in found(text)}
    categories = {category: score > 0.5 for category, score in scores.items()}
    result = {"flagged": any(categories.values()), "categories": categories, "category_scores": scores}
    return {"id": "modr-1", "model": asked["model"], "results": [result]}


# --- Alibaba Cloud --------------------------------------------------------------------------------------------


def aliyun(request: Received) -> tuple[int, dict[str, Any]]:
    if not is_signed(request):
        return 403, {
            "Code": "SignatureDoesNotMatch",
            "Message": "Specified signature is not matched.",
            "RequestId": "1",
        }
    form = {name: values[0] for name, values in parse_qs(f"{request.query}&{request.body.decode()}").items()}
    asked = json.loads(form.get("ServiceParameters", "{}"))
    request.json = {"Service": form["Service"], **asked}
    text = asked.get("content", "") + " ".join(asked.get("imageUrls", [])) + form.get("ImageBase64Str", "")
    words = found(text)
    level = "high" if words else "none"
    labels = [{"Label": WORDS[word], "Confidence": 99.1, "RiskWords": word} for word in words]
    data: dict[str, Any]
    if request.headers["x-acs-action"] == "TextModerationPlus":
        attack = "medium" if "ignore all" in text else "none"
        data = {
            "RiskLevel": level,
            "Result": labels or [{"Label": "nonLabel", "Description": "未检测出风险"}],
            "AttackLevel": attack,
            "AttackResult": [{"AttackLevel": attack, "Label": "safe" if attack == "none" else "Jailbreak"}],
            "SensitiveLevel": "S2" if "13812345678" in text else "S0",
            "SensitiveResult": [],
        }
    else:
        results = [{"Label": each["Label"], "Level": level, "Confidence": 99.1} for each in labels]
        detail = {"Type": "contentModeration", "Level": level, "Suggestion": "block" if words else "pass"}
        data = {
            "Suggestion": detail["Suggestion"],
            "Detail": [
                {**detail, "Result": results or [{"Label": "nonLabel", "Level": "none"}]},
                {"Type": "promptAttack", "Level": "low" if "ignore all" in text else "none", "Result": []},
            ],
        }
    return 200, {"Code": 200, "Message": "OK", "RequestId": "AAAA-BBBB", "Data": data}


def is_signed(request: Received) -> bool:
    """Signature version 3 (help.aliyun.com/zh/sdk/product-overview/v3-request-structure-and-signature)."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    parts = dict(part.split("=", 1) for part in given.split(",") if "=" in part)
    digest = hashlib.sha256(request.body).hexdigest()
    if scheme != "ACS3-HMAC-SHA256" or request.headers.get("x-acs-content-sha256") != digest:
        return False
    names = parts["SignedHeaders"]
    fields = "".join(f"{name}:{request.headers[name]}\n" for name in names.split(";"))
    canonical = f"{request.method}\n{request.path}\n{request.query}\n{fields}\n{names}\n{digest}"
    signed = f"{scheme}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    wanted = hmac.new(ACCESS_KEY_SECRET.encode(), signed.encode(), hashlib.sha256).hexdigest()
    return parts["Credential"] == ACCESS_KEY_ID and parts["Signature"] == wanted


@asynccontextmanager
async def stub_judges(**options: Any) -> AsyncIterator[StubJudges]:
    stub = StubJudges(**options)
    await stub.start()
    try:
        yield stub
    finally:
        await stub.stop()


# --- processes ------------------------------------------------------------------------------------------------


async def _http(port: str) -> None:
    await StubJudges(int(port)).start()


async def _grpc(address: str) -> None:
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    from extproc.wire.judge import SERVICE
    from extproc.wire.proto import moderation_pb2 as pb

    healthy = health.aio.HealthServicer()

    async def judge(asked: pb.JudgeRequest, context: grpc.aio.ServicerContext) -> pb.JudgeResponse:
        if "refuse" in asked.text:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, asked.text)
        if "slow" in asked.text:
            await asyncio.sleep(30)
        if "sick" in asked.text:
            await healthy.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
        findings = [_finding(asked.text, word) for word in found(asked.text)]
        if "echo" in asked.text:
            said = [*(f"{pb.Role.Name(turn.role)} {turn.text}" for turn in asked.context)]
            said += [pb.Role.Name(asked.role), pb.Direction.Name(asked.direction), asked.policy, asked.call_id]
            said += [image.url for image in asked.images] + [str(round(context.time_remaining()))]
            findings.append(pb.Finding(category=" | ".join(said), score=0.5))
        if "garbage" in asked.text:
            findings.append(pb.Finding(category="garbage", score=17.0))
        if "outside" in asked.text:
            spans = [pb.Span(start=0, end=len(asked.text) + 1)]
            findings.append(pb.Finding(category="outside", score=1.0, spans=spans))
        return pb.JudgeResponse(findings=findings)

    def _finding(text: str, word: str) -> pb.Finding:
        start = text.index(word)
        spans = [pb.Span(start=start, end=start + len(word))]
        return pb.Finding(category=WORDS[word], score=0.9, spans=spans, reason=f"the word {word}")

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(judge, pb.JudgeRequest.FromString, pb.JudgeResponse.SerializeToString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Judge": handler}),))
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    await healthy.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(address)
    await server.start()
    _kept.append(server)


_kept: list[Any] = []
_KINDS: Final[dict[str, Callable[[str], Coroutine[Any, Any, None]]]] = {"http": _http, "grpc": _grpc}


async def main(kind: str, where: str) -> None:
    await _KINDS[kind](where)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
