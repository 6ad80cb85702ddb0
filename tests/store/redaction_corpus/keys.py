"""Keys and tokens in text and in the API's own fields, with what looks like them."""

from __future__ import annotations

import random
from string import ascii_letters, ascii_lowercase, ascii_uppercase
from typing import Final

from tests.store.redaction_corpus.sentences import (
    FIELDS,
    SPLIT,
    Row,
    beside,
    found,
    many,
    missed,
    within,
    word,
)

_ALNUM: Final = ascii_letters + "0123456789"
_HEX: Final = "0123456789abcdef"
_URLSAFE: Final = _ALNUM + "-_"
_BASE32: Final = ascii_uppercase + "234567"
# Prefix, alphabet of the body, its length: as the vendors document or show them.
_SHAPES: Final = (
    ("sk-", _ALNUM, 48), ("sk-proj-", _URLSAFE, 120), ("sk-proj-", _ALNUM, 48),
    ("sk-admin-", _URLSAFE, 96), ("sk-svcacct-", _URLSAFE, 80), ("sk-", _HEX, 32),
    ("sess-", _ALNUM, 40), ("ek_", _HEX, 32), ("ek_", _ALNUM, 28),
    ("whsec_", _ALNUM + "+/", 32), ("AKIA", _BASE32, 16), ("ASIA", _BASE32, 16),
    ("ghp_", _ALNUM, 36), ("gho_", _ALNUM, 36), ("ghs_", _ALNUM, 36),
    ("github_pat_", _ALNUM + "_", 82), ("AIza", _URLSAFE, 35), ("sk_live_", _ALNUM, 24),
    ("rk_live_", _ALNUM, 24),
)  # fmt: skip
_SAID: Final = (
    "My key is {0}, please help.",
    "export OPENAI_API_KEY={0}",
    'client = OpenAI(api_key="{0}")',
    "curl -H 'Authorization: Bearer {0}' https://api.example.com",
    "it says: Incorrect API key provided: {0}.",
    "key:\n{0}\n",
    *FIELDS,
)


def _alone(body: str) -> str:
    """A body doesn't end in what a sentence could have put there."""
    return body.strip("-_/+") + "Z9"


def _tokens(draw: random.Random) -> list[str]:
    made = [prefix + SPLIT + _alone(word(draw, letters, length - 2)) if "I" not in prefix
            else prefix + SPLIT + word(draw, letters, length - 1) + "7"
            for prefix, letters, length in _SHAPES for _ in range(9)]  # fmt: skip
    for _ in range(9):
        made.append(f"xoxb-{SPLIT}{word(draw, '0123456789', 12)}-{word(draw, _ALNUM, 24)}")
        made.append(f"xoxp-{SPLIT}{word(draw, '0123456789', 11)}-{word(draw, _HEX, 32)}")
        parts = [word(draw, _URLSAFE, n) for n in (20, 60, 42)]
        made.append(f"eyJ{SPLIT}{parts[0]}.eyJ{parts[1]}.{parts[2]}a")
    return made


def _phrases(draw: random.Random) -> list[Row]:
    """Secrets that only what stands around them gives away."""
    rows = []
    for _ in range(8):
        secret, password = word(draw, _ALNUM + "/+", 39) + "q", word(draw, _ALNUM, 12) + "!4"
        token = SPLIT + word(draw, _ALNUM, 30) + "4"
        key_id = f"AKIA{SPLIT}{word(draw, _BASE32, 16)}"
        kind = draw.choice(("RSA ", "EC ", "", "OPENSSH ", "ENCRYPTED "))
        body = "\n".join(word(draw, _ALNUM + "+/", 64) for _ in range(4))
        pem = (f"-----BEGIN {SPLIT}{kind}PRIVATE KEY-----\n{body}\n"
               f"-----END {kind}PRIVATE KEY-----")  # fmt: skip
        rows += [
            found(f"curl -H 'Authorization: Bearer {token}' https://x.example", token),
            found(f"It sent authorization: bearer {token}\nand failed", token),
            found(f"id {key_id} and secret {secret} work", key_id, secret),
            found(
                f"aws_access_key_id = {key_id}\naws_secret_access_key = {secret}\n", key_id, secret
            ),
            found(f"postgres://app:{password}@db.example.com:5432/main", password),
            found(f"set proxy to http://jane:{password}@10.1.2.3:3128/ and retry", password),
            found(f"my key:\n{pem}\nthanks", pem),
            found(f"{pem}", pem),
        ]
    return rows


