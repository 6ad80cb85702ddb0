"""Parts that are not installed by default, and how they are: it is not a package of any index."""

from __future__ import annotations


def install(extra: str) -> str:
    return (
        f"pip install '.[{extra}]' in a checkout, or for an image: "
        f"docker build --build-arg 'EXTRAS=[{extra}]'"
    )
