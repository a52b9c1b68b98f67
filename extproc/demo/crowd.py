"""Many calls at the same moment."""

import asyncio
import json
from collections import Counter
from urllib.parse import urlsplit


def crowd(url: str, key: str, model: str, *, calls: int, stream: bool) -> Counter[int]:
    """Make ``calls`` at once, each on its own connection. Returns how often each status came; 0 for a broken one."""
    return asyncio.run(_crowd(url, key, model, calls=calls, stream=stream))


async def _crowd(url: str, key: str, model: str, *, calls: int, stream: bool) -> Counter[int]:
    body = json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}]})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    parts = urlsplit(url)

    async def call() -> int:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write((head + body).encode())
            answer = await reader.read()
        except OSError:
            return 0
        finally:
            writer.close()
        whole = answer.endswith(b"0\r\n\r\n") or b"content-length" in answer
        return int(answer.split(b" ", 2)[1]) if whole else 0

    return Counter(await asyncio.gather(*(call() for _ in range(calls))))
