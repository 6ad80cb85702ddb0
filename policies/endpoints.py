"""What a request is by its method and path, and how much of it we keep.

Four handling classes: *full* (capture, task, shadow, divert), *capture* (keep bodies), *note*
(forward untouched; keep method, path, status, sizes and times), *tunnel* (never a body, never a
query). Unknown paths are noted: OpenAI's list changes monthly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

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

_POST: Final = {
    "/chat/completions": CHAT,
    "/responses": Endpoint("responses", "capture"),
    "/completions": Endpoint("completions", "capture"),
    "/embeddings": Endpoint("embeddings", "capture"),
}
_TUNNEL: Final = Endpoint("organization", "tunnel")
# Longest first: Azure's dated form carries the deployment in the path.
_ROOTS: Final = ("/openai/v1", "/openai", "/v1")


def classify(method: str, path: str) -> Endpoint:
    """The endpoint of a request. `path` is the raw path, without the query."""
    rest = _operation(path)
    if rest.startswith(("/organization", "/projects")):
        return _TUNNEL
    if method != "POST":
        return OTHER
    return _POST.get(rest, OTHER)


def _operation(path: str) -> str:
    for root in _ROOTS:
        if path.startswith(root + "/"):
            rest = path[len(root) :]
            break
    else:
        return path
    if rest.startswith("/deployments/"):
        deployment_and_rest = rest[len("/deployments/") :]
        slash = deployment_and_rest.find("/")
        return deployment_and_rest[slash:] if slash >= 0 else rest
    return rest
