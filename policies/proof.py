"""Who answers at an address: a proof that only the holder of a home's install key can give."""

from __future__ import annotations

import hashlib
import hmac


def proof(install_key: bytes, nonce: bytes) -> str:
    """32 hex digits. `nonce`: drawn anew by whoever asks, so that no old answer will do."""
    said = hashlib.blake2b(b"health" + nonce, key=install_key, digest_size=16)
    return said.hexdigest()


def proves(said: object, install_key: bytes, nonce: bytes) -> bool:
    return isinstance(said, str) and hmac.compare_digest(said, proof(install_key, nonce))
