"""Synthetic support tickets whose right answer is known.

Two tasks. Triage names one of eight labels; extraction answers with a JSON object of three fields.
A phrase is drawn for the answer, dressed up (openers, fillers, distractors, typos, changes of case)
and handed back as a frozen `Ticket`. All chance comes from the `random.Random` handed in, so a seed
names a dataset for good: the shipped model was trained on some seeds and is measured on another,
and the demo's upstream answers a ticket by drawing the dataset it came from.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

TRIAGE = "triage"
EXTRACT = "extract"

# Label and its share of the traffic.
_SHARES = {
    "billing_refund": 0.18,
    "shipping_delay": 0.18,
    "account_access": 0.15,
    "bug_report": 0.14,
    "feature_request": 0.10,
    "order_cancel": 0.11,
    "product_damage": 0.09,
    "security_fraud": 0.05,
}
LABELS = tuple(_SHARES)
RARE = "security_fraud"

SYSTEM_TRIAGE = (
    "You are a support triage bot. Read the ticket and answer with exactly one label: "
    f"{', '.join(LABELS)}."
)
SYSTEM_EXTRACT = (
    "Extract order_id, product and urgency (low, medium or high) from the message. "
    "Answer with one JSON object and nothing else."
)


@dataclass(frozen=True, slots=True)
class Ticket:
    task: str
    system: str
    user: str
    answer: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as a chat completion request carries it."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": self.user},
        ]


def make_triage(rng: random.Random, label: str | None = None) -> Ticket:
    label = label or rng.choices(LABELS, tuple(_SHARES.values()))[0]
    parts = [_fill(rng, rng.choice(_ISSUES[label]))]
    if rng.random() < 0.45:
        parts.insert(rng.randrange(2), _fill(rng, rng.choice(_FILLERS)))
    if rng.random() < 0.35:
        parts.insert(rng.randrange(len(parts) + 1), _fill(rng, _distractor(rng, label)))
    text = _with_typos(rng, _joined(rng, [rng.choice(_OPENERS), *parts, _signature(rng)]), 0.06)
    return Ticket(TRIAGE, SYSTEM_TRIAGE, _in_some_case(rng, text), label)


def make_extract(rng: random.Random) -> Ticket:
    order, product = _order_id(rng), _product(rng)
    urgency = rng.choices(tuple(_URGENCY), (0.35, 0.35, 0.3))[0]
    parts = [_fill(rng, rng.choice(_REQUESTS))]
    if hint := rng.choice(_URGENCY[urgency]):
        parts.insert(rng.randrange(2), hint)
    if rng.random() < 0.4:
        parts.insert(rng.randrange(len(parts) + 1), _fill(rng, rng.choice(_FILLERS)))
    parts = [rng.choice(_OPENERS), *parts, rng.choice(_CLOSERS)]
    text = _with_typos(rng, _joined(rng, parts), 0.05)
    if rng.random() < 0.2:
        text = text.lower()
    # Filled in last: what is to be copied stays free of typos and keeps its case.
    text = text.replace("<order>", order).replace("<product>", product)
    answer = json.dumps({"order_id": order, "product": product, "urgency": urgency})
    return Ticket(EXTRACT, SYSTEM_EXTRACT, text, answer)


def dataset(
    seed: int,
    triage: int,
    extract: int,
    exclude: Collection[str] = frozenset(),
    label: str | None = None,
) -> list[Ticket]:
    """So many tickets of each task, triage first, no text twice and none of those excluded.

    A text therefore has one answer within a dataset. `label` restricts the triage tickets to one.
    """
    rng = random.Random(seed)
    seen = set(exclude)
    return [
        *_distinct(triage, seen, lambda: make_triage(rng, label)),
        *_distinct(extract, seen, lambda: make_extract(rng)),
    ]


def _distinct(count: int, seen: set[str], make: Callable[[], Ticket]) -> list[Ticket]:
    drawn: list[Ticket] = []
    while len(drawn) < count:
        ticket = make()
        if ticket.user not in seen:
            seen.add(ticket.user)
            drawn.append(ticket)
    return drawn


def _fill(rng: random.Random, phrase: str) -> str:
    return re.sub(r"\{([a-z]+)\}", lambda slot: _SLOTS[slot[1]](rng), phrase)


def _distractor(rng: random.Random, label: str) -> str:
    return rng.choice([text for text, denied in _DISTRACTORS.items() if label not in denied])


def _signature(rng: random.Random) -> str:
    closer = rng.choice(_CLOSERS)
    return f"{closer}, {rng.choice(_NAMES)}" if closer and rng.random() < 0.4 else closer


def _joined(rng: random.Random, parts: Iterable[str]) -> str:
    return rng.choice(_SEPARATORS).join(part for part in parts if part)


def _in_some_case(rng: random.Random, text: str) -> str:
    return rng.choices((text, text.lower(), text.upper()), (0.70, 0.25, 0.05))[0]


def _with_typos(rng: random.Random, text: str, rate: float) -> str:
    def maybe(word: str) -> str:
        long = len(word) > 3 and word.isalpha()
        return _misspelt(rng, word) if long and rng.random() < rate else word

    return " ".join(maybe(word) for word in text.split(" "))


def _misspelt(rng: random.Random, word: str) -> str:
    at = rng.randrange(1, len(word) - 1)
    before, letter, after = word[:at], word[at], word[at + 1 :]
    swapped = before + after[0] + letter + after[1:]
    dropped = before + after
    doubled = before + letter + letter + after
    return rng.choice((swapped, dropped, doubled))


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(count))


def _order_id(rng: random.Random) -> str:
    return rng.choice(_ORDER_IDS)(rng)


def _product(rng: random.Random) -> str:
    return f"{rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}"


def _amount(rng: random.Random) -> str:
    return f"${rng.randint(5, 480)}.{rng.randint(0, 99):02d}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ORDER_IDS: tuple[Callable[[random.Random], str], ...] = (
    lambda rng: f"ORD-{_digits(rng, 5)}",
    lambda rng: f"{rng.choice(('EU', 'US', 'UK', 'CA'))}-{_digits(rng, 4)}",
    lambda rng: f"{_digits(rng, 4)}-{_digits(rng, 3)}",
    lambda rng: f"#{_digits(rng, 6)}",
)

_ADJECTIVES = _words(
    "trail carbon wool mini steel solar folding ceramic smart travel "
    "garden winter cotton bamboo wireless vintage leather office kids pro"
)
_NOUNS = _words(
    "backpack kettle jacket lamp speaker tent blender headphones keyboard bottle "
    "boots drone scale chair watch router camera grill desk rug"
)
_NAMES = _words(
    "Ana Ben Chen Divya Emil Fatima Goran Hana Ivo Jules Kofi Lena "
    "Marta Nils Olga Pavel Quinn Rosa Sami Tara Umar Vera Will Yuki"
)
_CITIES = _words("Lyon Graz Leeds Porto Austin Osaka Turin Ghent Malmo Brno Cork Lima")
_DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
_DEVICES = ("tablet", "laptop", "old phone", "work pc", "ipad", "desktop")
_PAYMENTS = ("paypal", "klarna", "crypto", "invoice", "gift cards")

_SLOTS: dict[str, Callable[[random.Random], str]] = {
    "product": _product,
    "order": _order_id,
    "amount": _amount,
    "number": lambda rng: str(rng.randint(2, 9)),
    "times": lambda rng: rng.choice(("two", "three", "2", "3")),
    "day": lambda rng: rng.choice(_DAYS),
    "city": lambda rng: rng.choice(_CITIES),
    "name": lambda rng: rng.choice(_NAMES),
    "device": lambda rng: rng.choice(_DEVICES),
    "payment": lambda rng: rng.choice(_PAYMENTS),
}

# An empty string leaves the part out; it is listed as often as that should happen.
_OPENERS = (
    *("Hi", "Hello", "Hey team", "Good morning", "Dear support", "Hi there"),
    *("To whom it may concern", "Hello again", "Quick question", "Help please", "", "", ""),
)
_CLOSERS = (
    *("Thanks", "Thank you", "Regards", "Cheers", "Please advise"),
    *("Waiting for your reply", "Best", "Let me know", "", "", ""),
)
_SEPARATORS = (". ", ". ", ", ", "! ", " - ", "\n")
_FILLERS = (
    "I have been a customer for {number} years",
    "I already checked the faq",
    "this is my second message",
    "my phone number is on file",
    "I live in {city}",
    "the chat bot could not help me",
    "I wrote to you last {day}",
    "my colleague {name} had the same thing",
    "I am using the app on my {device}",
    "sorry for the long message",
    "I attached a screenshot",
    "it was a gift for {name}",
)

# Phrases about another topic than the ticket's, with the labels they would contradict.
_DISTRACTORS: dict[str, tuple[str, ...]] = {
    "this is not about a refund": ("billing_refund",),
    "I can log in fine": ("account_access", "security_fraud"),
    "the delivery itself was ok": ("shipping_delay",),
    "I do not want to cancel": ("order_cancel",),
    "the app works otherwise": (),
    "nothing is broken": ("product_damage", "bug_report"),
    "I know my password": ("account_access", "security_fraud"),
    "the parcel came on {day}": ("shipping_delay", "order_cancel"),
    "the invoice is correct": ("billing_refund",),
    "I am not asking for a new feature": ("feature_request",),
}

_ISSUES: dict[str, tuple[str, ...]] = {
    "billing_refund": (
        "I was charged {times} times for the {product}",
        "please give me my money back for order {order}",
        "the refund of {amount} for the {product} never reached my bank",
        "there is a {amount} charge on my invoice that is wrong",
        "you billed me {amount} after the trial ended",
        "I returned the {product} and still wait for my refund",
        "my card was billed {times} times for order {order}",
        "why does the invoice show {amount} instead of {amount}",
        "I want to be reimbursed for the {product}",
        "the discount code was not applied and I paid {amount} too much",
        "the credit note for order {order} is missing",
    ),
    "shipping_delay": (
        "my {product} has not arrived yet",
        "order {order} is stuck in transit since {day}",
        "where is my parcel with the {product}",
        "tracking for {order} has not moved for {number} days",
        "the courier said delivery on {day} but nobody came",
        "the {product} should have been here {number} days ago",
        "the package is still in {city} and late",
        "still waiting for order {order} to be delivered",
        "delivery date for the {product} keeps moving",
        "the parcel went to {city} instead of my home",
    ),
    "account_access": (
        "I cannot log in to my account",
        "the password reset mail never arrives",
        "my account is locked after {number} tries",
        "it says my user name does not exist",
        "the login code sent to my {device} is always rejected",
        "I lost the phone with my authenticator and cannot sign in",
        "please unlock my profile, I forgot the password",
        "I changed my email and now I cannot get into my account",
        "signing in on my {device} just returns me to the login page",
        "the verification link has expired and I am locked out",
    ),
    "bug_report": (
        "the app crashes when I open the {product} page",
        "the checkout button does nothing on my {device}",
        "search shows error {number}00 every time",
        "the page freezes after I add the {product} to the cart",
        "the website shows a blank screen on my {device}",
        "images of the {product} do not load",
        "the cart total shows a negative number, looks like a software glitch",
        "your app drains the battery since the last update",
        "the filter by price is broken",
        "the form throws an exception when I press save",
    ),
    "feature_request": (
        "it would be great if you had a dark mode",
        "could you add {product} to the wish list page",
        "please support paying with {payment}",
        "I would love an export to csv",
        "can you add a way to compare the {product} with others",
        "please offer delivery slots in {city}",
        "a calendar view would be a nice addition",
        "would you consider a loyalty program",
        "I suggest adding push notifications for my {device}",
        "any plans to support sharing lists with {name}",
    ),
    "order_cancel": (
        "please cancel order {order}",
        "I do not want the {product} any more, stop the order",
        "I ordered the {product} by mistake, please cancel it",
        "cancel my purchase of the {product} before it ships",
        "I placed order {order} twice, drop one of them",
        "please void order {order}",
        "I changed my mind about the {product}, call off the order",
        "stop order {order} right away",
        "can I still withdraw my order for the {product}",
        "abort the order from {day}, I picked the wrong {product}",
    ),
    "product_damage": (
        "the {product} arrived broken",
        "the {product} has a big crack",
        "the box was crushed and the {product} is dented",
        "my {product} stopped working after {number} days",
        "one part of the {product} is missing",
        "the {product} came with scratches all over",
        "the {product} leaks on one side",
        "I got the wrong colour and the {product} is torn",
        "the {product} smells burnt when I switch it on",
        "the handle of the {product} snapped off",
    ),
    "security_fraud": (
        "someone else placed order {order} from my account",
        "I see a login from {city} that was not me",
        "I got a phishing mail that pretends to be you",
        "a stranger changed the address on my profile",
        "my card was used for order {order} and I never bought a {product}",
        "I think my account was hacked",
        "an unknown person paid {amount} with my saved card",
        "somebody is using my identity to buy a {product}",
        "there are purchases of a {product} I did not make",
        "a fake caller asked me for my password in your name",
    ),
}

# A ticket that says nothing about its urgency is of medium urgency.
_URGENCY: dict[str, tuple[str, ...]] = {
    "high": (
        "this is urgent",
        "I need it asap",
        "please answer today",
        "it is an emergency",
        "I need this before tomorrow",
        "top priority please",
        "hurry please",
    ),
    "medium": (
        "please look at it this week",
        "a reply in a few days is fine",
        "I would like an answer soon",
        "",
        "",
    ),
    "low": (
        "no rush",
        "whenever you have time",
        "it is not urgent",
        "take your time",
        "low priority",
        "any time next month is fine",
    ),
}
_REQUESTS = (
    "my order <order> with the <product> is late",
    "the <product> from order <order> does not work",
    "I have a question about the <product>, order <order>",
    "order <order>: the <product> came in the wrong size",
    "please exchange the <product> (<order>)",
    "about <order>, I would like to return the <product>",
    "can you check the status of <order>? it is a <product>",
    "I bought a <product> last {day}, order number <order>",
    "the <product> in <order> is missing a part",
    "I want a second <product> like in order <order>",
    "please change the address of order <order> for the <product>",
    "<order> / <product> / still not here",
)
