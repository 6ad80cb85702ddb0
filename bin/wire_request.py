"""A request to verify with: what goes on the wire, how it is paced, and its line in a file.

A file has one JSON object a line:

    {"name": "chat", "method": "POST", "target": "/v1/chat/completions",
     "headers": [["Host", "{host}"], ["Content-Length", "{length}"]],
     "body": "text, or body_base64", "options": {"reply": "chat"}}

In header values `{host}` becomes the host that is asked, `{length}` the body's size and `{key}` the
API key. Text of headers and targets is Latin-1: each character is one byte. Options: the fields of
`Options`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from bin.wire_frames import Frame
from bin.wire_read import Headers

Connection = Literal["new", "kept", "pipelined"]

_FREE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))
_KEYS: Final = ("name", "method", "target", "headers", "body", "body_base64", "options")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET: Final = re.compile(r"[!-~\x80-\xff]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class RequestError(ValueError):
    """A line of a file that can't be used; one line for a person."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a request is sent. All have defaults."""

    reply: str = "echo"  # what our own upstream answers, see bin/wire_replies.py
    connection: Connection = "new"  # kept: on the one before's; pipelined: and without waiting
    version: str = "1.1"
    repeat: int = 1  # the body, so often
    piece: int = 0  # bytes of body sent at once, and of a chunk; 0: all
    pause: float = 0.0  # seconds before each piece of the body
    chunk_extension: str = ""
    trailers: Headers = ()
    frames: tuple[Frame, ...] = ()  # WebSocket, sent one by one when the upgrade is accepted
    refused: int = 0  # status by which the sidecar itself must refuse this; 0: it must relay it
    spend: bool | None = None  # costs money; none: whatever is no GET, HEAD or OPTIONS


@dataclass(frozen=True, slots=True)
class Request:
    name: str
    method: bytes = b"GET"
    target: bytes = b"/"
    headers: Headers = ((b"Host", b"{host}"),)
    text: bytes = b""
    options: Options = field(default_factory=Options)

    @property
    def body(self) -> bytes:
        return self.text * self.options.repeat

    @property
    def spends(self) -> bool:
        return self.method not in _FREE if self.options.spend is None else self.options.spend

    @property
    def expects(self) -> bool:
        return self.has(b"expect")

    @property
    def paced(self) -> bool:
        return self.options.pause > 0

    def has(self, name: bytes) -> bool:
        return any(key.lower() == name for key, _ in self.headers)


def conversations(requests: Sequence[Request]) -> list[tuple[Request, ...]]:
    """Requests by connection, in order."""
    found: list[list[Request]] = []
    for request in requests:
        if request.options.connection == "new" or not found:
            found.append([])
        found[-1].append(request)
    return [tuple(conversation) for conversation in found]


# -- on the wire


@dataclass(frozen=True, slots=True)
class Filling:
    """What stands for the placeholders. `key` None: headers that need it are left out."""

    host: bytes
    prefix: bytes = b""
    key: bytes | None = None


def head_bytes(request: Request, filling: Filling, more: Headers = ()) -> bytes:
    target = request.target if request.target == b"*" else filling.prefix + request.target
    lines = [b"%b %b HTTP/%b" % (request.method, target, request.options.version.encode())]
    for name, value in (*request.headers, *more):
        if filling.key is None and b"{key}" in value:
            continue
        value = value.replace(b"{host}", filling.host).replace(b"{key}", filling.key or b"")
        lines.append(b"%b: %b" % (name, value.replace(b"{length}", b"%d" % len(request.body))))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def body_pieces(request: Request) -> Iterator[bytes]:
    """The body with its framing, in the pieces that it is sent in."""
    options, body = request.options, request.body
    size = options.piece or max(len(body), 1)
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    if not request.has(b"transfer-encoding"):
        yield from pieces
        return
    extension = options.chunk_extension.encode("latin-1")
    for piece in pieces:
        yield b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)
    trailers = b"".join(b"%b: %b\r\n" % pair for pair in options.trailers)
    yield b"0%b\r\n%b\r\n" % (extension, trailers)


# -- in a file


def dump(request: Request) -> str:
    """One line, without its end."""
    found: dict[str, Any] = {
        "name": request.name,
        "method": request.method.decode("latin-1"),
        "target": request.target.decode("latin-1"),
        "headers": _plain_headers(request.headers),
    }
    try:
        text = request.text.decode()
    except UnicodeDecodeError:
        found["body_base64"] = base64.b64encode(request.text).decode()
    else:
        found |= {"body": text} if text else {}
    options = _plain_options(request.options)
    return json.dumps(found | ({"options": options} if options else {}))


