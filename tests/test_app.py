"""What one configuration becomes, and the swap from one to the next."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, Metadata
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    ProcessingRequest,
    ProcessingResponse,
)
from google.protobuf.struct_pb2 import Struct
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from extproc.accounts.books import Books
from extproc.accounts.consumers import Snapshot
from extproc.accounts.estimates import Estimator
from extproc.app import App, Build, Opening, Services, build
from extproc.config.load import ConfigError, parse
from extproc.core.call import Target
from extproc.core.messages import Headers, RequestHead
from extproc.providers.pool import Pools
from extproc.stores.memory import MemoryState
from extproc.stores.sql import open_database
from extproc.telemetry.books import Watch, estimated
from extproc.wire.names import ATTRIBUTES, STAGE
from extproc.wire.session import Session

KEY = "sk-acme-example"
CHAT = "/v1/chat/completions"
NAMES = {name: expression for expression, name in ATTRIBUTES.items()}


def services(snapshot: Snapshot | None = None) -> Services:
    """What a worker has: a hot state that forgets, and a ledger that nobody asks, since there are no rules."""
    ledger = open_database("sqlite:///nowhere/at/all").ledger
    return Services(
        books=Books(MemoryState("w", journal=None), ledger, Watch()),
        estimator=Estimator(estimated),
        snapshot=snapshot or Snapshot(),
        keys=Pools(time.monotonic),
        on_use=lambda key, at: None,
        put=lambda record: None,
        worker="w",
    )


def made(*, key: str = KEY, provider_key: str = "pk-first", **changes: Any) -> Build:
    """What a configuration becomes in which these things differ."""
    document = {
        "providers": {
            "p": {"base_url": "http://127.0.0.1:9/v1", "keys": [{"value": provider_key}]},
            "claude": {"kind": "anthropic"},
        },
        "models": {
            "m": {
                "route": [[{"provider": "p"}], [{"provider": "p", "model": "other", "weight": 3}]],
                "retry": {"idle": "7s"},
            },
            "both": {"route": [[{"provider": "p"}], [{"provider": "claude"}]]},
            "parked": {"route": [[{"provider": "p"}, {"provider": "claude", "weight": 0}]]},
        },
        "consumers": {"acme": {"keys": [{"value": key}], "models": ["m"]}},
        **changes,
    }
    return build(parse(yaml.safe_dump(document).encode(), Path("extproc.yaml")), services(), {})


# --- build ----------------------------------------------------------------------------------------------------


def test_models() -> None:
    """A target without a name of its own has the public one; the route keeps its order and its weights."""
    models = made().parts.models

    assert models["m"].route == ((Target("p", "m"),), (Target("p", "other", 3),))
    assert models["m"].idle == 7.0
    assert {name: set(model.dialects) for name, model in models.items()} == {
        "m": {"openai"},
        "both": {"openai", "anthropic"},
        "parked": {"openai"},
    }


def test_the_digest_names_the_content() -> None:
    """The same content has the same digest, other content another one."""
    assert made().digest == made().digest
    assert made().digest != made(provider_key="pk-second").digest


def test_parts_that_do_not_fit_together() -> None:
    """All providers are tried, and each that cannot be made is named with the reason."""
    with pytest.raises(ConfigError) as refused:
        made(
            providers={
                "p": {"base_url": "http://p/v1"},
                "a": {"kind": "anthropic", "dialect": "openai"},
                "b": {"base_url": "ftp://b"},
                "claude": {"base_url": "http://c"},
            }
        )

    assert refused.value.file == Path("extproc.yaml")
    assert [problem.path for problem in refused.value.problems] == ["providers.a", "providers.b"]
    assert "http://" in refused.value.problems[1].message


# --- a call's beginning ---------------------------------------------------------------------------------------


def opened(path: str, method: str = "POST") -> Any:
    call, _ = Opening(made().plugins)(RequestHead(Headers([(":method", method), (":path", path)]), end=False))
    return call


def test_a_call_is_made_of_its_head() -> None:
    """Path and query are told apart; the path says the endpoint and the dialect of errors."""
    call = opened(f"{CHAT}?api-version=1&x=%3F?")

    assert (call.method, call.path, call.query) == ("POST", CHAT, "api-version=1&x=%3F?")
    assert (call.endpoint.name, call.dialect) == ("chat", "openai")


def test_a_path_that_is_no_endpoint() -> None:
    """It is a call all the same: it gets its refusal in the dialect that its path looks like."""
    assert (opened("/v1/messages/batches").endpoint, opened("/v1/messages/batches").dialect) == (None, "anthropic")
    assert (opened("/").endpoint, opened("/").dialect) == (None, "openai")


def test_ids_of_calls() -> None:
    """None is like another, and they sort by their time."""
    opening = Opening(made().plugins)
    head = RequestHead(Headers([(":path", CHAT)]), end=False)
    ids = [opening(head)[0].id for _ in range(1000)]

    assert len(set(ids)) == 1000
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
    assert [each[:12] for each in ids] == sorted(each[:12] for each in ids)


# --- streams --------------------------------------------------------------------------------------------------


def headers(fields: dict[str, str]) -> HttpHeaders:
    values = [HeaderValue(key=name, raw_value=value.encode()) for name, value in fields.items()]
    return HttpHeaders(headers=HeaderMap(headers=values))


def struct(**fields: Any) -> Struct:
    filled = Struct()
    filled.update(fields)
    return filled


async def said(session: Session, **message: Any) -> ProcessingResponse:
    (answer,) = await session.receive([ProcessingRequest(**message).SerializeToString()])
    return ProcessingResponse.FromString(answer)


def router(app: App) -> Session:
    return app.open_session({STAGE: "router"})


async def asked(session: Session, key: str = KEY) -> int:
    """Say a call's head with this key. The status of an answer, 0 where the call may go on."""
    head = headers({":method": "POST", ":path": CHAT, "authorization": f"Bearer {key}"})
    return int((await said(session, request_headers=head)).immediate_response.status.code)


