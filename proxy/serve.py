"""The proxy process: takes the listening socket, serves until told to stop, then drains."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import sys
from pathlib import Path

from policies.access import Access
from policies.forward import Rules
from policies.listeners import Listeners
from policies.policy import Policy
from policies.settings import Settings
from policies.way_out import WayOut
from proxy.authority import Authority, AuthorityError
from proxy.capture import Spool
from proxy.dial import Dialer
from proxy.divert import Diverter
from proxy.door import Door
from proxy.forward import Forwarding
from proxy.ids import Ids
from proxy.limits import Limits
from proxy.metrics import Meter
from proxy.modes import Modes
from proxy.pool import Pool
from proxy.redact import Redactor
from proxy.relay import Relay
from proxy.routes import Routes
from proxy.watch import POLL_SECONDS, Watch
from proxy.writes import Writes


async def run(settings: Settings) -> None:
    """Serve until SIGTERM, then drain; SIGUSR1 cuts that short. What was captured is flushed.

    A repeated SIGTERM changes nothing: it may come from a process group as well as the supervisor.
    """
    assert settings.fd is not None
    loop = asyncio.get_running_loop()
    relay = _relay(settings, loop)
    listener = socket.socket(fileno=settings.fd)
    listener.setblocking(False)
    relay.tick()
    server = await loop.create_server(lambda: Door(relay), sock=listener, backlog=1024)
    stop, hurry = _stop_events(loop)
    ticker = relay.spawn(_tick(relay), "tick")
    await stop.wait()
    server.close()
    await _drain(relay, hurry, settings.parsed_policy().timeouts.drain)
    ticker.cancel()
    relay.pool.close()
    if relay.spool is not None:
        relay.spool.close()
    relay.meter.tick(relay, at=0.0)


def _relay(settings: Settings, loop: asyncio.AbstractEventLoop) -> Relay:
    policy = settings.parsed_policy()
    redactor = Redactor(bytes.fromhex(settings.install_key))
    listeners = Listeners.of(settings.listening)
    forward = _forwarding(settings, policy, listeners)
    dialer = Dialer(WayOut.of(**settings.way_out), listeners, rules=forward.rules)
    pool = Pool(Writes(loop), dialer, policy.timeouts, policy.connections)
    # Nothing recorded, nothing diverted: a plan of an earlier run does not count.
    plan_file = settings.home.plan if policy.capture.enabled else None
    watch = Watch(plan_file, settings.home.kill)
    ids, spool = Ids(), None
    if policy.capture.enabled:
        folder: Path = settings.home.spool / settings.run_id
        spool = Spool(folder, policy.capture, redactor, loop, ids)
    routes = Routes.of(policy)
    return Relay(
        routes=routes,
        pool=pool,
        timeouts=policy.timeouts,
        redactor=redactor,
        diverter=Diverter(watch, pool),
        meter=Meter(settings.home, settings.worker),
        forward=forward,
        limits=Limits.of(policy.limits, resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        worker=settings.worker,
        modes=Modes(policy.privacy, policy.identity),
        ids=ids,
        spool=spool,
        inject_usage=policy.capture.inject_usage,
    )


def _forwarding(settings: Settings, policy: Policy, listeners: Listeners) -> Forwarding:
    """A forward proxy that can't intercept would let calls pass unrecorded: then there is none."""
    access = Access.of(policy.clients, settings.credentials)
    port = Listeners(listeners.bound[:1])
    if not policy.forward.enabled:
        return Forwarding(access, port)
    try:
        authority = Authority.load(settings.home.authority, policy.forward.intercept)
    except AuthorityError as error:
        return Forwarding(access, port, off=f"there is no forward proxy: {error}")
    return Forwarding(access, port, Rules.of(policy.forward, listeners), authority)


def _stop_events(loop: asyncio.AbstractEventLoop) -> tuple[asyncio.Event, asyncio.Event]:
    stop, hurry = asyncio.Event(), asyncio.Event()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, hurry.set)
    return stop, hurry


async def _tick(relay: Relay) -> None:
    while True:
        await asyncio.sleep(POLL_SECONDS)
        try:
            relay.tick()
        except Exception as error:
            # The kill switch and every timeout hang on this loop: it must not end.
            relay.diverter.watch.forget()
            print(f"understudy: a tick failed: {error!r}", file=sys.stderr, flush=True)


async def _drain(relay: Relay, hurry: asyncio.Event, seconds: float) -> None:
    """Open requests may finish; then whoever is left is cut off."""
    relay.draining = True
    deadline = asyncio.get_running_loop().time() + seconds
    while relay.clients and not hurry.is_set():
        for client in list(relay.clients):
            client.drain()
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.02)
    for client in list(relay.clients):
        client.abort()
    await asyncio.sleep(0)
