"""Who calls, what they may use, and what nobody can pretend to be."""

import asyncio
import base64
import json
from typing import Any

import anthropic
import httpx
import openai
import pytest
from world import ACME, CHAT, GLOBEX, LEAVER, MESSAGES, PROVIDER_KEYS, World, call_id, chat, messages

pytestmark = pytest.mark.e2e

HI: Any = [{"role": "user", "content": "hi"}]
BODY = b'{"model":"gpt","messages":[]}'


def post(world: World, *fields: tuple[str, str | bytes], path: str = CHAT, body: bytes = BODY) -> httpx.Response:
    """A call with exactly these headers, names repeated where they are."""
    sent = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in fields]
    return world.request("POST", path, content=body, headers=sent)


# --- keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [("authorization", f"Bearer {ACME}"), ("x-api-key", ACME), ("api-key", ACME), ("AUTHORIZATION", f"bearer {ACME}")],
)
@pytest.mark.parametrize(("path", "stub"), [(CHAT, "primary"), (MESSAGES, "claude")])
def test_key_in_each_header(world: World, header: tuple[str, str], path: str, stub: str) -> None:
    """Each of the three headers carries the key, for both dialects, and the provider sees only its own key."""
    body = BODY if path == CHAT else b'{"model":"claude","max_tokens":1,"messages":[]}'
    answer = post(world, header, path=path, body=body)

    assert answer.status_code == 200
    assert world.line(call_id=call_id(answer))["consumer"] == "acme"
    sent = world.seen(stub).headers
    assert not [name for name, value in sent.items() if ACME in value]
    own = {"primary": ("authorization", f"Bearer {PROVIDER_KEYS['primary']}")}.get(
        stub, ("x-api-key", PROVIDER_KEYS[stub])
    )
    assert {name: sent[name] for name in ("authorization", "x-api-key", "api-key") if name in sent} == dict([own])


@pytest.mark.parametrize(("key", "consumer"), [(ACME, "acme"), (GLOBEX, "globex"), (LEAVER, "leaver")])
def test_key_of_each_kind(world: World, key: str, consumer: str) -> None:
    """A key by value, by hash and from the environment."""
    answer = world.chat("gpt", key=key)

    assert world.line(call_id=call_id(answer))["consumer"] == consumer


ABSURD: dict[str, list[tuple[str, str | bytes]]] = {
    "none": [],
    "empty bearer": [("authorization", "Bearer ")],
    "only bearer": [("authorization", "Bearer")],
    "empty": [("authorization", "")],
    "blank": [("x-api-key", "   ")],
    "unknown": [("authorization", "Bearer sk-nobody-1234567890")],
    "no scheme": [("authorization", ACME)],
    "another scheme": [("authorization", f"Basic {base64.b64encode(f':{ACME}'.encode()).decode()}")],
    "bearer in another header": [("x-api-key", f"Bearer {ACME}")],
    "bearer twice": [("authorization", f"Bearer Bearer {ACME}")],
    "a header that is none of ours": [("x-goog-api-key", ACME)],
    "cookie": [("cookie", f"api-key={ACME}")],
    "two different": [("authorization", f"Bearer {ACME}"), ("x-api-key", GLOBEX)],
    "two of one header": [("authorization", f"Bearer {ACME}"), ("authorization", f"Bearer {GLOBEX}")],
    "the same twice": [("authorization", f"Bearer {ACME}"), ("authorization", f"Bearer {ACME}")],
    "one known, one not": [("authorization", f"Bearer {ACME}"), ("api-key", "sk-nobody")],
    "a part": [("x-api-key", ACME[:-1])],
    "more": [("x-api-key", ACME + "x")],
    "upper case": [("x-api-key", ACME.upper())],
    "very long": [("x-api-key", "k" * 20_000)],
    "not ascii": [("x-api-key", "ключ-钥匙".encode())],
    "bytes": [("x-api-key", bytes(range(0x80, 0x100)))],
    "quotes": [("x-api-key", '"\\"; DROP TABLE keys; --')],
    "format": [("x-api-key", "%s{0}{key}$(id)%REQ(:path)%")],
    "a provider's": [("authorization", f"Bearer {PROVIDER_KEYS['primary']}")],
    "its hash": [("x-api-key", "sha256:0000")],
}


