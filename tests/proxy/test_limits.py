"""What a worker takes, and what it refuses."""

from __future__ import annotations

import pytest

from policies.policy import Limits as LimitsPolicy
from policies.policy import Policy, build
from policies.setting import PolicyError
from proxy.answers import error_answer
from proxy.limits import Limits, give_back


def code(limits: Limits, clients: int = 0, in_flight: int = 0, resident: int = 0) -> str | None:
    refused = limits.obstacle(clients, in_flight, resident)
    return None if refused is None else refused.code


def test_without_a_bound_everything_is_taken() -> None:
    assert code(Limits(), 10**6, 10**6, 10**12) is None


@pytest.mark.parametrize(("clients", "expected"), [(0, None), (1, None), (2, "overloaded")])
def test_connections(clients: int, expected: str | None) -> None:
    assert code(Limits(connections=2), clients=clients) == expected


@pytest.mark.parametrize(("in_flight", "expected"), [(0, None), (1, "overloaded")])
def test_requests_in_flight(in_flight: int, expected: str | None) -> None:
    assert code(Limits(in_flight=1), in_flight=in_flight) == expected


def test_memory_refuses_only_while_something_could_give_it_back() -> None:
    limits = Limits(memory=1000)
    assert code(limits, in_flight=1, resident=999) is None
    assert code(limits, in_flight=1, resident=1000) == "overloaded"
    assert code(limits, in_flight=0, resident=1000) is None
    assert limits.heavy(1000) and not limits.heavy(999) and not Limits().heavy(10**12)


def test_descriptors_bound_connections_whatever_the_policy_says() -> None:
    assert Limits.of(LimitsPolicy(), 1000).connections == 400
    assert Limits.of(LimitsPolicy(connections=7), 1000).connections == 7
    assert Limits.of(LimitsPolicy(connections=900), 1000).connections == 400
    assert Limits.of(LimitsPolicy(), 128).connections == 40, "what it needs itself comes first"
    assert Limits.of(LimitsPolicy(), 1).connections == 1


def test_the_refusal_says_when_to_come_back_and_which_setting_it_was() -> None:
    refused = Limits(in_flight=3).obstacle(0, 3, 0)
    assert refused is not None
    head, body = error_answer(refused)
    assert head.status == 503
    assert dict(head.pairs())[b"Retry-After"] == b"1"
    assert b'"code":"overloaded"' in body and b"limits.in_flight" in body


def test_memory_is_given_back_without_harm() -> None:
    give_back()


def test_the_policy() -> None:
    policy = build({"workers": 2, "limits": {"connections": 5, "memory": None}})
    assert (policy.workers, policy.limits.connections, policy.limits.memory) == (2, 5, None)
    assert (Policy().workers, Policy().limits) == (1, LimitsPolicy())


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"workers": 0}, "workers"),
        ({"workers": 65}, "workers"),
        ({"workers": "two"}, "workers"),
        ({"limits": {"connections": 0}}, "limits.connections"),
        ({"limits": {"memory": 1}}, "limits.memory"),
        ({"limits": {"in_flight": 1.5}}, "limits.in_flight"),
        ({"limits": {"clients": 5}}, "limits.clients"),
    ],
)
def test_settings_that_are_refused(raw: dict[str, object], path: str) -> None:
    with pytest.raises(PolicyError) as error:
        build(raw)
    assert error.value.path == path
