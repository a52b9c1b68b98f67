"""What is known of each kind of provider."""

import pytest

from extproc.providers.presets import PRESETS
from extproc.providers.provider import Provider


@pytest.mark.parametrize(
    ("kind", "base_url"),
    [
        ("openai", "https://api.openai.com/v1"),
        ("anthropic", "https://api.anthropic.com"),
        ("deepseek", "https://api.deepseek.com/v1"),
        ("dashscope", "https://dashscope.aliyuncs.com/compatible-mode/v1"),
        ("modelscope", "https://api-inference.modelscope.cn/v1"),
        ("ollama", "http://127.0.0.1:11434/v1"),
        ("azure", None),
        ("pai-eas", None),
        ("vllm", None),
        ("sglang", None),
        ("openai-compatible", None),
    ],
)
def test_where_it_is(kind: str, base_url: str | None) -> None:
    """A public service has its address; what runs at the operator's own place must be told."""
    assert PRESETS[kind].base_url == base_url


def test_all_are_listed() -> None:
    """Eleven kinds, each under its own name."""
    assert len(PRESETS) == 11
    assert all(kind == preset.kind for kind, preset in PRESETS.items())


@pytest.mark.parametrize("kind", PRESETS)
def test_each_can_be_built(kind: str) -> None:
    """With an address where it needs one, a preset is a provider."""
    base_url = PRESETS[kind].base_url or "https://service.example/v1"

    assert Provider.build("p", kind=kind, base_url=base_url).kind == kind


def test_only_public_services_are_reached_by_https_by_default() -> None:
    """No preset sends a key in the clear, except to this machine."""
    for preset in PRESETS.values():
        assert not preset.base_url or preset.base_url.startswith(("https://", "http://127.0.0.1"))
