"""Every kind of call whose bodies are kept, as one whole exchange each: bytes in, bytes out.

Written from the shapes in OpenAI's published API description and the types of its Python SDK.
"""

from __future__ import annotations

from tests.store.fixtures import chat, media, responses, small
from tests.store.fixtures.shape import Fixture

__all__ = ["FIXTURES", "Fixture"]

FIXTURES: list[Fixture] = [
    *chat.FIXTURES,
    *responses.FIXTURES,
    *media.FIXTURES,
    *small.FIXTURES,
]
