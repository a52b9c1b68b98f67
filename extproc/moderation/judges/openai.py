"""OpenAI's moderation API, and those that speak it (platform.openai.com/docs/api-reference/moderations)."""

from pathlib import Path
from typing import Any, Final

import msgspec

from extproc.core.secret import Secret
from extproc.moderation.judges.http import Endpoint
from extproc.moderation.judges.opinions import highest, merged, together
from extproc.moderation.types import Image, Item, JudgeFailed, Opinion

MAX_CHARS: Final = 20_000


class _Result(msgspec.Struct):
    category_scores: dict[str, float | None]


class _Answer(msgspec.Struct):
    results: list[_Result]


class OpenAiModeration:
    """Scores by category (``violence``, ``self-harm/intent``), as the model gives them."""

    def __init__(
        self,
        name: str,
        base_url: str,
        key: Secret | None = None,
        model: str = "omni-moderation-latest",
        *,
        max_chars: int = MAX_CHARS,
        ca: Path | None = None,
    ) -> None:
        self.name = name
        self.max_chars = max_chars
        self._endpoint = Endpoint(base_url, key, ca)
        self._model = model

    async def judge(self, item: Item) -> Opinion:
        """Raises JudgeFailed."""
        questions: list[Any] = [item.text] if item.text or not item.images else []
        # A request may have one image; and a plain string is what text-only models take.
        questions += [[_image(image)] for image in item.images]
        opinions = await together(self._ask(question) for question in questions)
        return merged((0, opinion) for opinion in opinions)

    async def _ask(self, question: Any) -> Opinion:
        body = {"model": self._model, "input": question}
        answer = await self._endpoint.post("/moderations", body, _Answer)
        if not answer.results:
            raise JudgeFailed("garbage", "no results")
        scores = (pair for result in answer.results for pair in result.category_scores.items())
        return Opinion(highest((category, score or 0.0) for category, score in scores))

    async def close(self) -> None:
        await self._endpoint.close()


def _image(image: Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image.url}}
