"""Reading `extproc.yaml`: YAML → document → secrets, with every problem named by its path."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from extproc.config.audit import AuditSink
from extproc.config.judges import secrets as judge_secrets
from extproc.config.parts import SecretRef
from extproc.config.schema import Config, Consumer, ConsumerKey, Model, Price, Team
from extproc.config.tokens import weakness
from extproc.core.secret import Secret


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where: ``path`` is dotted, empty for the file as a whole."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(Exception):
    """A configuration that cannot be used; nothing of it takes effect."""

    def __init__(self, file: Path, problems: Iterable[Problem]) -> None:
        self.file = file
        self.problems = tuple(problems)
        super().__init__(f"{file}: " + "; ".join(str(p) for p in self.problems))


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that is right in itself. ``digest`` names this content, secrets included."""

    config: Config
    provider_keys: Mapping[str, tuple[Secret, ...]]
    consumer_digests: Mapping[str, tuple[bytes, ...]]
    digest: str
    file: Path
    files: Mapping[Path, bytes] = field(default_factory=dict)
    """Every file that was read, secrets too, with the fingerprint of what was read."""
    admin_tokens: tuple[bytes, ...] = ()
    """SHA-256 of each."""
    sink_secrets: tuple[Mapping[str, Secret], ...] = ()
    """Of each of the audit's sinks: headers of `otlp`, `key_id` and `key_secret` of `sls`."""
    judge_keys: Mapping[str, Mapping[str, Secret]] = field(default_factory=dict)
    """Of each judge, by their keys: `key`, or `access_key_id` and `access_key_secret`."""


def load(file: Path) -> Loaded:
    """Read and check the file whole. Raises ConfigError with every problem found."""
    return parse(_read(file), file)


def document(file: Path) -> Config:
    """The same without its secrets, for those who need none: they may be where only the server can read them."""
    config = _validated(_yaml(_read(file), file), file)
    problems = list(_references(config))
    if problems:
        raise ConfigError(file, problems)
    return config


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(file, [Problem("", f"cannot be read: {error.strerror}")]) from error


def parse(raw: bytes, file: Path) -> Loaded:
    """The same for bytes at hand; ``file`` is where relative paths start."""
    config = _validated(_yaml(raw, file), file)
    secrets = _Secrets(file.parent)
    provider_keys = {
        name: tuple(Secret(secrets.read(ref, f"providers.{name}.keys[{i}]")) for i, ref in enumerate(provider.keys))
        for name, provider in config.providers.items()
    }
    consumer_digests = {
        name: tuple(secrets.digest(key, f"consumers.{name}.keys[{i}]") for i, key in enumerate(consumer.keys))
        for name, consumer in config.consumers.items()
    }
    tokens = [secrets.read(ref, f"admin.tokens[{i}]") for i, ref in enumerate(config.admin.tokens)]
    sink_secrets = tuple(
        {name: Secret(secrets.read(ref, f"audit.sinks[{i}].{path}")) for name, path, ref in _sink_secrets(sink)}
        for i, sink in enumerate(config.audit.sinks)
    )
    judge_keys = {
        name: {key: Secret(secrets.read(ref, f"judges.{name}.{key}")) for key, ref in judge_secrets(judge).items()}
        for name, judge in config.judges.items()
    }
    problems = [
        *secrets.problems,
        *_references(config),
        *_shared_keys(consumer_digests),
        *_repeated(provider_keys),
        *_weak_tokens(config, tokens),
    ]
    if problems:
        raise ConfigError(file, problems)
    digest = hashlib.sha256(raw)
    for content in secrets.contents:
        digest.update(hashlib.sha256(content).digest())
    files = {file: hashlib.sha256(raw).digest(), **secrets.files}
    admin_tokens = tuple(hashlib.sha256(token.encode()).digest() for token in tokens)
    return Loaded(
        config,
        provider_keys,
        consumer_digests,
        digest.hexdigest()[:12],
        file,
        files,
        admin_tokens,
        sink_secrets,
        judge_keys,
    )


