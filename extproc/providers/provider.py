from dataclasses import dataclass
from urllib.parse import urlsplit

KEY_HEADERS = ("authorization", "x-api-key", "api-key")
@dataclass(frozen=True)
class Provider:
    name: str; kind: str; dialect: str; scheme: str; host: str; port: int; base_path: str; keys: tuple; headers: dict; query: dict
    @classmethod
    def build(cls, name, *, kind="openai-compatible", base_url=None, dialect=None, keys=(), headers=None, query=None, stream_usage=None, api_version=None):
        u = urlsplit(base_url)
        return cls(name, kind, dialect or "openai", u.scheme, u.hostname, u.port or (443 if u.scheme=="https" else 80), u.path.rstrip("/"), tuple(keys), headers or {}, query or {})
    @property
    def authority(self): return f"{self.host}:{self.port}"
    def serves(self, endpoint): return endpoint.dialect == self.dialect
    def path(self, endpoint, model, query): return self.base_path + endpoint.suffix + ("?" + query if query else "")
    def key_headers(self, key): return {"authorization": f"Bearer {key.reveal()}"} if key else {}
    def asks_usage(self, endpoint, stream): return stream and endpoint.name in ("chat", "completions")
    def edit(self, endpoint, document, model):
        if document.get("model", str) != model: document.set("model", model)
        if document.get("stream", bool) and self.asks_usage(endpoint, True):
            o = document.get("stream_options", dict) or {}
            if not o.get("include_usage"): document.set("stream_options", {**o, "include_usage": True})
