"""Canaries: a tiny program in each runtime that is here asks the API for something, without a key.

Each ends with a line of JSON, {"status": 401} or {"error": "..."}, or says so in its own way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from bin.doctor_causes import Tried
from bin.doctor_runtimes import Found
from bin.surroundings import Mode

_PYTHON: Final = """
import json, sys
library, url = sys.argv[1:3]

def openai():
    import openai
    client = openai.OpenAI(max_retries=0, timeout=10)
    try:
        nonce = url.rpartition("=")[2]
        raw = client.models.with_raw_response.list(extra_query={"after": nonce})
        return raw.status_code
    except openai.APIStatusError as error:
        return error.status_code

def requests():
    import requests
    return requests.get(url, timeout=10).status_code

def httpx():
    import httpx
    return httpx.get(url, timeout=10).status_code

def aiohttp(trusting=True):
    import aiohttp, asyncio
    async def call():
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(trust_env=trusting, timeout=timeout) as session:
            async with session.get(url) as answer:
                return answer.status
    return asyncio.run(call())

def plain_aiohttp():
    return aiohttp(False)

def urllib():
    import urllib.error, urllib.request
    try:
        return urllib.request.urlopen(url, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code

def causes(error):
    while error is not None:
        yield "%s: %s" % (type(error).__name__, error)
        error = error.__cause__ or error.__context__

try:
    said = {"status": globals()[library]()}
except Exception as error:
    said = {"error": " <- ".join(causes(error))}
print(json.dumps(said))
"""
_NODE: Final = """
const [library, url] = process.argv.slice(1);
const calls = {
  async fetch() {
    return (await fetch(url, { signal: AbortSignal.timeout(10000) })).status;
  },
  async fetchBase() {
    const ours = process.env.OPENAI_BASE_URL + url.slice(url.indexOf('/models'));
    return (await fetch(ours, { signal: AbortSignal.timeout(10000) })).status;
  },
  async openai() {
    const { OpenAI } = require('openai');
    const client = new OpenAI({ maxRetries: 0, timeout: 10000 });
    try {
      await client.get('/models', { query: { after: url.split('=').pop() } });
      return 200;
    } catch (error) {
      if (error.status) return error.status;
      throw error;
    }
  },
};
const causes = (error) =>
  error ? [`${error.name}: ${error.message} ${error.code ?? ''}`, ...causes(error.cause)] : [];
calls[library]()
  .then((status) => ({ status }), (error) => ({ error: causes(error).join(' <- ') }))
  .then((said) => { console.log(JSON.stringify(said)); process.exit(0); });
"""
_GO: Final = """package main

import (
	"encoding/json"
	"net/http"
	"os"
	"time"
)

func main() {
	said := map[string]any{}
	client := http.Client{Timeout: 10 * time.Second}
	if answer, err := client.Get(os.Args[1]); err != nil {
		said["error"] = err.Error()
	} else {
		said["status"] = answer.StatusCode
	}
	json.NewEncoder(os.Stdout).Encode(said)
}
"""
_JAVA: Final = """
import java.net.URI;
import java.net.http.*;
import java.time.Duration;

public class Canary {
    public static void main(String[] arguments) {
        String said;
        try {
            var request = HttpRequest.newBuilder(URI.create(arguments[0]))
                    .timeout(Duration.ofSeconds(10)).build();
            var client = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(10)).build();
            var answer = client.send(request, HttpResponse.BodyHandlers.discarding());
            said = "{\\"status\\":" + answer.statusCode() + "}";
        } catch (Exception error) {
            var text = new StringBuilder();
            for (Throwable at = error; at != null; at = at.getCause()) text.append(at + " <- ");
            var plain = text.toString().replaceAll("[^ -!#-\\\\[\\\\]-~]", " ");
            said = "{\\"error\\":\\"" + plain + "\\"}";
        }
        System.out.println(said);
    }
}
"""


@dataclass(frozen=True, slots=True)
class Canary:
    """A program to be run once. {url} in `command` is what it asks for, {folder} one of its own.

    `prepare`: a command that makes it, of `files` in that folder.
    """

    runtime: Found
    library: str
    mode: Mode
    command: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    prepare: tuple[str, ...] = ()
    trusting: bool = True

    def tried(self) -> Tried:
        """Before it is."""
        return Tried(
            kind=self.runtime.kind,
            library=self.library,
            mode=self.mode,
            version=self.runtime.version,
            trusting=self.trusting,
        )


def canaries(runtime: Found) -> list[Canary]:
    """Those of one runtime, with the libraries that it has."""
    return _OF_KIND[runtime.kind](runtime)


def _of_python(runtime: Found) -> list[Canary]:
    def canary(library: str, mode: Mode = "proxy", *, trusting: bool = True) -> Canary:
        called = library if trusting else f"plain_{library}"
        command = (*runtime.command, "-c", _PYTHON, called, "{url}")
        return Canary(runtime, library, mode, command, trusting=trusting)

    found = [canary("openai", "base-url"), canary("openai")] if _has(runtime, "openai") else []
    found += [canary(name) for name in ("requests", "httpx", "aiohttp") if _has(runtime, name)]
    if _has(runtime, "aiohttp"):
        found.append(canary("aiohttp", trusting=False))
    return [*found, canary("urllib")]


def _has(runtime: Found, library: str) -> bool:
    return library in runtime.libraries


def _of_node(runtime: Found) -> list[Canary]:
    def canary(library: str, mode: Mode = "proxy", called: str = "") -> Canary:
        words = ("-e", _NODE, called or library, "{url}")
        return Canary(runtime, library, mode, (*runtime.command, *words))

    if _has(runtime, "openai"):
        return [canary("openai", "base-url"), canary("openai"), canary("fetch")]
    # Without the SDK an app reads the variable by itself, if it does: the way at least is tried.
    return [canary("fetch", "base-url", "fetchBase"), canary("fetch")]


def _of_curl(runtime: Found) -> list[Canary]:
    options = ("--silent", "--show-error", "--max-time", "10", "--output", os.devnull)
    command = (*runtime.command, *options, "--write-out", '{"status":%{http_code}}', "{url}")
    return [Canary(runtime, "curl", "proxy", command)]


def _of_wget(runtime: Found) -> list[Canary]:
    options = ("--server-response", "--tries=1", "--timeout=10", "--output-document", os.devnull)
    return [Canary(runtime, "wget", "proxy", (*runtime.command, *options, "{url}"))]


def _of_go(runtime: Found) -> list[Canary]:
    program = "{folder}/canary"
    build = (*runtime.command, "build", "-o", program, "{folder}/canary.go")
    return [Canary(runtime, "go", "proxy", (program, "{url}"), {"canary.go": _GO}, build)]


def _of_java(runtime: Found) -> list[Canary]:
    command = (*runtime.command, "{folder}/Canary.java", "{url}")
    return [Canary(runtime, "java", "proxy", command, {"Canary.java": _JAVA})]


_OF_KIND: Final[Mapping[str, Callable[[Found], list[Canary]]]] = {
    "python": _of_python,
    "node": _of_node,
    "curl": _of_curl,
    "wget": _of_wget,
    "go": _of_go,
    "java": _of_java,
}
