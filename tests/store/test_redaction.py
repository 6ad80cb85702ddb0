"""Redaction of bodies: what is replaced, by what, and that all else stays as it was sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.recognise_person import MissingExtra
from store.recognisers import UnknownRecogniser
from store.redaction import Redaction

ALL: Final = ("email", "phone", "card", "iban", "national_id", "ip")
REDACTION: Final = Redaction(ALL, region="US")
KEYS_ONLY: Final = Redaction()
KEY: Final = "sk-" + "proj-aB3dE6gH9jK2mN5pQ8sT1vW4"
# A value of each kind, and how it is written otherwise.
VALUES: Final = {
    "EMAIL": ("jane.roe@example.com", "Jane.Roe@Example.COM"),
    "PHONE": ("+1 415 555 2671", "(415) 555-2671"),
    "CARD": ("4111 1111 1111 1111", "4111-1111-1111-1111"),
    "IBAN": ("DE89 3704 0044 0532 0130 00", "DE89370400440532013000"),
    "ID": ("536-90-4399", "536-90-4399"),
    "IP": ("2001:db8::1:0:0:1", "2001:0DB8:0:0:1:0:0:1"),
    "SECRET": (KEY, KEY),
}


def redact(raw: str, redaction: Redaction = REDACTION) -> str:
    return redaction.text(raw, redaction.begin())


@pytest.mark.parametrize("label", VALUES)
def test_the_same_value_has_the_same_placeholder_however_it_is_written(label: str) -> None:
    one, other = VALUES[label]
    placeholders = REDACTION.begin()
    request = REDACTION.text(json.dumps({"content": f"first {one} then"}), placeholders)
    answer = REDACTION.text(json.dumps({"content": f"again {other}, so"}), placeholders)
    assert json.loads(request) == {"content": f"first <{label}_1> then"}
    assert json.loads(answer) == {"content": f"again <{label}_1>, so"}


def test_numbers_go_by_the_order_of_values_and_begin_anew_with_each_exchange() -> None:
    raw = '["b@example.com", "a@example.com", "b@example.com"]'
    assert redact(raw) == redact(raw) == '["<EMAIL_1>", "<EMAIL_2>", "<EMAIL_1>"]'


def test_what_has_nothing_to_hide_is_the_same_object() -> None:
    raw = '{"model": "gpt-4o-mini-2024-07-18", "created": 1730000000, "content": "On 1 May."}'
    assert redact(raw) is raw
    assert KEYS_ONLY.text(raw, KEYS_ONLY.begin()) is raw
    assert REDACTION.plain("On 1 May.", REDACTION.begin()) == "On 1 May."


def test_all_other_bytes_stay() -> None:
    head = '{ "big":123456789012345678901234567890,\t"a":1,"a":2.50, "s":"\\ud800 \\u00e9\\/é\\n'
    raw = f'{head}mail bob\\u0040example.com now\\/ever \\ud83d\\ude00", "n":1e5}}\n'
    assert redact(raw) == f'{head}mail <EMAIL_1> now\\/ever \\ud83d\\ude00", "n":1e5}}\n'


@pytest.mark.parametrize(
    "written",
    [
        "bob@example.com",
        "bob\\u0040example.com",
        "\\u0062\\u006f\\u0062@example.com",
        "\\nbob@example.com",
        "\\\\bob@example.com\\\\",
        '\\"bob@example.com\\"',
    ],
)
def test_escapes_hide_nothing(written: str) -> None:
    kept = redact(f'{{"content": "{written}"}}')
    assert "<EMAIL_1>" in kept and "example" not in kept
    assert "<EMAIL_1>" in json.loads(kept)["content"]


def test_a_key_after_an_escaped_line_break_is_seen() -> None:
    for before in ("\\n", "\\t", "\\r\\n", "\\u000a", "(", "\\u2028", "\\u94a5", "钥", ""):
        kept = redact(f'{{"content": "{before}{KEY}"}}', KEYS_ONLY)
        assert KEY not in kept and "<SECRET_1>" in kept


def test_a_card_as_a_bare_number_becomes_a_string() -> None:
    assert redact('{"pan":4111111111111111,"n":[4111111111111111]}') == (
        '{"pan":"<CARD_1>","n":["<CARD_1>"]}'
    )
    for number in ("4111111111111112", "4111111111111111.5", "-4111111111111111", "4.1e15"):
        assert redact(f'{{"pan":{number}}}') == f'{{"pan":{number}}}'


def test_keys_of_objects_stay_unless_they_are_secrets() -> None:
    assert redact('{"bob@example.com": 1}') == '{"bob@example.com": 1}'
    assert redact(f'{{"{KEY}": {{"a": 1}}}}') == '{"<SECRET_1>": {"a": 1}}'


def test_json_in_a_string_stays_json() -> None:
    arguments = {"to": "bob@example.com", "card": 4111111111111111, "api_key": "hunter2", "n": 1}
    raw = json.dumps({"function": {"arguments": json.dumps(arguments)}})
    kept = json.loads(json.loads(redact(raw))["function"]["arguments"])
    assert kept == {"to": "<EMAIL_1>", "card": "<CARD_1>", "api_key": "<SECRET_1>", "n": 1}


def test_a_scheme_stays_and_one_token_is_one_secret_with_it_or_without() -> None:
    raw = json.dumps({"authorization": f"Bearer {KEY}", "content": f"it is {KEY}"})
    assert json.loads(redact(raw)) == {
        "authorization": "Bearer <SECRET_1>",
        "content": "it is <SECRET_1>",
    }


@pytest.mark.parametrize("value", ["", " ", "<SECRET_1>", "$TOKEN", "${TOKEN}", "{{token}}", "***"])
def test_a_secret_field_that_holds_none_stays(value: str) -> None:
    raw = json.dumps({"api_key": value, "password": None})
    assert redact(raw, KEYS_ONLY) is raw


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ('{"a": "bob@example.com", "b": "and al@exam', '{"a": "<EMAIL_1>", "b": "and al@exam'),
        ('{"a": "bob@example.com', '{"a": "<EMAIL_1>'),
        ('{"api_key": "abc', '{"api_key": "<SECRET_1>'),
        ('{"a": "bob@example.com\\', '{"a": "<EMAIL_1>\\'),
        ('{"a": 1}\n{"b": "bob@example.com"}\n', '{"a": 1}\n{"b": "<EMAIL_1>"}\n'),
    ],
)
def test_bodies_cut_off_and_lines_of_bodies_are_read_as_far_as_they_go(raw: str, kept: str) -> None:
    assert redact(raw) == kept


def test_images_as_text_are_not_searched() -> None:
    data = "data:image/png;base64," + "4111111111111111" * 100
    raw = json.dumps({"url": data, "content": "bob@example.com"})
    assert json.loads(redact(raw)) == {"url": data, "content": "<EMAIL_1>"}


def test_a_field_s_name_tells_what_its_value_is() -> None:
    assert json.loads(redact('{"phone": "4155552671", "order": "4155552671"}')) == {
        "phone": "<PHONE_1>",
        "order": "4155552671",
    }
    assert json.loads(redact('{"ssn": "536904399", "sku": "536904399"}')) == {
        "ssn": "<ID_1>",
        "sku": "536904399",
    }


def test_only_what_was_chosen_is_taken_out_but_credentials_always() -> None:
    raw = json.dumps({"content": f"{KEY} bob@example.com 192.0.2.1"})
    for chosen, kept in (
        ((), "<SECRET_1> bob@example.com 192.0.2.1"),
        (("email",), "<SECRET_1> <EMAIL_1> 192.0.2.1"),
        (("ip", "credentials"), "<SECRET_1> bob@example.com <IP_1>"),
    ):
        assert json.loads(redact(raw, Redaction(chosen))) == {"content": kept}


def test_home_numbers_need_a_region_and_ids_a_country() -> None:
    call, ssn = '"call (415) 555-2671"', '"ssn 536-90-4399"'
    assert redact(call, Redaction(["phone"], "us")) == '"call <PHONE_1>"'
    assert redact(call, Redaction(["phone"])) == call
    assert redact('"ring 0044 20 7946 0958"', Redaction(["phone"])) == '"ring <PHONE_1>"'
    assert redact(ssn, Redaction(["national_id"], countries=["US"])) == '"ssn <ID_1>"'
    assert redact(ssn, Redaction(["national_id"], countries=["de", "fr"])) == ssn


def test_a_choice_that_there_is_not_is_refused_by_its_name() -> None:
    with pytest.raises(UnknownRecogniser, match=r"'mail' is not known; there are: .*email"):
        Redaction(["mail"])
    with pytest.raises(ValueError, match="'XX'"):
        Redaction(["phone"], "XX")
    with pytest.raises(ValueError, match="'xx'"):
        Redaction(["national_id"], countries=["xx"])


def test_names_of_persons_need_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(MissingExtra, match=r"understudy\[names\]"):
        Redaction(["person"])


PRESIDIO: Final = """
import re
class Match:
    def __init__(self, start, end):
        self.start, self.end = start, end
