"""Reading the file: every problem by its path, secrets from three places, and nothing secret in any message."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from extproc.config.load import ConfigError, Loaded, fingerprints, load, parse

GOOD = """
providers:
  near: {kind: vllm, base_url: "http://127.0.0.1:9001/v1", keys: [{value: pk-near-secret}]}
models:
  m: {route: [{provider: near}]}
consumers:
  acme: {keys: [{value: sk-acme-secret}]}
"""


def read(text: str | bytes, file: Path = Path("extproc.yaml")) -> Loaded:
    return parse(text.encode() if isinstance(text, str) else text, file)


def problems(text: str | bytes, file: Path = Path("extproc.yaml")) -> dict[str, str]:
    """Path → message of all that is wrong."""
    with pytest.raises(ConfigError) as caught:
        read(text, file)
    assert str(caught.value).startswith(f"{file}: ")
    return {problem.path: problem.message for problem in caught.value.problems}


# --- YAML -------------------------------------------------------------------------------------------------------


def test_an_empty_file_is_a_configuration() -> None:
    """Every key has a default; nobody may call, and there is nothing to call."""
    assert read("").config == read("{}\n").config


@pytest.mark.parametrize(
    "word", ["on", "off", "yes", "no", "y", "n", "1:30", "1_000", "0o17", "2024-01-01", "True", "NO"]
)
def test_words_stay_words(word: str) -> None:
    """YAML 1.2: what 1.1 took for booleans, dates and odd numbers is text."""
    loaded = read(GOOD + f"  {word}: {{keys: [{{value: sk-other-secret}}], models: [{word}]}}\n")

    assert loaded.config.consumers[word].models == [word]


@pytest.mark.parametrize(("written", "weight"), [("010", 10), ("09", 9), ("+7", 7), ("0", 0)])
def test_numbers_are_decimal(written: str, weight: int) -> None:
    """A leading zero makes no octal number, and no crash."""
    route = f"[[{{provider: near}}, {{provider: near, model: x, weight: {written}}}]]"

    assert read(GOOD.replace("[{provider: near}]", route)).config.models["m"].route[0][1].weight == weight


@pytest.mark.parametrize("key", ["retry", "route"])
def test_a_key_that_stands_twice(key: str) -> None:
    """YAML would silently take the last one."""
    twice = f"models:\n  m:\n    {key}: []\n    {key}: []\n"

    assert problems(twice) == {"": f"line 4, column 5: the key '{key}' stands twice"}


def test_retry_on_is_a_key() -> None:
    """`on` in `retry` is a word and not the boolean true."""
    text = GOOD.replace("route: [{provider: near}]", "route: [{provider: near}], retry: {on: [connect, 503]}")

    assert read(text).config.models["m"].retry.on == ["connect", "503"]


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: b: c",
        "\t- x",
        "- &a *b",
        "!!python/object/apply:os.system [id]",
        b"\xff\xfe\x00",
        "x: \x00",
        "x: " + "9" * 5000,
        "[" * 5000,
        "x: " + "[" * 5000 + "]" * 5000,
    ],
)
def test_what_is_no_yaml(text: str | bytes) -> None:
    """It is refused with the place, where there is one, and nothing is executed."""
    [message] = problems(text).values()

    assert len(message) > 10


@pytest.mark.parametrize("text", ["[]", "text", "1", "- a"])
def test_what_is_no_mapping(text: str) -> None:
    """A configuration is a mapping."""
    assert "dictionary" in problems(text)[""]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """The error names it."""
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load(tmp_path / "none.yaml")


def test_a_directory(tmp_path: Path) -> None:
    """So it does for what is no file."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