@pytest.mark.parametrize("fields", ABSURD.values(), ids=ABSURD)
@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/models"])
def test_no_key_that_we_know(world: World, fields: list[tuple[str, str | bytes]], path: str) -> None:
    """401 in the dialect's words, which never repeat what was sent; no provider is asked."""
    sent = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in fields]
    start = f"GET {path}" if path == "/v1/models" else f"POST {path}"
    lines = [f"{start} HTTP/1.1".encode(), b"host: x", *(b"%b: %b" % field for field in sent)]
    body = b"" if path == "/v1/models" else b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY)
    status, headers, content = world.raw(b"\r\n".join([*lines, body or b"\r\n"]))

    assert (status, headers["content-type"]) == (401, "application/json")
    error = json.loads(content)["error"]
    assert (error["type"] == "authentication_error") if path == MESSAGES else (error["code"] == "invalid_api_key")
    assert not [value for _, value in sent if len(value) > 8 and value in content]
    assert world.hits() == {}
    assert world.line(call_id=headers["x-extproc-call-id"])["code"] == "invalid_api_key"


def test_the_same_key_in_two_headers(world: World) -> None:
    """Some clients send their key twice in different headers; that is one key."""
    answer = post(world, ("authorization", f"Bearer {ACME}"), ("x-api-key", ACME))

    assert answer.status_code == 200


async def test_a_refused_key_as_the_sdks_see_it(world: World) -> None:
    """All four clients raise their own AuthenticationError."""
    wrong: Any = {"api_key": "sk-nobody", "max_retries": 0}
    base = world.gateway.base_url
    with openai.OpenAI(base_url=base, **wrong) as gpt, pytest.raises(openai.AuthenticationError) as caught:
        await asyncio.to_thread(gpt.chat.completions.create, model="gpt", messages=HI)
    assert caught.value.code == "invalid_api_key"
    async with openai.AsyncOpenAI(base_url=base, **wrong) as async_gpt:
        with pytest.raises(openai.AuthenticationError):
            await async_gpt.chat.completions.create(model="gpt", messages=HI, stream=True)
    async with anthropic.AsyncAnthropic(base_url=world.gateway.url, **wrong) as claude:
        with pytest.raises(anthropic.AuthenticationError):
            await claude.messages.create(model="claude", max_tokens=1, messages=HI)


# --- permissions ------------------------------------------------------------------------------------------------


def test_models_by_glob(world: World) -> None:
    """A consumer may use what its globs name, and nothing else."""
    allowed = world.chat("gpt", key=GLOBEX)
    refused = world.chat("secret-model", key=GLOBEX)

    assert (allowed.status_code, refused.status_code) == (200, 403)
    assert refused.json()["error"]["code"] == "model_not_allowed"
    assert world.hits() == {"primary": 1}


def test_a_forbidden_model_and_an_unknown_one_look_alike(world: World) -> None:
    """Whether a model exists is nothing that a refusal tells."""
    forbidden = world.chat("secret-model", key=GLOBEX)
    unknown = world.chat("no-such-model", key=GLOBEX)

    assert forbidden.status_code == unknown.status_code == 403
    assert forbidden.text.replace("secret-model", "no-such-model") == unknown.text


def test_a_forbidden_model_as_the_sdks_see_it(world: World) -> None:
    """PermissionDeniedError, in both."""
    with (
        openai.OpenAI(base_url=world.gateway.base_url, api_key=GLOBEX, max_retries=0) as gpt,
        pytest.raises(openai.PermissionDeniedError, match="secret-model"),
    ):
        gpt.chat.completions.create(model="secret-model", messages=HI)
    with (
        anthropic.Anthropic(base_url=world.gateway.url, api_key=GLOBEX, max_retries=0) as claude,
        pytest.raises(anthropic.PermissionDeniedError, match="claude-pair"),
    ):
        claude.messages.create(model="claude-pair", max_tokens=1, messages=HI)


