"""The far side of the matrix: whoever takes the way out reaches the played api.openai.com."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from tests.runtimes.openai_host import NAME, TARGET, OpenaiHost
from tests.runtimes.redirect import Credentials, Redirector

STAFF = Credentials("staff", "a%20b:c@d")
STRANGER = Credentials("staff", "guessed")


@dataclass(frozen=True)
class App:
    """Talks to its host through a proxy; trusts the root of the test alone."""

    host: OpenaiHost

    def ask(self, proxy: str, shown: Credentials | None = None, name: str = NAME) -> str:
        headers = {"Proxy-Authorization": shown.header} if shown else {}
        there = urlsplit(proxy)
        trust = ssl.create_default_context(cafile=str(self.host.root))
        connection = http.client.HTTPSConnection(there.hostname or "", there.port, context=trust)
        connection.set_tunnel(name, 443, headers)
        asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(asked), JSON)
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return str(answer["choices"][0]["message"]["content"])


JSON = {"Content-Type": "application/json"}


@pytest.fixture
def app(host: OpenaiHost) -> App:
    return App(host)


def test_the_redirector_leads_to_the_host(app: App, way: Redirector) -> None:
    assert app.ask(way.url).startswith("hi: The quick")
    assert (way.asked[-1].target, way.asked[-1].status) == (TARGET, 200)
    assert app.host.names[-1] == NAME


def test_the_redirector_leads_nowhere_else(app: App, way: Redirector) -> None:
    with pytest.raises(OSError, match="403"):
        app.ask(way.url, name="example.com")


@pytest.mark.parametrize("shown", [None, STRANGER])
def test_the_redirector_demands_credentials(
    app: App, way: Redirector, shown: Credentials | None
) -> None:
    way.credentials = STAFF
    with pytest.raises(OSError, match="407"):
        app.ask(way.url, shown)
    assert app.ask(way.url, STAFF).startswith("hi")


def test_a_host_that_is_gone_is_told(app: App, way: Redirector) -> None:
    way.ports[TARGET] = 1
    with pytest.raises(OSError, match="502"):
        app.ask(way.url)