# --- the document -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("modles: {}", "modles", "unknown key"),
        ("gateway: {max_bodi: 1}", "gateway.max_bodi", "unknown key"),
        ("gateway: {max_body: 8 megs}", "gateway.max_body", "should look like 4MiB"),
        ("gateway: {max_body: 0}", "gateway.max_body", "greater than or equal to 1"),
        ("gateway: {max_answer: 8GiB}", "gateway.max_answer", "less than or equal to 1073741824"),
        ("gateway: {listen: 8080}", "gateway.listen", "valid dictionary"),
        ("gateway: {listen: 'host'}", "gateway.listen", "should look like 127.0.0.1:8080"),
        ("gateway: {listen: 'host:99999'}", "gateway.listen.port", "less than or equal to 65535"),
        ("server: {grpc: somewhere}", "server.grpc", "should look like unix:"),
        ("server: {transport: http}", "server.transport", "'grpcio' or 'granian'"),
        ("server: {workers: 0}", "server.workers", "greater than or equal to 1"),
        ("server: {workers: 2}", "", "needs Redis"),
        ("server: {message_timeout: 0s}", "server.message_timeout", "greater than 0"),
        ("server: {tls: {cert: a, key: b, ca: c}}", "server", "a Unix socket has none"),
        ("state: {url: 'sqlite://x'}", "state.url", "should match pattern"),
        ("providers: {p: {kind: openapi}}", "providers.p.kind", "'openai'"),
        ("providers: {p: {keys: [{env: A, value: B}]}}", "providers.p.keys[0]", "a secret is {env: NAME}"),
        ("providers: {p: {keys: [{}]}}", "providers.p.keys[0]", "a secret is {env: NAME}"),
        ("providers: {p: {keys: [text]}}", "providers.p.keys[0]", "valid dictionary"),
        ('providers: {"p\\n": {}}', "providers", "should match pattern"),
        ("models: {m: {}}", "models.m.route", "is missing"),
        ("models: {m: {route: []}}", "models.m.route", "at least 1 item"),
        ("models: {m: {route: [[]]}}", "models.m.route[0]", "at least 1 item"),
        ("models: {m: {route: [[{}]]}}", "models.m.route[0][0].provider", "is missing"),
        ("models: {m: {route: {provider: p, weight: -1}}}", "models.m.route[0][0].weight", "greater than or"),
        ("models: {m: {route: {provider: p}, retry: {on: [sometimes]}}}", "models.m.retry.on[0]", "should match"),
        ("models: {m: {route: {provider: p}, retry: {on: [200]}}}", "models.m.retry.on[0]", "should match"),
        ("models: {m: {route: {provider: p}, retry: {idle: 9s, first_byte: 9s}}}", "models.m.retry", "less than"),
        ("consumers: {c: {team: t}}", "consumers.c.team", "no team is called 't'"),
        ("consumers: {c: {policy: p}}", "consumers.c.policy", "no policy is called 'p'"),
        ("teams: {t: {policy: p}}", "teams.t.policy", "no policy is called 'p'"),
        ("accounts: {timezone: Mars/Base}", "accounts.timezone", "no time zone 'Mars/Base'"),
        ("accounts: {quota: [{tokens: 5}]}", "accounts.quota[0].per", "is missing"),
        ("accounts: {quota: [{tokens: 5, money: 1, per: day}]}", "accounts.quota[0]", "a quota is"),
        ("accounts: {quota: [{tokens: 5, per: minute}]}", "accounts.quota[0].per", "'hour', 'day'"),
        ("accounts: {limits: [{concurrent: 5, per: day}]}", "accounts.limits[0]", "a limit is"),
        ("accounts: {limits: [{tokens: 5}]}", "accounts.limits[0]", "a limit is"),
        ("accounts: {limits: [{tokens: 5.5, per: day}]}", "accounts.limits[0].tokens", "whole number"),
        ("accounts: {quota: [{money: -1, per: day}]}", "accounts.quota[0].money", "amount of money"),
        ("consumers: {c: {keys: [{sha256: abc}]}}", "consumers.c.keys[0].sha256", "should match pattern"),
        ("consumers: {c: {keys: [{sha256: abc, env: X}]}}", "consumers.c.keys[0].sha256", "should match pattern"),
    ],
)  # fmt: skip
def test_a_mistake_and_its_path(text: str, path: str, message: str) -> None:
    """What is wrong is named by its path, with what would be right."""
    found = problems(text)

    assert path in found or any(name.startswith(path) for name in found), found
    assert any(message in said for said in found.values()), found