# --- YAML -----------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: `on` is a word, `1:30` is text; and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int)) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key) if isinstance(key, (str, int)) else None
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|false", "tf"),
    ("null", r"~|null|", ["~", "n", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?[0-9]+\.[0-9]+(?:[eE][-+]?[0-9]+)?", "-+0123456789"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    """A leading zero makes no octal number any more."""
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def _yaml(raw: bytes, file: Path) -> object:
    try:
        return yaml.load(raw, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(file, [Problem("", f"{where}{error.problem or error}")]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # UnicodeDecodeError; numbers and depths beyond sense
        raise ConfigError(file, [Problem("", f"not YAML: {error}")]) from error


# --- document -------------------------------------------------------------------------------------------------


def _validated(tree: object, file: Path) -> Config:
    try:
        return Config.model_validate({} if tree is None else tree)
    except ValidationError as error:
        raise ConfigError(file, described(error.errors())) from error


def described(errors: Iterable[Any]) -> list[Problem]:
    """Pydantic's errors in our words. Input values stay out of them: they may be secrets."""
    return [Problem(_path(_written(error["loc"])), _message(error)) for error in errors]


def _written(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Without what pydantic adds: the kind of a judge, by which it chose what a judge may have."""
    return location[:2] + location[3:] if location[:1] == ("judges",) else location


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _message(error: Any) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "unknown key"
        case "missing":
            return "is missing"
        case "value_error":
            return str(error["ctx"]["error"])
        case _:
            return str(error["msg"])


def _references(config: Config) -> Iterable[Problem]:
    yield from _account_references(config)
    yield from _judge_references(config)
    for name, model in config.models.items():
        for path, target in _targets(name, model):
            if target.provider not in config.providers:
                known = ", ".join(sorted(config.providers)) or "none"
                yield Problem(f"{path}.provider", f"no provider is called {target.provider!r}; there are: {known}")
        for index, group in enumerate(model.route):
            if not sum(t.weight for t in group):
                yield Problem(f"models.{name}.route[{index}]", "all weights are 0")


def _judge_references(config: Config) -> Iterable[Problem]:
    for name, policy in config.policies.items():
        for direction in ("request", "response"):
            for index, check in enumerate(getattr(policy.moderation, direction)):
                if check.judge is not None and check.judge not in config.judges:
                    known = ", ".join(sorted(config.judges)) or "none"
                    path = f"policies.{name}.moderation.{direction}[{index}].judge"
                    yield Problem(path, f"no judge is called {check.judge!r}; there are: {known}")


def _account_references(config: Config) -> Iterable[Problem]:
    for name, consumer in config.consumers.items():
        if consumer.team is not None and consumer.team not in config.teams:
            yield Problem(f"consumers.{name}.team", f"no team is called {consumer.team!r}")
    policies = {"default", *config.policies}
    holders: dict[str, Mapping[str, Consumer | Team | Model]] = {
        "consumers": config.consumers,
        "teams": config.teams,
        "models": config.models,
    }
    for kind, named in holders.items():
        for name, holder in named.items():
            if holder.policy is not None and holder.policy not in policies:
                yield Problem(f"{kind}.{name}.policy", f"no policy is called {holder.policy!r}")
    known = {config.accounts.currency, *config.accounts.rates}
    for path, prices in _prices(config):
        for index, price in enumerate(prices):
            if price.currency is not None and price.currency not in known:
                yield Problem(
                    f"{path}[{index}].currency",
                    f"accounts.rates does not say what one {price.currency} is in {config.accounts.currency}",
                )


def _prices(config: Config) -> Iterable[tuple[str, list[Price]]]:
    for name, model in config.models.items():
        yield f"models.{name}.price", model.price
        for path, target in _targets(name, model):
            yield f"{path}.price", target.price


def _targets(name: str, model: Model) -> Iterable[tuple[str, Any]]:
    for g, group in enumerate(model.route):
        for t, target in enumerate(group):
            yield f"models.{name}.route[{g}][{t}]", target


def _shared_keys(digests: Mapping[str, tuple[bytes, ...]]) -> Iterable[Problem]:
    owners: dict[bytes, str] = {}
    for name, keys in digests.items():
        for index, digest in enumerate(keys):
            owner = owners.setdefault(digest, name)
            if owner != name:
                yield Problem(f"consumers.{name}.keys[{index}]", f"is also a key of {owner}")


def _repeated(keys: Mapping[str, tuple[Secret, ...]]) -> Iterable[Problem]:
    for name, secrets in keys.items():
        for index, secret in enumerate(secrets):
            if secret and secret in secrets[:index]:
                yield Problem(f"providers.{name}.keys[{index}]", "stands twice; give it a weight instead")


def _weak_tokens(config: Config, tokens: Iterable[str]) -> Iterable[Problem]:
    if config.server.http.is_loopback:
        return
    for index, token in enumerate(tokens):
        # An empty one is a problem already.
        if token and (reason := weakness(token)):
            yield Problem(f"admin.tokens[{index}]", f"server.http is not on loopback, and this token {reason}")


# --- secrets --------------------------------------------------------------------------------------------------

MIN_KEY: Final = 8
"""Characters of the shortest key that a consumer may have."""


def _sink_secrets(sink: AuditSink) -> Iterable[tuple[str, str, SecretRef]]:
    """Name, place and reference of each."""
    if sink.otlp is not None:
        for name, ref in sink.otlp.headers.items():
            yield name, f"otlp.headers.{name}", ref
    if sink.sls is not None:
        yield "key_id", "sls.key_id", sink.sls.key_id
        yield "key_secret", "sls.key_secret", sink.sls.key_secret


def resolved(ref: SecretRef, base: Path) -> str:
    """The one secret; relative files start at ``base``. Empty where it is not there."""
    return _Secrets(base).read(ref, "")


class _Secrets:
    def __init__(self, base: Path) -> None:
        self._base = base
        self.problems: list[Problem] = []
        self.files: dict[Path, bytes] = {}
        self.contents: list[bytes] = []

    def read(self, ref: SecretRef, path: str) -> str:
        value = self._value(ref, path)
        if value is None:
            return ""
        if not value:
            self.problems.append(Problem(path, "the secret is empty"))
        elif not value.isascii() or not value.isprintable():
            self.problems.append(Problem(path, "the secret has characters that no HTTP header can carry"))
        self.contents.append(value.encode())
        return value

    def digest(self, key: ConsumerKey, path: str) -> bytes:
        if key.sha256 is not None:
            return bytes.fromhex(key.sha256)
        value = self.read(key, path)
        if 0 < len(value) < MIN_KEY:
            self.problems.append(Problem(path, f"a consumer's key has at least {MIN_KEY} characters"))
        return hashlib.sha256(value.encode()).digest()

    def _value(self, ref: SecretRef, path: str) -> str | None:
        if ref.value is not None:
            return ref.value
        if ref.env is not None:
            value = os.environ.get(ref.env)
            if value is None:
                self.problems.append(Problem(path, f"the environment variable {ref.env} is not set"))
            return value
        file = self._base / (ref.file or Path())
        try:
            raw = file.read_bytes()
            self.files[file] = hashlib.sha256(raw).digest()
            return raw.decode().rstrip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            self.problems.append(Problem(path, f"{file} cannot be read: {reason}"))
            return None


def fingerprints(files: Iterable[Path]) -> dict[Path, bytes]:
    """What is in each file now, as a hash; a file that cannot be read has one too."""
    found = {}
    for file in files:
        try:
            found[file] = hashlib.sha256(file.read_bytes()).digest()
        except OSError:
            found[file] = b"unreadable"
    return found