def test_an_unknown_model(world: World, gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """NotFoundError, in both; so is a model that is not served in that dialect."""
    with pytest.raises(openai.NotFoundError, match="no-such-model") as caught:
        gpt.chat.completions.create(model="no-such-model", messages=HI)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(anthropic.NotFoundError, match="no-such-model"):
        claude.messages.create(model="no-such-model", max_tokens=1, messages=HI)
    with pytest.raises(anthropic.NotFoundError, match="not served at"):
        claude.messages.create(model="gpt", max_tokens=1, messages=HI)
    assert world.hits() == {}


def test_list_of_models(world: World, gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    """Each consumer sees just what it may use, through either SDK, and one model's card."""
    with openai.OpenAI(base_url=world.gateway.base_url, api_key=GLOBEX) as narrow:
        few = {model.id for model in narrow.models.list()}
        with pytest.raises(openai.NotFoundError):
            narrow.models.retrieve("secret-model")
    many = {model.id for model in gpt.models.list()}

    assert few == {"gpt", "claude"}
    assert few | {"secret-model", "pair", "split"} <= many
    assert gpt.models.retrieve("gpt").id == "gpt"
    assert {model.id for model in claude.models.list()} == many
    assert world.hits() == {}


# --- spoofing ---------------------------------------------------------------------------------------------------

SPOOFED = {
    "x-extproc-model": "secret-model",
    "x-extproc-call-id": "forged",
    "x-extproc-consumer": "globex",
    "x-extproc-anything": "1",
    "x-envoy-retry-on": "5xx",
    "x-envoy-max-retries": "50",
    "x-envoy-upstream-rq-timeout-ms": "1",
    "x-envoy-upstream-rq-per-try-timeout-ms": "1",
    "x-envoy-upstream-alt-stat-name": "spoofed",
    "x-envoy-original-path": "/v1/elsewhere",
    "x-envoy-original-dst-host": "10.0.0.1:80",
    "x-envoy-decorator-operation": "spoofed",
    "x-envoy-internal": "true",
    "x-envoy-force-trace": "true",
    "x-envoy-hedge-on-per-try-timeout": "true",
    "x-envoy-attempt-count": "9",
    "x-envoy-ip-tags": "spoofed",
    "x-forwarded-for": "10.9.9.9",
    "x-forwarded-host": "evil.example",
    "x-request-id": "forged",
}


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_internal_headers_are_nobodys_to_send(world: World, case: Any) -> None:
    """They choose no model, no consumer, no timeout and no call id, and reach no provider."""
    answer = world.chat("gpt", key=GLOBEX, headers={case(name): value for name, value in SPOOFED.items()})

    assert answer.status_code == 200
    line = world.line(call_id=call_id(answer))
    assert (line["consumer"], line["model"], line["provider"]) == ("globex", "gpt", "primary")
    assert call_id(answer) != "forged"
    sent = world.seen("primary").headers
    assert not [name for name in sent if name.startswith(("x-extproc-", "x-envoy-"))]
    assert not {"x-forwarded-for", "x-request-id"} & set(sent)


def test_a_client_does_not_ask_for_retries(world: World) -> None:
    """How often we try is the operator's word, whatever the client's headers say."""
    world.primary.behaviour.status = 503
    world.chat("gpt", headers={"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "5"})

    assert world.hits() == {"primary": 1}


def test_a_client_does_not_shorten_our_patience(world: World) -> None:
    """A client's timeout headers are not Envoy's."""
    world.primary.behaviour.delay = 0.4
    answer = world.chat(
        "gpt", headers={"x-envoy-upstream-rq-timeout-ms": "5", "x-envoy-upstream-rq-per-try-timeout-ms": "5"}
    )

    assert answer.status_code == 200


def test_a_provider_does_not_set_our_headers(world: World) -> None:
    """What a provider sends under our names does not reach the client."""
    world.primary.behaviour.headers = {"x-extproc-call-id": "forged", "x-extproc-cache": "hit", "x-own": "1"}
    for stream in (False, True):
        answer = world.chat("gpt", stream=stream)
        assert call_id(answer) != "forged"
        assert "x-extproc-cache" not in answer.headers
        assert answer.headers["x-own"] == "1"


def test_host_and_scheme_of_the_client_mean_nothing(world: World) -> None:
    """A request for any host, also in absolute form, goes where the model's route says."""
    key = f"authorization: Bearer {ACME}\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n"
    for target in (CHAT, f"http://api.openai.com{CHAT}", f"http://evil.example{CHAT}"):
        request = f"POST {target} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n{key}\r\n".encode() + BODY
        status, _, _ = world.raw(request)
        assert status == 200

    assert {r.headers["host"] for r in world.primary.requests} == {f"127.0.0.1:{world.primary.port}"}


@pytest.mark.parametrize("path", ["/v1/../v1/chat/completions", "//v1//chat/completions", "/v1/./chat/completions"])
def test_crooked_paths_are_straightened(world: World, path: str) -> None:
    """A path that means an endpoint is treated as that endpoint: key, permission and all."""
    head = "host: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    length = f"content-length: {len(BODY)}\r\n\r\n"
    without, _, _ = world.raw(f"POST {path} HTTP/1.1\r\n{head}{length}".encode() + BODY)
    with_key, _, _ = world.raw(
        f"POST {path} HTTP/1.1\r\nauthorization: Bearer {ACME}\r\n{head}{length}".encode() + BODY
    )

    assert (without, with_key) == (401, 200)


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions/", "/v1/chat%2Fcompletions", "/V1/chat/completions", "/v1/files", "/", "/healthz"]
)
def test_other_paths_lead_nowhere(world: World, path: str) -> None:
    """What is no endpoint is 404 for those we know and 401 for others; never a provider's."""
    known = world.post(path, chat("gpt"))
    unknown = world.post(path, chat("gpt"), key=None)

    assert (known.status_code, unknown.status_code) == (404, 401)
    assert known.json()["error"]["code"] == "unknown_endpoint"
    assert world.hits() == {}


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_other_methods_lead_nowhere(world: World, method: str) -> None:
    """A method that an endpoint does not take is 405, and says which one is right."""
    answer = world.request(method, CHAT, headers={"authorization": f"Bearer {ACME}"})

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert world.hits() == {}


@pytest.mark.parametrize("start", [f"CONNECT {CHAT}", f"FOO {CHAT}", f"POST https://evil.example{CHAT}", "garbage"])
def test_what_is_no_request_of_http(world: World, start: str) -> None:
    """What Envoy's parser refuses is never an answer: the connection is closed, after a 400 or without."""
    with world.connect() as connection:
        connection.sendall(f"{start} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ACME}\r\n\r\n".encode())
        said = connection.recv(4096)

    assert said == b"" or said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403", b"HTTP/1.1 404"))
    assert world.hits() == {}
    assert world.chat("gpt").status_code == 200


def test_keys_do_not_pass_in_the_query(world: World) -> None:
    """A key in the URL is no key: URLs are logged by everyone on the way."""
    answer = world.post(f"{CHAT}?api_key=nobody", chat("gpt"), key=None)

    assert answer.status_code == 401


def test_messages_by_bearer(world: World) -> None:
    """Anthropic's newer clients send a bearer token."""
    answer = world.post(MESSAGES, messages("claude"))

    assert answer.status_code == 200
    assert world.seen("claude").headers["x-api-key"] == PROVIDER_KEYS["claude"]
    assert "authorization" not in world.seen("claude").headers