def test_all_mistakes_at_once() -> None:
    """An operator who mends one does not meet the next at the next start."""
    found = problems("gateway: {x: 1}\nserver: {workers: many}\nmodels: {m: {}}\n")

    assert set(found) == {"gateway.x", "server.workers", "models.m.route"}


@pytest.mark.parametrize("route", ["{provider: near}", "[{provider: near}]", "[[{provider: near}]]"])
def test_brackets_that_may_be_left_out(route: str) -> None:
    """One target, or one group, needs none."""
    assert read(GOOD.replace("[{provider: near}]", route)).config == read(GOOD).config


# --- references -------------------------------------------------------------------------------------------------


def test_a_provider_that_is_not_there() -> None:
    """A route's provider must exist; the message says which there are."""
    assert problems(GOOD.replace("provider: near", "provider: naer")) == {
        "models.m.route[0][0].provider": "no provider is called 'naer'; there are: near"
    }


def test_weights_that_are_all_zero() -> None:
    """A group from which nothing can be picked is a mistake."""
    text = GOOD.replace("[{provider: near}]", "[[{provider: near}], [{provider: near, weight: 0}]]")

    assert problems(text) == {"models.m.route[1]": "all weights are 0"}


def test_a_key_of_two_consumers() -> None:
    """A key must say who calls; the same one may stand twice under one name."""
    double = GOOD + "  globex: {keys: [{value: sk-globex-secret}, {value: sk-acme-secret}]}\n"
    digest = hashlib.sha256(b"sk-acme-secret").hexdigest()
    hashed = GOOD + f"  globex: {{keys: [{{sha256: {digest.upper()}}}]}}\n"
    same = GOOD.replace("[{value: sk-acme-secret}]", "[{value: sk-acme-secret}, {value: sk-acme-secret}]")

    assert problems(double) == {"consumers.globex.keys[1]": "is also a key of acme"}
    assert problems(hashed) == {"consumers.globex.keys[0]": "is also a key of acme"}
    assert len(read(same).consumer_digests["acme"]) == 2


def test_a_key_of_a_provider_that_stands_twice() -> None:
    """Its share is said by a weight."""
    twice = GOOD.replace(
        "[{value: pk-near-secret}]", "[{value: pk-near-secret}, {value: pk-b}, {value: pk-near-secret}]"
    )

    assert problems(twice) == {"providers.near.keys[2]": "stands twice; give it a weight instead"}


# --- secrets ----------------------------------------------------------------------------------------------------


def keys(ref: str, file: Path = Path("extproc.yaml")) -> list[str]:
    """The provider's keys where the first is written so."""
    loaded = read(GOOD.replace("{value: pk-near-secret}", ref), file)
    return [key.reveal() for key in loaded.provider_keys["near"]]


def test_secrets_from_three_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As text, from the environment, and from a file beside the configuration, whose last newline is none of it."""
    monkeypatch.setenv("NEAR_KEY", "pk-from-env")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "near").write_text("pk-from-file\r\n\n")

    assert keys("{value: pk-text}") == ["pk-text"]
    assert keys("{env: NEAR_KEY}") == ["pk-from-env"]
    assert keys("{file: secrets/near}", tmp_path / "extproc.yaml") == ["pk-from-file"]
    assert keys(f"{{file: {tmp_path}/secrets/near}}") == ["pk-from-file"]


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("{env: NO_SUCH_VARIABLE}", "the environment variable NO_SUCH_VARIABLE is not set"),
        ("{env: EMPTY}", "the secret is empty"),
        ("{value: ''}", "the secret is empty"),
        ("{value: 'pk-häßlich'}", "characters that no HTTP header can carry"),
        ('{value: "pk-two\\nlines"}', "characters that no HTTP header can carry"),
        ("{file: none}", "none cannot be read: No such file or directory"),
        ("{file: binary}", "binary cannot be read: not text"),
        ("{file: empty}", "the secret is empty"),
        ("{file: .}", "cannot be read: Is a directory"),
    ],
)
def test_a_secret_that_is_none(ref: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named by its path, and the message says where it should have been."""
    monkeypatch.setenv("EMPTY", "")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_text("\n")
    text = GOOD.replace("{value: pk-near-secret}", ref)
    found = problems(text, tmp_path / "extproc.yaml")

    assert list(found) == ["providers.near.keys[0]"]
    assert message in found["providers.near.keys[0]"]


