"""Answers of our own, in the shape of OpenAI's errors, so that every SDK understands them."""

from __future__ import annotations

from http import HTTPStatus

import httptools
import orjson

from proxy.heads import Pairs, Refused, ResponseHead, response_of


def json_answer(
    status: int, body: object, headers: Pairs | None = None
) -> tuple[ResponseHead, bytes]:
    data = orjson.dumps(body)
    head = response_of(
        status,
        HTTPStatus(status).phrase.encode(),
        [
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(data)),
            *(headers or ()),
        ],
        len(data),
    )
    return head, data


def error_answer(refused: Refused) -> tuple[ResponseHead, bytes]:
    """`x-understudy-error` tells our errors from the upstream's."""
    error = {
        "message": refused.message,
        "type": "understudy_error",
        "param": None,
        "code": refused.code,
    }
    headers = [(b"x-understudy-error", refused.code.encode())]
    if refused.status == 405:
        headers.append((b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"))
    if refused.status == 407:
        headers.append((b"Proxy-Authenticate", b'Basic realm="understudy"'))
    if refused.status == 503:
        headers.append((b"Retry-After", b"1"))
    return json_answer(refused.status, {"error": error}, headers)


def refusal_of(error: Exception) -> Refused:
    """What a callback raised, which the parser wraps, or a plain 400."""
    inner = error.__context__
    if isinstance(inner, Refused):
        return inner
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return Refused(400, "bad_request", "the request line has no method that HTTP knows")
    if str(error) == "Invalid HTTP version":  # well formed, and none that the parser knows
        return Refused(505, "http_version", "this HTTP version is not spoken here; use HTTP/1.1")
    # The parser's text names the rule, never the bytes.
    return Refused(400, "bad_request", f"not an HTTP/1.1 request: {error}")