def _plain_headers(headers: Headers) -> list[list[str]]:
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers]


def _plain_options(options: Options) -> dict[str, Any]:
    default = Options()
    found = {
        spec.name: getattr(options, spec.name)
        for spec in fields(Options)
        if getattr(options, spec.name) != getattr(default, spec.name)
    }
    if options.trailers:
        found["trailers"] = _plain_headers(options.trailers)
    if options.frames:
        found["frames"] = [
            [frame.opcode, base64.b64encode(frame.payload).decode()] for frame in options.frames
        ]
    return found


def load(path: Path) -> list[Request]:
    """The requests in a file. Raises RequestError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: {error}; name a file of one JSON object a line") from None
    found = [
        parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not found:
        raise RequestError(f"{path}: has no requests; see --record for an example")
    return found


def parse(line: str, where: str = "request") -> Request:
    """The request in one line. Raises RequestError, which names `where`, field and value."""
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise RequestError(f"{where}: not JSON: {error}") from None
    if not isinstance(raw, dict) or not raw.keys() <= set(_KEYS):
        raise RequestError(f"{where}: must be an object with only {', '.join(_KEYS)}")
    try:
        return Request(
            name=_text(raw, "name", re.compile(r".+")).decode("latin-1"),
            method=_text(raw, "method", _TOKEN),
            target=_text(raw, "target", _TARGET),
            headers=_headers(raw, "headers"),
            text=_body(raw),
            options=_options(raw.get("options", {})),
        )
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from None


def _text(raw: dict[str, Any], name: str, allowed: re.Pattern[str]) -> bytes:
    value = raw.get(name)
    if not isinstance(value, str) or not allowed.fullmatch(value):
        raise RequestError(f"{name} {value!r}: must be text that may stand there in HTTP/1.1")
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        raise RequestError(f"{name} {value!r}: must be Latin-1, one byte a character") from None


def _headers(raw: dict[str, Any], name: str) -> Headers:
    value = raw.get(name, [])
    pairs = isinstance(value, list) and all(isinstance(i, list) and len(i) == 2 for i in value)
    if not pairs:
        raise RequestError(f"{name} {value!r}: must be a list of [name, value]")
    return tuple(
        (_text({name: key}, name, _TOKEN), _text({name: content}, name, _VALUE))
        for key, content in value
    )


def _body(raw: dict[str, Any]) -> bytes:
    if "body" in raw and "body_base64" in raw:
        raise RequestError("body: give body or body_base64, not both")
    if "body_base64" in raw:
        return _base64(raw["body_base64"], "body_base64")
    value = raw.get("body", "")
    if not isinstance(value, str):
        raise RequestError(f"body {value!r}: must be text; use body_base64 for other bytes")
    return value.encode()


def _base64(value: object, name: str) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except binascii.Error as error:
        raise RequestError(f"{name}: {error}; must be base64") from None


def _options(raw: object) -> Options:
    known = {spec.name: spec for spec in fields(Options)}
    if not isinstance(raw, dict) or not raw.keys() <= known.keys():
        raise RequestError(f"options {raw!r}: must be an object with only {', '.join(known)}")
    given: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "trailers":
            given[name] = _headers(raw, name)
        elif name == "frames":
            given[name] = _frames(value)
        else:
            given[name] = _scalar(name, value)
    return Options(**given)


def _scalar(name: str, value: object) -> object:
    wanted = {"repeat": int, "piece": int, "refused": int, "spend": bool, "pause": (int, float)}
    kind: Any = wanted.get(name, str)
    fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    if not fits or (isinstance(value, int | float) and value < 0):
        raise RequestError(f"options.{name} {value!r}: is of the wrong kind")
    if name == "connection" and value not in get_args(Connection):
        raise RequestError(f"options.{name} {value!r}: must be new, kept or pipelined")
    if name == "version" and value not in ("1.0", "1.1"):
        raise RequestError(f"options.{name} {value!r}: must be 1.0 or 1.1")
    return value


def _frames(value: object) -> tuple[Frame, ...]:
    if not isinstance(value, list):
        raise RequestError(f"options.frames {value!r}: must be a list of [opcode, base64]")
    frames: list[Frame] = []
    for item in value:
        if not (isinstance(item, list) and len(item) == 2 and item[0] in range(16)):
            raise RequestError(f"options.frames {item!r}: must be [opcode, base64]")
        frames.append(Frame(item[0], _base64(item[1], "options.frames")))
    return tuple(frames)
