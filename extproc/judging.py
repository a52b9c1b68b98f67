"""The judges of the configuration."""

from collections.abc import Mapping

from extproc.config import judges as config
from extproc.config.schema import Config
from extproc.core.secret import Secret
from extproc.moderation.judges.aliyun import Aliyun
from extproc.moderation.judges.bounded import Bounded
from extproc.moderation.judges.guard import GuardModel
from extproc.moderation.judges.openai import OpenAiModeration
from extproc.moderation.types import Judge
from extproc.wire.judge import GrpcJudge, JudgeTls


def build_judges(document: Config, keys: Mapping[str, Mapping[str, Secret]]) -> dict[str, Judge]:
    """Each by its name, within its bounds, in the running loop. ``keys`` is what ``Loaded.judge_keys`` has.

    Raises OSError where a certificate cannot be read, ModuleNotFoundError where an extra is not installed.
    """
    return {name: _bounded(name, judge, keys.get(name, {})) for name, judge in document.judges.items()}


def _bounded(name: str, judge: config.Judge, keys: Mapping[str, Secret]) -> Judge:
    return Bounded(
        _judge(name, judge, keys),
        timeout=judge.timeout,
        concurrency=judge.concurrency,
        queue=judge.queue,
        breaker=(judge.breaker.failures, judge.breaker.pause),
        cache=(judge.cache.entries, judge.cache.ttl),
    )


def _judge(name: str, judge: config.Judge, keys: Mapping[str, Secret]) -> Judge:
    match judge:
        case config.OpenAiJudge():
            return OpenAiModeration(
                name, judge.base_url, keys.get("key"), judge.model, max_chars=judge.max_chars, ca=judge.ca
            )
        case config.GuardModelJudge():
            return GuardModel(
                name,
                judge.format,
                judge.base_url,
                keys.get("key"),
                judge.model,
                max_chars=judge.max_chars,
                ca=judge.ca,
            )
        case config.AliyunJudge():
            return Aliyun(
                name,
                judge.action,
                judge.region,
                keys["access_key_id"],
                keys["access_key_secret"],
                judge.service,
                endpoint=judge.endpoint,
                timeout=judge.timeout,
                concurrency=judge.concurrency,
            )
        case config.GrpcJudge():
            tls = None
            if judge.tls is not None:
                tls = JudgeTls(judge.tls.ca, judge.tls.cert, judge.tls.key, judge.tls.name)
            return GrpcJudge(name, judge.address, timeout=judge.timeout, tls=tls, max_chars=judge.max_chars)
