"""Cards and invites: one form each, and nothing secret in them."""

import json
import re
from pathlib import Path

import pytest

from commonweal_coordinator.serving.tls import load_or_create_tls
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.statements.invite import Card, Invite
from tests.kit.federation import key_of

KEY = public_hex(key_of("clinic"))
PEM = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
CARD: dict[str, str | None] = {"institution": "clinic", "key": KEY, "witness": None, "consortium": None}
INVITE: dict[str, str | None] = {
    "consortium": "ab" * 32,
    "name": "three",
    "exchange": "hub.test:7400",
    "records": "https://hub.test:7401",
    "ca_pem": PEM,
}
FORMS: dict[type[Card | Invite], dict[str, str | None]] = {Card: CARD, Invite: INVITE}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, form: type[Card | Invite]) -> None:
    made = form.model_validate(FORMS[form])
    made.save(tmp_path / "file.json")
    assert form.load(tmp_path / "file.json") == made
    assert json.loads((tmp_path / "file.json").read_text()) == FORMS[form]


def test_a_card_holds_the_public_half_and_nothing_else_of_a_key(tmp_path: Path) -> None:
    key = key_of("clinic")
    Card(institution="clinic", key=public_hex(key)).save(tmp_path / "card.json")
    text = (tmp_path / "card.json").read_text()
    assert key.public_key().public_bytes_raw().hex() in text
    assert key.private_bytes_raw().hex() not in text
    assert set(json.loads(text)) == {"institution", "key", "witness", "consortium"}


def test_an_invite_of_a_real_authority_holds_its_certificate_and_no_key(tmp_path: Path) -> None:
    tls = load_or_create_tls(tmp_path / "tls", ["127.0.0.1"])
    made = Invite.model_validate({**INVITE, "ca_pem": tls.ca.read_text()})
    made.save(tmp_path / "invite.json")
    assert Invite.load(tmp_path / "invite.json").ca_pem == tls.ca.read_text()
    text = (tmp_path / "invite.json").read_text()
    assert text.count("BEGIN CERTIFICATE") == 1
    assert "PRIVATE" not in text


# form, key, value, what the message says after the key
BAD: list[tuple[type[Card | Invite], str, object, str]] = [
    (Card, "secret", "x", "Extra inputs are not permitted, got 'x'"),
    (Card, "institution", "Clinic!", "String should match pattern"),
    (Card, "institution", 7, "Input should be a valid string, got '7'"),
    (Card, "key", KEY.upper(), "String should match pattern"),
    (Card, "key", KEY[:-2], "String should match pattern"),
    (Card, "key", KEY + "00", "String should match pattern"),
    (Card, "key", None, "Input should be a valid string"),
    (Invite, "note", "x", "Extra inputs are not permitted, got 'x'"),
    (Invite, "consortium", "AB" * 32, "String should match pattern"),
    (Invite, "name", "../three", "String should match pattern"),
    (Invite, "exchange", "hub.test", "String should match pattern"),
    (Invite, "exchange", "https://hub.test:1", "String should match pattern"),
    (Invite, "records", "http://hub.test:7401", "String should match pattern"),
    (Invite, "records", "https://hub.test:7401\nx", "String should match pattern"),
    (Invite, "ca_pem", "", "String should match pattern"),
    (Invite, "ca_pem", "-----BEGIN PRIVATE KEY-----\nMAA=\n", "String should match pattern"),
    (Invite, "ca_pem", PEM + "x" * 32_768, "at most 32768 characters"),
]


@pytest.mark.parametrize(("form", "key", "value", "message"), BAD, ids=[f"{b[1]}-{i}" for i, b in enumerate(BAD)])
def test_any_other_form_is_refused_by_file_and_key(
    tmp_path: Path, form: type[Card | Invite], key: str, value: object, message: str
) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps({**FORMS[form], key: value}))
    with pytest.raises(
        ConfigError, match=rf"^{re.escape(str(path))}: wanted {form.WHAT}, got another file: {key}: .*{message}"
    ):
        form.load(path)


@pytest.mark.parametrize("form", FORMS)
def test_every_key_but_the_witness_and_the_consortium_is_wanted(tmp_path: Path, form: type[Card | Invite]) -> None:
    for key in FORMS[form].keys() - ({"witness", "consortium"} if form is Card else set()):
        path = tmp_path / "file.json"
        path.write_text(json.dumps({k: v for k, v in FORMS[form].items() if k != key}))
        with pytest.raises(ConfigError, match=f"{key}: Field required"):
            form.load(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_too_large_is_refused_even_if_only_white_space_is(
    tmp_path: Path, form: type[Card | Invite]
) -> None:
    path = tmp_path / "file.json"
    text = json.dumps(FORMS[form])
    path.write_text(text.ljust(64 * 1024))
    form.load(path)
    path.write_text(text.ljust(64 * 1024 + 1))
    with pytest.raises(ConfigError, match=r"file\.json: wanted .* of at most 65536 bytes, got more"):
        form.load(path)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{", b'"card"', b"null"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(data)
    for form in FORMS:
        with pytest.raises(ConfigError, match=f"wanted {form.WHAT}, got another file: "):
            form.load(path)


def test_one_is_not_taken_for_the_other(tmp_path: Path) -> None:
    Card.model_validate(CARD).save(tmp_path / "card.json")
    with pytest.raises(ConfigError, match="wanted a coordinator's invite, got another file: "):
        Invite.load(tmp_path / "card.json")


def test_a_missing_file_is_named_with_what_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"card\.json: wanted an institution's card, got no such file"):
        Card.load(tmp_path / "card.json")
