"""E-mail addresses, phone numbers and IP addresses, with what looks like them."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import phonenumbers
from phonenumbers import PhoneNumberFormat as Style
from phonenumbers import PhoneNumberType as Type

from tests.store.redaction_corpus.sentences import (
    FIELDS,
    Row,
    beside,
    digits,
    many,
    missed,
    within,
)

# RFC 5321, 5322, 3696 and 6531 show these.
_SHOWN_MAIL: Final = (
    "jdoe@machine.example mary@example.net john.q.public@example.com mary@x.test jdoe@example.org "
    "one@y.test boss@nil.test sysservices@example.net pete@silly.example c@a.test joe@where.test "
    "jdoe@one.test smith@home.example mary@example.com jsmith@example.com Smith@bar.com "
    "Jones@xyz.com Brown@foo.com Green@foo.com theboss@bar.com user+mailbox@example.com "
    "customer/department=shipping@example.com $A12345@example.com !def!xyz%abc@example.com "
    "_somename@example.com Pelé@example.com δοκιμή@παράδειγμα.δοκιμή "
    "jøran@blåbærsyltetøy.example.no userc%example.net@example.org"
).split()
_QUOTED_MAIL: Final = (
    '"Fred Bloggs"@example.com',
    '"Abc@def"@example.com',
    '"john..doe"@example.org',
)
_FIRST: Final = (
    "anna bob chloe dmitri ella farid grace hugo ines jörg kim li maria noor o'neil".split()
)
_LAST: Final = (
    "smith garcia müller rossi dubois kowalski sato khan silva jensen novak okafor".split()
)
_HOSTS: Final = (
    "example.com example.org example.net mail.example.co.uk gmail.com sub.example.museum "
    "firma-muster.de uni.example.edu 163.com xn--bcher-kva.example team.example.io a.b.c.example.fr"
).split()
_MAIL: Final = (
    "Please write to {0} before Friday.",
    "From: Jane Roe <{0}>",
    "My address is {0}.",
    "({0})",
    "Contact {0}, or call.",
    "Reply-To: {0}\nSubject: invoice",
    "mailto:{0}?subject=hello",
    "Wer ist {0}?",
    "{0} wrote: thanks!",
    "{0}: he knows more",
    "cc {0}; bcc none",
    "user=`{0}`",
    *FIELDS,
)
_NO_MAIL: Final = (
    "@dataclass",
    "@app.route('/x')",
    "a@b",
    "user@localhost",
    "git clone git@github.com:example/{0}.git",
    "scp {0}@build.example.com:/var/log/syslog .",
    "rsync -a {0}@files.example.org:backup/ .",
    "ssh {0}@bastion.example.com",
    "ssh -p 2222 {0}@bastion.example.com uptime",
    "npm install {0}@4.17.21",
    "npm i @types/{0}@20.1.0",
    "uses: actions/{0}@v4.1.2",
    "yarn add {0}@^1.2.3",
    "{0}@2x.png",
    "assets/{0}@3x.webp is missing",
    "y = {0} @ weights.T",
    "y = {0}@weights.T",
    "q = self.{0}@self.k.transpose(0, 1)",
    "meet @{0} at noon",
    "follow @{0}.bsky on it",
    "image: registry.example.com/{0}@sha256:0123456789abcdef0123456789abcdef",
    "ssh://git@git.example.com/{0}.git",
    "https://{0}@example.com/path",
    "{0} at example dot com",
    "{0}@",
    "@{0}",
    "{0}@.com",
    "{0} @ example.com",
    "{0}@example",
    "{0}@example..com",
    "SELECT @{0}.value FROM t",
    "pkg:npm/{0}@1.0.0-rc.1",
    "ping {0}@10.x",
    "go get example.com/{0}@latest",
    "go install example.com/{0}@v1.2.3",
)


def email(draw: random.Random) -> list[Row]:
    made: list[str] = []
    while len(made) < 260:
        first, last, host = draw.choice(_FIRST), draw.choice(_LAST), draw.choice(_HOSTS)
        local = draw.choice(
            (f"{first}.{last}", f"{first}{digits(draw, 2)}", f"{first[0]}{last}", f"{first}_{last}",
             f"{first}+{last}", f"{last}-{first}", first, f"{first}.{last}.{digits(draw, 4)}")
        )  # fmt: skip
        made.append(draw.choice((str, str.title, str.upper))(local) + "@" + host)
    rows = within(draw, [*_SHOWN_MAIL, *made], _MAIL)
    rows += within(draw, _QUOTED_MAIL, ("Write to {0} please.", "My address is {0}."))
    names = (*_FIRST[:6], *_LAST[:4], "loader", "left-pad", "core_utils")
    near = [pattern.format(draw.choice(names)) for pattern in _NO_MAIL for _ in range(8)]
    return rows + beside(draw, near, ("{0}", "Then: {0}", "```\n{0}\n```")) + many(draw, 3)


_PHONE: Final = (
    "Call me at {0} after six.",
    "Tel: {0}",
    "Phone {0}, fax on request",
    "My mobile number is {0}.",
    "Meine Telefonnummer ist {0}.",
    "Téléphone : {0}",
    "WhatsApp {0} works best",
    '{{"phone": "{0}"}}',
    '{{"contact": {{"tel": "{0}"}}}}',
    "Mi móvil es {0}, gracias",
)
_PHONE_BARE: Final = ("You reach us on {0}.", "Jane Roe, {0}, London", "- Jane Roe ({0})", *FIELDS)
_REGIONS: Final = "US GB DE FR ES IT NL IN BR JP AU CA MX SE PL CH".split()
_NO_PHONE: Final = (
    "Order 4155552671 has shipped.",
    "Your order number is {0}{1}.",
    "Ticket {0}-{1} was closed.",
    "Tracking 1Z{0}{1} is late.",
    "Call me at +999 {0} {1}.",
    "Tel: 000-000-0000",
    "Tel: +1 123 456 789",
    "Phone: 555-{2}",
    "invoice INV-{0}-{2}",
    "The part WD-{2}-{0} fits.",
    "Card 4111 1111 1111 1111 was refused.",
    "The server 192.0.2.{2} is down.",
    "ZIP {0}-{2}",
    "It has {0},{1} rows.",
    "between {2} and {0}{2} units",
    "{2} + {0} = more",
    "id={0}{1}{0}",
    "sort code 12-34-56",
    "EAN 40{0}{1}{2}",
    "9:30-17:45, 10:00-16:00",
    '{{"id": {0}{1}, "count": {2}}}',
    '{{"order_id": "{0}{1}"}}',
    "uid {0}_{1}",
    "v{2}.{0}.{1}",
    "(1) {2} (2) {0}",
    "0x{0}{1}",
)


def phone(draw: random.Random) -> list[Row]:
    rows = []
    for region in draw.sample(sorted(phonenumbers.SUPPORTED_REGIONS), 130):
        kind = draw.choice((Type.MOBILE, Type.FIXED_LINE))
        number = phonenumbers.example_number_for_type(region, kind)
        if number is None:
            continue
        style = draw.choice((Style.E164, Style.INTERNATIONAL, Style.INTERNATIONAL, Style.RFC3966))
        shown = phonenumbers.format_number(number, style)
        shown = shown.removeprefix("tel:")
        sentences = _PHONE + (_PHONE_BARE if style != Style.RFC3966 else ("tel:{0}",))
        rows += within(draw, [shown], sentences, region=draw.choice((None, "US", "DE")))
    for region in _REGIONS:
        for kind in (Type.MOBILE, Type.FIXED_LINE, Type.TOLL_FREE):
            number = phonenumbers.example_number_for_type(region, kind)
            if number is None:
                continue
            shown = phonenumbers.format_number(number, Style.NATIONAL)
            plain = "".join(c for c in shown if c.isdigit())
            rows += within(draw, [shown, plain], _PHONE, region=region)
            if len(shown) >= len(plain) + 2:
                rows += within(draw, [shown], _PHONE_BARE, region=region)
    for _ in range(40):
        area, line = draw.choice(("212", "415", "617", "303")), digits(draw, 4)
        shape = draw.choice(("{0}-{1}-{2}", "({0}) {1}-{2}", "{0}.{1}.{2}", "+1 {0} {1} {2}",
                             "+1-{0}-{1}-{2}", "1-{0}-{1}-{2}", "+1 ({0}) {1}-{2}"))  # fmt: skip
        shown = shape.format(area, draw.choice(("555", "248", "736")), line)
        rows += within(draw, [shown], _PHONE + _PHONE_BARE, region="US")
    near = []
    for pattern in _NO_PHONE:
        for _ in range(7):
            text = pattern.format(digits(draw, 5), digits(draw, 5), digits(draw, 4))
            near.append(missed(text, region=draw.choice((None, "US", "GB", "DE"))))
    for row in many(draw, 7):
        near.append({**row, "region": draw.choice((None, "US", "GB", "DE"))})
    return rows + near


_IP: Final = (
    "The request came from {0}.",
    "Blocked {0} after 5 tries",
    '{{"client_ip": "{0}"}}',
    'ping {0} says "no route"',
    "host {0}, port 22",
    "Failed login for root from {0}",
    "allow {0};",
    "addr={0}",
    "x-forwarded-for: {0}, then more",
    *FIELDS,
)
_IP4: Final = (
    *_IP,
    "http://{0}:8080/health",
    "ssh root@{0}",
    '{0} - - [10/Oct/2000:13:55:36 -0700] "GET /"',
    "{0}/24 is the subnet",
)
_IP6: Final = (*_IP, "http://[{0}]:8080/health", "{0}/64 is the prefix", "inet6 {0} scope global")
_SHOWN_IP: Final = (  # the documentation of ipaddress, and RFC 5737, 3849, 5952
    "192.168.0.1 192.0.2.1 192.0.2.6 198.51.100.7 203.0.113.24 10.0.0.1 172.16.254.3 "
    "8.8.8.8".split()
)
_SHOWN_IP6: Final = (
    "2001:db8::1 2001:db8::1000 2001:db8:0:0:1:0:0:1 2001:db8::1:0:0:1 fe80::1ff:fe23:4567:890a "
    "2001:0DB8:0:0:8:800:200C:417A ff02::1:3 2001:db8:85a3:8d3:1319:8a2e:370:7348 "
    "::ffff:192.0.2.128 2001:db8:1:2:3:4:5:6 fd00::aaaa:1"
).split()
_NO_IP: Final = (
    "version 1.2.{0}.{1}",
    "v1.{0}.2.{1}",
    "Version: {0}.1.2.{1}",
    "Chrome/{0}.0.{1}.9 Safari/537.36",
    "driver release {0}.4.{1}.1",
    "see section 4.{0}.2.{1}",
    "§ 3.{0}.1.{1}",
    "package-{0}.2.{1}.4.tar.gz",
    "pip install example=={0}.2.{1}.4",
    "example>={0}.0.{1}.1",
    "OID 1.3.6.1.4.{0}.{1}",
    "{0}.300.1.{1}",
    "999.{0}.{1}.1",
    "1.2.{0}",
    "01.0{2}.20.02",
    "{0}.{1}.1.2.3",
    "00:1b:63:84:45:e{2}",
    "12:34:5{2}",
    "2024-01-01T12:34:5{2}",
    "std::vector<int> a{2};",
    "a::b::c{2}",
    "xs[::{2}]",
    "xs[1::{2}]",
    "ratio 16:9:{2}",
    "use Foo::Bar{2};",
    "dead::beef is a joke in {2} words",
    "key:value:{2}",
    "aa:bb:cc:dd:ee:f{2}",
    "firmware 10.{0}.{1}.2",
    "sha1:ab:cd:ef:01:23:45:67:89:ab:c{2}",
    "build {0}.0.{1}.77",
    "ver. {0}.0.{1}.7",
    "::before {{ content: '{2}' }}",
)


def ip(draw: random.Random) -> list[Row]:
    four = [str(IPv4Address(draw.randint(0x0B000000, 0xDFFFFFFF))) for _ in range(120)]
    six = [IPv6Address((0x20010DB8 << 96) | draw.getrandbits(96)) for _ in range(60)]
    short = [
        IPv6Address((0x20010DB8 << 96) | draw.getrandbits(draw.choice((8, 16, 40))))
        for _ in range(30)
    ]
    rows = within(draw, [*_SHOWN_IP, *four], _IP4)
    rows += within(draw, [*_SHOWN_IP6, *map(str, six), *map(str, short)], _IP6)
    rows += within(draw, [address.exploded for address in six[:20]], _IP6)
    near = [p.format(draw.randint(0, 99), draw.randint(0, 99), draw.randint(1, 9))
            for p in _NO_IP for _ in range(7)]  # fmt: skip
    return rows + beside(draw, near, ("{0}", "It says {0}", '{{"note": "{0}"}}')) + many(draw, 3)
