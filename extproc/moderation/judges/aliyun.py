"""Alibaba Cloud's content security (green, 2022-03-02), by its official SDK: the extra ``aliyun``."""

import asyncio
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from extproc.core.secret import Secret
from extproc.moderation.judges.opinions import category, highest, merged, occurrences, together
from extproc.moderation.types import SCORES, Direction, Item, JudgeFailed, Opinion, QuestionRefused

Action = Literal["TextModerationPlus", "MultiModalGuard"]

_SERVICES: Final[Mapping[Action, Mapping[Direction, str]]] = {
    "TextModerationPlus": {"request": "llm_query_moderation", "response": "llm_response_moderation"},
    "MultiModalGuard": {"request": "query_security_check_pro", "response": "response_security_check_pro"},
}
_IMAGES: Final[Mapping[Direction, str]] = {
    "request": "img_query_security_check",
    "response": "img_response_security_check",
}
_LEVELS: Final[Mapping[str, float]] = {
    "none": 0.0,
    **{level: SCORES[level] for level in ("low", "medium", "high")},
    # Of sensitive data.
    "s0": 0.0,
    "s1": SCORES["low"],
    "s2": SCORES["medium"],
    "s3": SCORES["high"],
    "s4": SCORES["high"],
}
_NOTHING: Final = {"", "nonlabel", "safe", "normal", "none"}  # what it calls texts in order
_LONG, _SHORT = 2000, 600
_CONNECT: Final = 5000  # milliseconds


class _Result(msgspec.Struct, rename="pascal"):
    label: str = ""
    confidence: float | None = None
    risk_words: str | None = None
    level: str | None = None
    attack_level: str | None = None
    sensitive_level: str | None = None

    def score(self, otherwise: str | None) -> float:
        """By its own level, else by that of the whole, else by how sure it is."""
        level = self.level or self.attack_level or self.sensitive_level or otherwise
        if level and level.lower() not in _LEVELS:
            raise JudgeFailed("garbage", "a level that is not known")
        return _LEVELS[level.lower()] if level else (self.confidence or 0.0) / 100


class _Detail(msgspec.Struct, rename="pascal"):
    type: str = ""
    level: str = "none"
    result: list[_Result] = []

    @property
    def kind(self) -> str:
        """``promptAttack`` → ``prompt_attack``."""
        return category(re.sub("(?<=[a-z])(?=[A-Z])", "_", self.type))


class _Data(msgspec.Struct, rename="pascal"):
    """Of both actions: what TextModerationPlus says; ``suggestion`` and ``detail`` of MultiModalGuard."""

    risk_level: str | None = None
    result: list[_Result] = []
    attack_level: str | None = None
    attack_result: list[_Result] = []
    sensitive_level: str | None = None
    sensitive_result: list[_Result] = []
    suggestion: str | None = None
    detail: list[_Detail] = []


class _Answer(msgspec.Struct, rename="pascal"):
    code: int
    data: _Data