async def sent(session: Session, model: str = "m") -> ProcessingResponse:
    """Say the body of the call."""
    body = json.dumps({"model": model, "messages": []}).encode()
    return await said(session, request_body=HttpBody(body=body, end_of_stream=True))


async def attempted(app: App, config: str, *, number: int = 1) -> dict[str, str]:
    """One attempt of a call that began with this configuration: the headers that the provider gets."""
    session = app.open_session({STAGE: "upstream"})
    known = struct(call_id="call-1", model="m", endpoint="chat", query="", config=config)
    target = struct(**{NAMES["provider"]: "p", NAMES["target"]: "own-name", NAMES["attempt"]: number})
    await said(
        session,
        request_headers=headers({}),
        metadata_context=Metadata(filter_metadata={"extproc": known}),
        attributes={"envoy.filters.http.ext_proc": target},
    )
    answer = await sent(session)
    mutation = answer.request_body.response.header_mutation
    return {each.header.key: each.header.raw_value.decode() for each in mutation.set_headers}


@pytest.mark.parametrize("stage", ["", "Router", "router,upstream", "x" * 1000])
def test_a_stage_that_is_none(stage: str) -> None:
    """A stream that does not say where it comes from is not served; an empty one neither."""
    with pytest.raises(ValueError, match=f"{STAGE} must be router or upstream"):
        App(made()).open_session({STAGE: stage} if stage else {})


async def test_open_streams_are_counted() -> None:
    """A call counts for as long as its stream is open; attempts do not count."""
    app = App(made())

    def count() -> float:
        return REGISTRY.get_sample_value("extproc_streams_open") or 0

    before = count()
    first, second = router(app), router(app)
    app.open_session({STAGE: "upstream"})
    assert count() == before + 2

    await first.close()
    await second.close()
    assert count() == before