def test_a_short_key_of_a_consumer() -> None:
    """A key that can be guessed is refused."""
    assert "at least 8" in problems(GOOD.replace("sk-acme-secret", "'1234567'"))["consumers.acme.keys[0]"]


@pytest.mark.parametrize(
    "change",
    [
        ("provider: near", "provider: naer"),
        ("value: pk-near-secret", "value: pk-near-secret, file: x"),
        ("value: pk-near-secret", 'value: "pk-near-secret\\n"'),
        ("value: sk-acme-secret", "value: sk-acme-secret, env: X"),
        ("value: sk-acme-secret", "vallue: sk-acme-secret"),
        ("{value: sk-acme-secret}", "sk-acme-secret"),
        ("{value: sk-acme-secret}", "{value: [sk-acme-secret]}"),
    ],
)
def test_no_message_tells_a_secret(change: tuple[str, str]) -> None:
    """Not where the mistake is elsewhere, nor where it is in the secret's own place."""
    with pytest.raises(ConfigError) as caught:
        read(GOOD.replace(*change))

    for text in (str(caught.value), repr(caught.value), repr(caught.value.problems)):
        assert "secret" not in text.replace("a secret is", "").replace("the secret has", "")


def test_no_repr_tells_a_secret() -> None:
    """What was loaded can be shown in a traceback."""
    loaded = read(GOOD)

    assert "pk-near-secret" not in repr(loaded)
    assert "sk-acme-secret" not in repr(loaded.consumer_digests) + repr(loaded.provider_keys) + str(
        loaded.provider_keys
    )


# --- digest and fingerprint -------------------------------------------------------------------------------------


def test_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the content: the file's and its secrets', wherever those come from."""
    file = tmp_path / "extproc.yaml"
    monkeypatch.setenv("NEAR_KEY", "pk-one-secret")
    text = GOOD.replace("{value: pk-near-secret}", "{env: NEAR_KEY}")
    first, again = read(text, file).digest, read(text, file).digest
    monkeypatch.setenv("NEAR_KEY", "pk-two-secret")
    other = read(text, file).digest

    assert first == again
    assert len({first, other, read(text + "#", file).digest}) == 3


def test_files_that_were_read(tmp_path: Path) -> None:
    """They are known with what was in them, so that a change of one is noticed."""
    (tmp_path / "near").write_text("pk-from-file\n")
    text = GOOD.replace("{value: pk-near-secret}", "{file: near}")
    (tmp_path / "extproc.yaml").write_text(text)
    loaded = load(tmp_path / "extproc.yaml")

    assert set(loaded.files) == {tmp_path / "extproc.yaml", tmp_path / "near"}
    assert loaded.files == fingerprints(loaded.files)


def test_fingerprints(tmp_path: Path) -> None:
    """They change with a content, with a file that comes or goes, and with nothing else."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    absent = fingerprints([one, two])
    two.write_text("1")
    both = fingerprints([one, two])
    two.write_text("1")

    assert both == fingerprints([one, two])
    assert both[one] == both[two] == absent[one] != absent[two]
    two.write_text("2")
    assert fingerprints([one, two])[two] not in (both[two], absent[two])


def test_a_consumer_by_hash() -> None:
    """The hash is what is compared; upper case is the same."""
    digest = hashlib.sha256(b"sk-acme-secret").hexdigest()
    for written in (digest, digest.upper()):
        loaded: Any = read(GOOD.replace("{value: sk-acme-secret}", f"{{sha256: {written}}}"))
        assert loaded.consumer_digests["acme"] == (bytes.fromhex(digest),)
