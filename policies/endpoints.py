"""What a request is by its method and path, and how much of it we keep.

Four handling classes: *full* (capture, task, shadow, divert), *capture* (keep bodies), *note*
(forward untouched; keep method, path, status, sizes and times), *tunnel* (never a body, never a
query). Unknown paths are noted: OpenAI's list changes monthly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote

Handling = Literal["full", "capture", "note", "tunnel"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A kind of call. `name` is what the column `exchanges.endpoint` holds."""

    name: str
    handling: Handling

    @property
    def keeps_bodies(self) -> bool:
        return self.handling in ("full", "capture")


OTHER: Final = Endpoint("other", "note")
CHAT: Final = Endpoint("chat.completions", "full")
RESPONSES: Final = Endpoint("responses", "capture")
# The upgrade; each turn on the socket is a call of its own.
RESPONSES_SOCKET: Final = Endpoint("responses.websocket", "capture")
REALTIME: Final = Endpoint("realtime", "note")
# An answer that was made before is read, awaited or ended. Its usage counts once: counted_once.py.
RESPONSES_STORED: Final = Endpoint("responses.stored", "capture")
BATCHES_STORED: Final = Endpoint("batches.stored", "capture")
_CHAT_STORED: Final = Endpoint("chat.completions.stored", "note")
_FILES_STORED: Final = Endpoint("files.stored", "note")

# By the part of the path behind the root; `*` is an id.
_TABLE: Final[dict[tuple[str, str], Endpoint]] = {
    ("POST", "/chat/completions"): CHAT,
    ("GET", "/chat/completions"): _CHAT_STORED,
    ("GET", "/chat/completions/*"): _CHAT_STORED,
    ("POST", "/chat/completions/*"): _CHAT_STORED,
    ("DELETE", "/chat/completions/*"): _CHAT_STORED,
    ("GET", "/chat/completions/*/messages"): _CHAT_STORED,
    ("POST", "/responses"): RESPONSES,
    ("GET", "/responses"): RESPONSES_SOCKET,
    ("POST", "/responses/compact"): Endpoint("responses.compact", "capture"),
    ("POST", "/responses/input_tokens"): Endpoint("responses.input_tokens", "capture"),
    ("GET", "/responses/*"): RESPONSES_STORED,
    ("DELETE", "/responses/*"): RESPONSES_STORED,
    ("GET", "/responses/*/input_items"): Endpoint("responses.input_items", "capture"),
    ("POST", "/responses/*/cancel"): Endpoint("responses.cancel", "capture"),
    ("POST", "/completions"): Endpoint("completions", "capture"),
    ("POST", "/embeddings"): Endpoint("embeddings", "capture"),
    ("POST", "/moderations"): Endpoint("moderations", "capture"),
    ("POST", "/decisions"): Endpoint("decisions", "capture"),
    ("POST", "/audio/speech"): Endpoint("audio.speech", "capture"),
    ("POST", "/audio/transcriptions"): Endpoint("audio.transcriptions", "capture"),
    ("POST", "/audio/translations"): Endpoint("audio.translations", "capture"),
    ("POST", "/images/generations"): Endpoint("images.generations", "capture"),
    ("POST", "/images/edits"): Endpoint("images.edits", "capture"),
    ("POST", "/images/variations"): Endpoint("images.variations", "capture"),
    ("POST", "/batches"): Endpoint("batches", "capture"),
    ("GET", "/batches"): Endpoint("batches.list", "capture"),
    ("GET", "/batches/*"): BATCHES_STORED,
    ("POST", "/batches/*/cancel"): Endpoint("batches.cancel", "capture"),
    ("POST", "/files"): Endpoint("files", "capture"),
    ("GET", "/files/*/content"): Endpoint("files.content", "capture"),
    ("GET", "/files"): _FILES_STORED,
    ("GET", "/files/*"): _FILES_STORED,
    ("DELETE", "/files/*"): _FILES_STORED,
    ("GET", "/realtime"): REALTIME,
}
# What is managed with an administrator's key, or holds keys.
_TUNNELS: Final = {
    segment: Endpoint(segment, "tunnel") for segment in ("organization", "projects", "vaults")
}
# By the first segment behind a root.
_NOTES: Final = {
    segment: Endpoint(segment, "note")
    for segment in (
        "agents", "assistants", "audio", "batches", "chatkit", "containers",
        "content_provenance_checks", "conversations", "evals", "files", "fine_tuning", "images",
        "live", "models", "responses", "safety", "skills", "threads", "uploads", "vector_stores",
        "videos", "webhook_endpoints",
    )
} | {"realtime": REALTIME}  # fmt: skip
# Longest first.
_ROOTS: Final = ("/openai/v1", "/openai", "/v1")
_DEPLOYMENTS: Final = "/deployments/"
_COMMON: Final = {
    root + path: endpoint
    for root in ("", *_ROOTS)
    for (method, path), endpoint in _TABLE.items()
    if method == "POST" and "*" not in path
}


def classify(method: str, path: str) -> Endpoint:
    """The endpoint of a request. `path` is the raw path, without the query."""
    if method == "POST" and (found := _COMMON.get(path)) is not None:
        return found
    root, rest = _split(path)
    segments = rest.split("/")  # the first is empty
    first = segments[1] if len(segments) > 1 else ""
    for name, tunnel in _TUNNELS.items():
        if first.startswith(name):  # and whatever may yet be named like it
            return tunnel
    found = _TABLE.get((method, rest)) or _with_id(method, segments)
    if found is not None:
        return found
    return _NOTES.get(first, OTHER) if root else OTHER


def deployment(path: str) -> str | None:
    """The deployment that Azure's dated form names in the path, unquoted."""
    for root in ("/openai", "/openai/v1"):
        if path.startswith(root + _DEPLOYMENTS):
            name, slash, _ = path[len(root + _DEPLOYMENTS) :].partition("/")
            return unquote(name) if name and slash else None
    return None


def _with_id(method: str, segments: list[str]) -> Endpoint | None:
    """One of the segments behind the first is an id."""
    for place in range(2, min(len(segments), 5)):
        if segments[place]:
            pattern = "/".join([*segments[:place], "*", *segments[place + 1 :]])
            if (found := _TABLE.get((method, pattern))) is not None:
                return found
    return None


def _split(path: str) -> tuple[str, str]:
    """The root of a path, with Azure's deployment in it, and the operation behind it."""
    for root in _ROOTS:
        if path.startswith(root + "/"):
            rest = path[len(root) :]
            break
    else:
        return "", path
    if rest.startswith(_DEPLOYMENTS):
        slash = rest.find("/", len(_DEPLOYMENTS))
        if slash >= 0:
            return path[: len(root) + slash], rest[slash:]
    return root, rest