# `%s` is the secret; what the API's own objects look like, openai-python's types.
_OBJECTS: Final = (
    '{"tools": [{"type": "mcp", "server_label": "crm", "server_url": "https://m.example", '
    '"authorization": "%s"}]}',
    '{"tools": [{"type": "mcp", "server_label": "crm", "headers": {"X-Mine": "%s"}}]}',
    '{"tools": [{"headers": {"X-Mine": "%s"}, "type": "mcp", "server_label": "crm"}]}',
    '{"id": "sess_1", "client_secret": {"value": "%s", "expires_at": 1734567890}}',
    '{"value": "%s", "expires_at": 1734567890, "session": {"type": "realtime"}}',
    '{"object": "organization.admin_api_key", "name": "n", "value": "%s"}',
    '{"object": "organization.project.service_account", "api_key": '
    '{"object": "organization.project.service_account.api_key", "value": "%s"}}',
    '{"client_secret": "%s", "object": "chatkit.session"}',
    '{"data_sources": [{"parameters": {"authentication": {"type": "api_key", "key": "%s"}}}]}',
    '{"api-key": "%s"}',
    '{"api_key": "%s", "model": "m"}',
    '{"apiKey" : "%s"}',
    '{"AZURE_OPENAI_API_KEY":"%s"}',
    '{"password": "%s"}',
    '{"headers": {"Authorization": "%s", "Accept": "text/html"}}',
    '{"container": {"network_policy": {"domain_secrets": [{"domain": "d", "value": "%s"}]}}}',
    '{"tool_calls": [{"function": {"arguments": "{\\"api_key\\": \\"%s\\"}"}}]}',
)
_NO_OBJECTS: Final = (
    '{"api_key": null, "password": ""}',
    '{"type": "function", "parameters": {"properties": {"password": {"type": "string"}}}}',
    '{"required": ["api_key", "password", "authorization"]}',
    '{"headers": {"Content-Type": "application/json"}, "name": "%s"}',
    '{"value": "%s", "name": "colour"}',
    '{"key": "%s", "value": "%s"}',
    '{"prompt_cache_key": "%s"}',
    '{"logprobs": [{"token": "%s", "logprob": -0.1}]}',
    '{"max_tokens": 20, "usage": {"total_tokens": 3}, "id": "%s"}',
    '{"session": {"expires_at": 1734567890, "id": "%s"}}',
)
_NO_TEXT: Final = (
    "a {0}based approach to the task-oriented desk-research",
    "pip install sk-learn-contrib-extra-pipelines",
    "the {0}management-and-control-framework is risk-averse",
    "sk-... is what a key begins with",
    "set OPENAI_API_KEY=sk-your-key-here first",
    "export OPENAI_API_KEY=<your key>",
    "api_key=os.environ.get('OPENAI_API_KEY')",
    "Authorization: Bearer $TOKEN",
    "Authorization: Bearer <token>",
    "the bearer of good news came",
    "Bearer authentication is required here",
    "https://example.com:8080/@jane/notes",
    "http://user@example.com/x",
    "postgres://${{USER}}:${{PASSWORD}}@db/main",
    "postgres://<user>:<password>@db/main",
    "-----BEGIN PUBLIC KEY-----\nMFwwDQYJ\n-----END PUBLIC KEY-----",
    "-----BEGIN CERTIFICATE-----\nMIIB9TCC\n-----END CERTIFICATE-----",
    "AKIA is the prefix, AKIAs are many",
    "commit {1} fixed it",
    "sha256:{1}{2}",
    "msg_{1}",
    "chatcmpl-{2}AbC",
    "call_{2}XyZ",
    "resp_{1}",
    "week_{2}",
    "request id req_{2}{2}",
    "eyJhbGciOiJIUzI1NiJ9 alone is a header",
    "AIzalea is a flower",
    "xoxo-love-and-kisses-to-you-all",
    "gpt-4o-mini-2024-07-18",
    "whsec_ is how it begins",
    "uuid {3}",
    "the file ghp_notes.txt",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
)


def credentials(draw: random.Random) -> list[Row]:
    rows = within(draw, _tokens(draw), _SAID) + _phrases(draw)
    for shape in _OBJECTS:
        for _ in range(3):
            secret = word(draw, _ALNUM, 24) + "_x"
            rows.append(found(shape % secret, secret, json=True))
    near = []
    for pattern in _NO_TEXT:
        for _ in range(8):
            sha, low = word(draw, _HEX, 40), word(draw, ascii_lowercase + "0123456789", 16)
            uuid = f"{sha[:8]}-{sha[8:12]}-4{sha[12:15]}-9{sha[15:18]}-{sha[18:30]}"
            near.append(pattern.format(draw.choice(("risk-", "desk-", "task-")), sha, low, uuid))
    rows += beside(draw, near, ("{0}", "Note: {0}", "1. {0}\n2. next"))
    for shape in _NO_OBJECTS:
        for _ in range(4):
            name = word(draw, ascii_lowercase, 12)
            rows.append(missed(shape.replace("%s", name), json=True))
    return rows + many(draw, 7)