class Aliyun:
    """Levels become scores, labels categories. Images are judged by ``MultiModalGuard`` alone.

    ``service`` is asked about texts of both directions; where not given, the one for models' inputs or outputs.
    ``endpoint`` replaces the region's: a host, or a URL. The SDK works in threads, as many as ``concurrency``; each is
    given up after ``timeout`` seconds of silence. Raises ModuleNotFoundError, which says what to install.
    """

    def __init__(
        self,
        name: str,
        action: Action,
        region: str,
        access_key_id: Secret,
        access_key_secret: Secret,
        service: str | None = None,
        *,
        endpoint: str | None = None,
        timeout: float = 5.0,
        concurrency: int = 16,
    ) -> None:
        self.name = name
        self.max_chars = _SHORT if service and not _is_long(service) else _LONG
        self._action = action
        self._service = service
        try:
            client = importlib.import_module("alibabacloud_green20220302.client")
            self._models: Any = importlib.import_module("alibabacloud_green20220302.models")
            openapi = importlib.import_module("alibabacloud_tea_openapi.models")
            runtime = importlib.import_module("darabonba.runtime")
            self._sdk_error: type[Exception] = importlib.import_module("Tea.exceptions").TeaException
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"judge {name} needs Alibaba Cloud's SDK: pip install 'extproc[aliyun]'"
            ) from error
        where = urlsplit(endpoint if endpoint and "//" in endpoint else f"https://{endpoint or _host(region)}")
        self._client: Any = client.Client(
            openapi.Config(
                access_key_id=access_key_id.reveal(),
                access_key_secret=access_key_secret.reveal(),
                region_id=region,
                endpoint=where.netloc,
                protocol=where.scheme,
            )
        )
        self._runtime: Any = runtime.RuntimeOptions(
            connect_timeout=min(_CONNECT, int(timeout * 1000)),
            read_timeout=int(timeout * 1000),
            autoretry=False,
            max_idle_conns=concurrency,
        )
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix=f"judge-{name}")

    async def judge(self, item: Item) -> Opinion:
        """Raises JudgeFailed."""
        questions = [self._ask_text(item)] if item.text else []
        if self._action == "MultiModalGuard":
            questions += [self._ask_image(image.url, item.direction) for image in item.images]
        return merged((0, opinion) for opinion in await together(questions))

    async def _ask_text(self, item: Item) -> Opinion:
        service = self._service or _SERVICES[self._action][item.direction]
        parameters = msgspec.json.encode({"content": item.text}).decode()
        if self._action == "TextModerationPlus":
            request = self._models.TextModerationPlusRequest(service=service, service_parameters=parameters)
            answer = await self._ask(self._client.text_moderation_plus_with_options, request)
        else:
            request = self._models.MultiModalGuardRequest(service=service, service_parameters=parameters)
            answer = await self._ask(self._client.multi_modal_guard_with_options, request)
        return _opinion(answer.data, item.text)

    async def _ask_image(self, url: str, direction: Direction) -> Opinion:
        if url.startswith("data:"):
            request = self._models.MultiModalGuardForBase64Request(
                service=_IMAGES[direction], image_base_64str=url.partition(",")[2], service_parameters="{}"
            )
            answer = await self._ask(self._client.multi_modal_guard_for_base_64with_options, request)
        else:
            parameters = msgspec.json.encode({"imageUrls": [url]}).decode()
            request = self._models.MultiModalGuardRequest(service=_IMAGES[direction], service_parameters=parameters)
            answer = await self._ask(self._client.multi_modal_guard_with_options, request)
        return _opinion(answer.data, "")

    async def _ask(self, method: Callable[[Any, Any], Any], request: Any) -> _Answer:
        # In a thread: the SDK's own coroutines make a session and read all certificates anew for each call.
        loop = asyncio.get_running_loop()
        try:
            response = await loop.run_in_executor(self._threads, method, request, self._runtime)
            said = response.body.to_map()
        except self._sdk_error as error:
            # Its message may quote the request.
            code = str(getattr(error, "code", None) or type(error).__name__)
            if getattr(error, "status_code", None) == 400:
                raise QuestionRefused(code) from None
            raise JudgeFailed("timeout" if "timed out" in str(error) else "error", code) from None
        except Exception as error:  # noqa: BLE001 - whatever it trips over in an answer
            raise JudgeFailed("garbage", type(error).__name__) from None
        if said.get("Code") not in (200, "200"):
            raise JudgeFailed("error", f"code {said.get('Code')}")
        try:
            answer = msgspec.convert(said, _Answer, strict=False)
        except msgspec.ValidationError:
            raise JudgeFailed("garbage", "not the answer of the API") from None
        if not (answer.data.risk_level or answer.data.result or answer.data.suggestion):
            raise JudgeFailed("garbage", "no verdict")
        return answer

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _host(region: str) -> str:
    return f"green-cip.{region}.aliyuncs.com"


def _is_long(service: str) -> bool:
    return service.startswith("llm_") or "security_check" in service or "guard" in service


def _opinion(data: _Data, text: str) -> Opinion:
    found = [
        *_named("risk", data.risk_level, data.result),
        *_named("prompt_attack", data.attack_level, data.attack_result),
        *_named("sensitive_data", data.sensitive_level, data.sensitive_result),
        *(each for detail in data.detail for each in _named(detail.kind, detail.level, detail.result)),
    ]
    words = {
        word.strip(): (label, score) for label, score, result in found for word in (result.risk_words or "").split(",")
    }
    scores = highest((label, score) for label, score, _ in found)
    if data.suggestion == "block" and not scores:
        scores = {"risk": SCORES["high"]}
    return Opinion(scores, occurrences(text, words))


def _named(kind: str, level: str | None, results: list[_Result]) -> Iterator[tuple[str, float, _Result]]:
    """What was found: category, score and where it came from. ``kind`` is the category where no label says more."""
    named = [
        # Labels of sensitive data are numbers of its kinds.
        (kind if kind == "sensitive_data" else category(label), result.score(level), result)
        for result in results
        for label in result.label.split(",")
        if category(label) not in _NOTHING
    ]
    named = [each for each in named if each[1]]
    whole = _Result(level=level)
    if not named and level and whole.score(None):
        named = [(kind, whole.score(None), whole)]
    yield from named