class AnalyzerEngine:
    def analyze(self, text, language, entities, score_threshold):
        text.encode()
        assert (language, entities) == ("en", ["PERSON"])
        return [Match(*m.span()) for m in re.finditer("(?i)jane +roe", text)]
"""


def test_names_of_persons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "presidio_analyzer.py").write_text(PRESIDIO)
    monkeypatch.syspath_prepend(tmp_path)
    made = Redaction(["person", "email"])
    raw = '{"a": "\\ud800 Jane Roe <jane.roe@example.com>", "b": "JANE  ROE"}'
    assert redact(raw, made) == '{"a": "\\ud800 <PERSON_1> <<EMAIL_1>>", "b": "<PERSON_1>"}'


def test_what_becomes_visible_only_after_another_went_goes_too() -> None:
    raw = '"a@example.com@b.example.com call +1 415 555 2671 +1 415 555 2672"'
    once = redact(raw)
    assert "2672" not in once and "a@" not in once
    assert redact(once) is once


PIECES: Final = st.one_of(
    st.text(max_size=12),
    st.sampled_from([value for pair in VALUES.values() for value in pair]),
    st.sampled_from(
        [" ", "\n", '"', "\\", "/", "tel ", "ssn ", "\ud800", "é", "<EMAIL_1>", "a@", "{"]
    ),
)
STRINGS: Final = st.lists(PIECES, max_size=6).map("".join)
NUMBERS: Final = st.one_of(st.integers(), st.floats(), st.just(4111111111111111))
BODIES: Final = st.recursive(
    st.one_of(STRINGS, NUMBERS, st.booleans(), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            STRINGS | st.sampled_from(["api_key", "type", "headers", "value"]), inner, max_size=4
        ),
        inner.map(json.dumps),
    ),
    max_leaves=8,
)


@given(BODIES, st.booleans(), st.sampled_from([None, 1]))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_json_stays_json_and_a_second_time_changes_nothing(
    body: Any, ascii_only: bool, indent: int | None
) -> None:
    raw = json.dumps(body, ensure_ascii=ascii_only, indent=indent)
    kept = redact(raw)
    json.loads(kept)
    assert redact(kept) == kept


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_what_is_no_json_raises_nothing_either(text: str) -> None:
    for raw in (text, f'{{"api_key": "{text}', f"{KEY} {text}"):
        assert KEY not in redact(raw)
        assert KEY not in REDACTION.plain(raw, REDACTION.begin())


def placed(secret: str) -> list[Any]:
    return [
        {"content": secret},
        {"content": f"see {secret}."},
        {"content": f"line\n{secret}\nline"},
        [[{"a": [secret]}]],
        {"content": [{"type": "text", "text": f"\t{secret}\t"}]},
        {"arguments": json.dumps({"a": f"({secret})"})},
        {"arguments": json.dumps({"a": json.dumps([secret, "b"])})},
    ]


def everywhere_escaped(raw: str, secret: str) -> str:
    return raw.replace(secret, "".join(f"\\u{ord(letter):04x}" for letter in secret))


@pytest.mark.parametrize("label", VALUES)
@pytest.mark.parametrize("at", range(7))
def test_a_canary_is_gone_from_every_place(label: str, at: int) -> None:
    for secret in VALUES[label]:
        raw = json.dumps(placed(secret)[at])
        for sent in (raw, everywhere_escaped(raw, secret)):
            kept = redact(sent)
            assert secret not in repr(json.loads(kept)) and f"<{label}_1>" in kept


@pytest.mark.parametrize(
    "shape",
    [
        {"tools": [{"type": "mcp", "server_label": "m", "authorization": "%"}]},
        {"tools": [{"type": "mcp", "server_label": "m", "headers": {"X-Mine": "%"}}]},
        {"tools": [{"headers": {"X-Mine": "%"}, "server_url": "https://m.example"}]},
        {"client_secret": {"value": "%", "expires_at": 1}},
        {"session": {"client_secret": {"value": "%"}}},
        {"value": "%", "expires_at": 1, "session": {"type": "realtime"}},
        {"client_secret": "%"},
        {"object": "organization.admin_api_key", "value": "%"},
        {"api_key": {"object": "organization.project.service_account.api_key", "value": "%"}},
        {"data_sources": [{"parameters": {"authentication": {"type": "x", "key": "%"}}}]},
        {"network_policy": {"domain_secrets": [{"domain": "d", "name": "n", "value": "%"}]}},
        {"auth": {"type": "static_bearer", "token": "%"}},
        {"api-key": "%"},
        {"AZURE_OPENAI_API_KEY": "%"},
        {"api_keys": {"openaiApiKey": ["%", "%"]}},
        {"Cookie": "%"},
        {"secret": "%"},
    ],
)
def test_secrets_are_told_by_their_fields_whatever_they_look_like(shape: dict[str, Any]) -> None:
    raw = json.dumps(shape).replace("%", "hunter two")
    for sent in (raw, json.dumps({"arguments": raw}), raw.replace('":', '" :')):
        kept = redact(sent, KEYS_ONLY)
        assert "hunter" not in kept
        assert kept.replace("<SECRET_1>", "hunter two") == sent


@pytest.mark.parametrize(
    "raw",
    [
        '{"parameters": {"properties": {"password": {"type": "string"}}, "required": ["api_key"]}}',
        '{"headers": {"X-Mine": "plain"}, "type": "http"}',
        '{"value": "plain", "key": "plain", "token": "plain"}',
        '{"logprobs": {"content": [{"token": " plain", "logprob": -0.5}]}}',
        '{"prompt_cache_key": "plain", "safety_identifier": "plain"}',
    ],
)
def test_fields_of_like_names_stay(raw: str) -> None:
    assert redact(raw, KEYS_ONLY) is raw