async def test_a_call_that_passes() -> None:
    """Known key, allowed model: it is routed by its model, and the next stage is told what it must know."""
    app = App(made())
    session = router(app)

    assert await asked(session) == 0
    answer = await sent(session)
    await session.close()

    fields = answer.dynamic_metadata.fields["extproc"].struct_value.fields
    assert answer.request_body.response.clear_route_cache
    assert (fields["model"].string_value, fields["endpoint"].string_value) == ("m", "chat")
    assert fields["config"].string_value == app.digest


async def test_every_call_leaves_its_line() -> None:
    """Refused or broken off, it is in the log once, when its stream is over."""
    app = App(made())
    refused, broken = router(app), router(app)
    await asked(refused, "sk-somebody-else")
    await asked(broken)

    with capture_logs() as lines:
        await refused.close()
        await broken.close()

    assert [(line["event"], line["how"]) for line in lines] == [("call", "refused"), ("call", "aborted")]
    assert lines[0]["code"] == "invalid_api_key"
    assert lines[1]["consumer"] == "acme"


async def test_attempts_are_counted() -> None:
    """By provider, target and number, so that fallback shows."""
    app = App(made())
    labels = {"provider": "p", "target": "own-name", "number": "3"}
    before = REGISTRY.get_sample_value("extproc_attempts_total", labels) or 0

    await attempted(app, app.digest, number=3)

    assert REGISTRY.get_sample_value("extproc_attempts_total", labels) == before + 1


# --- swap -----------------------------------------------------------------------------------------------------


async def test_new_calls_see_the_new_configuration() -> None:
    """From the swap on, and whole."""
    app, new = App(made()), made(key="sk-another-key")

    app.swap(new)

    assert app.digest == new.digest
    assert [await asked(router(app), key) for key in (KEY, "sk-another-key")] == [401, 0]


async def test_a_call_keeps_the_configuration_that_it_began_with() -> None:
    """A swap between its head and its body changes nothing for it."""
    first = made()
    app = App(first)
    session = router(app)
    assert await asked(session) == 0

    app.swap(made(key="sk-another-key", consumers={"acme": {"keys": [{"value": "sk-another-key"}], "models": []}}))

    answer = await sent(session)
    config = answer.dynamic_metadata.fields["extproc"].struct_value.fields["config"].string_value
    assert answer.WhichOneof("response") == "request_body"
    assert config == first.digest


async def test_attempts_keep_the_configuration_of_their_call() -> None:
    """The provider's key of an attempt is the one that was in force when its call began."""
    first, second = made(provider_key="pk-first"), made(provider_key="pk-second")
    app = App(first)

    app.swap(second)

    assert (await attempted(app, first.digest))["authorization"] == "Bearer pk-first"
    assert (await attempted(app, second.digest))["authorization"] == "Bearer pk-second"


async def test_an_attempt_of_an_unknown_configuration() -> None:
    """A worker that never had it, a new one for example, uses what is in force."""
    app = App(made(provider_key="pk-first"))

    assert (await attempted(app, "never-heard"))["authorization"] == "Bearer pk-first"


async def test_old_configurations_are_forgotten_in_time() -> None:
    """Four are kept: the one in force and three before it."""
    builds = [made(provider_key=f"pk-{number}") for number in range(5)]
    app = App(builds[0])
    for each in builds[1:]:
        app.swap(each)

    used = [(await attempted(app, each.digest))["authorization"].removeprefix("Bearer ") for each in builds]

    assert used == ["pk-4", "pk-1", "pk-2", "pk-3", "pk-4"]


async def test_a_configuration_that_comes_back_is_young_again() -> None:
    """Back and forth between two forgets neither, and one in force is never forgotten."""
    builds = [made(provider_key=f"pk-{number}") for number in range(5)]
    app = App(builds[0])
    for number in (1, 2, 3, 0, 4):
        app.swap(builds[number])

    assert (await attempted(app, builds[0].digest))["authorization"] == "Bearer pk-0"
    assert (await attempted(app, builds[1].digest))["authorization"] == "Bearer pk-4"
