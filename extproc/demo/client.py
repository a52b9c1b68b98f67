"""A client with nothing but the standard library, as plain as curl."""

import http.client
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(slots=True)
class Result:
    """An answer: ``json`` of a whole one, ``events`` (their data) of a streamed one."""

    status: int
    headers: dict[str, str]
    json: Any = None
    events: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What the model said, in either form of the OpenAI dialect."""
        if not self.events:
            return str(self.json["choices"][0]["message"]["content"])
        chunks = (json.loads(e) for e in self.events if e != "[DONE]")  # noqa: TID251 - a client's side
        return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


class Client:
    """Calls a gateway with one key."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._key = key

    def chat(self, model: str, prompt: str, *, stream: bool = False) -> Result:
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": prompt}]}
        return self._call("POST", "/v1/chat/completions", body)

    def messages(self, model: str, prompt: str) -> Result:
        body = {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": prompt}]}
        return self._call("POST", "/v1/messages", body)

    def get(self, path: str) -> Result:
        return self._call("GET", path, None)

    def _call(self, method: str, path: str, body: object) -> Result:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=30)
        try:
            connection.request(
                method,
                path,
                None if body is None else json.dumps(body),
                {"authorization": f"Bearer {self._key}", "content-type": "application/json"},
            )
            answer = connection.getresponse()
            content = answer.read().decode()
        finally:
            connection.close()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        if headers.get("content-type", "").startswith("text/event-stream"):
            events = [line[6:] for line in content.split("\n") if line.startswith("data: ")]
            return Result(answer.status, headers, events=events)
        return Result(answer.status, headers, json=json.loads(content))  # noqa: TID251 - a client's side
