"""The five messages: signed by their institution, in one spelling, and nothing else."""

from collections.abc import Callable

import pytest

from commonweal_protocols import canonical
from commonweal_protocols.errors import MalformedError, SignatureError
from commonweal_protocols.keys import public_hex
from commonweal_protocols.predicates import Blob
from commonweal_protocols.secure_messages import (
    MAX_MESSAGE_BYTES,
    Advertisement,
    Body,
    Confirmation,
    MaskedInput,
    Place,
    Reveal,
    RevealedShare,
    SealedShare,
    SealedShares,
    open_message,
    sign_message,
)
from tests.federation import key_of

PLACE = Place(consortium="c0" * 32, round_leaf="1f" * 32, institution="clinic")
KEY = key_of("clinic")
SAID = Advertisement(place=PLACE, mask_key="ab" * 32, box_key="cd" * 32)
SHARE = SealedShare(holder="coop", box="0" * 164, mask_commitment="1" * 64, self_commitment="2" * 64)
BODIES: list[Body] = [
    SAID,
    SealedShares(place=PLACE, advertised="a" * 64, seed_commitment="b" * 64, shares=(SHARE,)),
    MaskedInput(place=PLACE, weight=3, partners=("coop",), vector=Blob(sha256="d" * 64, size_bytes=8)),
    Confirmation(place=PLACE, survivors=("clinic", "coop")),
    Reveal(place=PLACE, shares=(RevealedShare(owner="coop", of="mask", share="0" * 66),)),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda b: type(b).__name__)
def test_what_is_signed_is_what_is_opened(body: Body) -> None:
    data = sign_message(body, KEY)
    assert open_message(data, type(body), "clinic", public_hex(KEY)) == body
    assert canonical.encode(canonical.parse(data, max_bytes=MAX_MESSAGE_BYTES)) == data


@pytest.mark.parametrize("body", BODIES, ids=lambda b: type(b).__name__)
@pytest.mark.parametrize("kind", [type(b) for b in BODIES], ids=lambda k: k.__name__)
def test_one_kind_is_not_taken_for_another(body: Body, kind: type[Body]) -> None:
    if isinstance(body, kind):
        return
    with pytest.raises(MalformedError, match=f"clinic: wanted a {kind.__name__}, got a {body.kind}"):
        open_message(sign_message(body, KEY), kind, "clinic", public_hex(KEY))


def test_another_key_or_another_name_is_refused() -> None:
    data = sign_message(SAID, KEY)
    with pytest.raises(SignatureError):
        open_message(data, Advertisement, "clinic", public_hex(key_of("coop")))
    with pytest.raises(MalformedError, match="wanted coop's, got clinic's"):
        open_message(data, Advertisement, "coop", public_hex(KEY))


def test_a_change_to_any_field_breaks_the_signature_or_the_form() -> None:
    data = sign_message(SAID, KEY)
    for at in range(len(data)):
        for new in (b"0", b"a", b'"', b""):
            if (other := data[:at] + new + data[at + 1 :]) != data:
                with pytest.raises((SignatureError, MalformedError)):
                    open_message(other, Advertisement, "clinic", public_hex(KEY))


def turned(data: bytes) -> bytes:
    body, signature = data[1:-1].rsplit(b',"signature":', 1)
    return b'{"signature":' + signature + b"," + body + b"}"


OTHER_SPELLINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("white space", lambda d: d.replace(b":", b": ", 1)),
    ("another order", turned),
    ("one more field", lambda d: d.replace(b'{"body"', b'{"a":1,"body"')),
    ("an upper-case key", lambda d: d.replace(b"ab" * 32, b"AB" * 32)),
    ("far too long", lambda d: d + b" " * MAX_MESSAGE_BYTES),
]


@pytest.mark.parametrize(("why", "change"), OTHER_SPELLINGS, ids=[w for w, _ in OTHER_SPELLINGS])
def test_any_other_spelling_is_refused(why: str, change: Callable[[bytes], bytes]) -> None:
    data = sign_message(SAID, KEY)
    assert change(data) != data
    with pytest.raises(MalformedError):
        open_message(change(data), Advertisement, "clinic", public_hex(KEY))


def test_the_shares_of_the_largest_cohort_fit() -> None:
    every = tuple(SHARE.model_copy(update={"holder": f"{i:03d}" + "x" * 60}) for i in range(400))
    body = SealedShares(place=PLACE, advertised="a" * 64, seed_commitment="b" * 64, shares=every)
    assert len(sign_message(body, KEY)) < MAX_MESSAGE_BYTES
