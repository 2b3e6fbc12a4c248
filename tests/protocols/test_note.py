"""Signed notes: the specification's vector, and every rule broken once."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_protocols.base.errors import MalformedError, SignatureError
from commonweal_protocols.tlog.note import Verifier, format_vkey, make_verifier, open_note, parse_vkey, sign_note

# C2SP signed-note, section "Example".
SPEC_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = (
    "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYN"
    "ZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()

ALICE = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
BOB = Ed25519PrivateKey.from_private_bytes(b"b" * 32)
A = make_verifier("alice.example", ALICE.public_key())
B = make_verifier("bob.example", BOB.public_key())
NOTE = sign_note("hello\n", "alice.example", ALICE)
LINE = NOTE.split(b"\n\n")[1]
BOB_LINE = sign_note("hello\n", "bob.example", BOB).split(b"\n\n")[1]
BAD_LINE = sign_note("other\n", "alice.example", ALICE).split(b"\n\n")[1]


def test_the_note_of_the_specification_opens() -> None:
    verifier = parse_vkey(SPEC_VKEY)
    opened = open_note(SPEC_NOTE, [verifier])
    assert opened.text == "This is an example message.\n"
    assert opened.signers == (verifier,)
    assert verifier.key_id.hex() == "530d903a"


def test_a_vkey_is_written_as_it_was_read() -> None:
    verifier = parse_vkey(SPEC_VKEY)
    assert format_vkey(verifier.name, verifier.public_key.public_bytes_raw()) == SPEC_VKEY


KEY64 = SPEC_VKEY.rsplit("+", 1)[1]


@pytest.mark.parametrize(
    ("vkey", "why"),
    [
        (f"example.com/foo+530d903b+{KEY64}", "the stated ID is not the key's"),
        (f"example.com/foo+530D903A+{KEY64}", "upper-case hex is another encoding"),
        (f"example.com/fooo+530d903a+{KEY64}", "the ID binds the name"),
        (f"example.com/foo+{KEY64}", "no ID"),
        (f"+530d903a+{KEY64}", "no name"),
        (f"exam ple.com+530d903a+{KEY64}", "a space in the name"),
        (SPEC_VKEY + "\n", "a newline behind"),
        (SPEC_VKEY[:-1] + "l", "not canonical base64 of the same bytes"),
        ("example.com/foo+530d903a+" + base64.b64encode(b"\x04" + b"k" * 32).decode(), "a cosigner's key type"),
        ("example.com/foo+530d903a+" + base64.b64encode(b"\x01" + b"k" * 31).decode(), "31 bytes"),
        ("example.com/foo+530d903a+", "no key"),
    ],
)
def test_any_other_encoding_of_a_vkey_is_refused(vkey: str, why: str) -> None:
    with pytest.raises(MalformedError):
        parse_vkey(vkey)


def test_signers_are_those_known_in_the_order_of_their_lines() -> None:
    assert open_note(NOTE + BOB_LINE, [B, A]).signers == (A, B)
    assert open_note(NOTE + BOB_LINE, [B]).signers == (B,)


def test_a_second_line_of_one_key_is_ignored_even_if_bad() -> None:
    assert open_note(NOTE + LINE + BAD_LINE, [A]).signers == (A,)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"hello\n\n" + BAD_LINE, "a known key's signature is of another text"),
        (b"hello\n\n" + BOB_LINE + BAD_LINE, "one bad line of a known key spoils a good one of another"),
        (b"hellO\n\n" + LINE, "one letter of the text differs"),
        (b"hello\n\n" + LINE.replace(b"alice", b"alicE"), "only an unknown name has signed"),
        (sign_note("hello\n", "alice.example", BOB), "the known name under another key"),
        (b"x\n\n" + NOTE, "the last empty line divides: the text is longer than what was signed"),
    ],
)
def test_what_is_not_signed_by_a_known_key_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(SignatureError):
        open_note(data, [A, B])


def test_a_line_of_an_unknown_key_is_ignored_though_its_signature_is_garbage() -> None:
    unknown = "— nobody.example ".encode() + base64.b64encode(b"\0\1\2\3" + b"x") + b"\n"
    other_type = "— alice.example ".encode() + base64.b64encode(b"\0\1\2\3" + b"x" * 72) + b"\n"
    assert open_note(NOTE + unknown + other_type, [A]).signers == (A,)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "nothing"),
        (b"hello\n", "no signature block"),
        (b"hello\n\n", "an empty signature block"),
        (NOTE[:-1], "no newline at the end"),
        (NOTE + b"junk\n", "a line that is no signature"),
        (NOTE + b"\n", "an empty line behind"),
        (NOTE.replace(b"\xe2\x80\x94", b"-"), "a hyphen for the em dash"),
        (NOTE.replace(b"example ", b"example  "), "two spaces"),
        (NOTE.replace(b"\n\n", b"\r\n\n"), "a carriage return in the text"),
        (NOTE.replace(b"alice", b"ali\xc2\xa0ce"), "a no-break space in a name"),
        (NOTE.replace(b"alice", b"ali+ce"), "a plus in a name"),
        (NOTE.replace(b"hello", b"hell\xff"), "not UTF-8"),
        (NOTE.replace(b"hello", b"hel\tlo"), "a tab in the text"),
        (NOTE[:-2] + b"\n", "base64 cut short"),
        (NOTE + "— x AAAAAA==\n".encode(), "a key ID and no signature"),
        (NOTE + "— x AAAAAAB=\n".encode(), "base64 that is not canonical"),
        (b"hello\n\n" + LINE * 101, "101 signatures"),
        (b"x" * 1_000_000 + NOTE, "over the size bound"),
    ],
)
def test_malformed_notes_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(MalformedError):
        open_note(data, [A])


def test_a_hundred_signatures_are_read() -> None:
    assert open_note(b"hello\n\n" + LINE * 100, [A]).signers == (A,)


def test_two_keys_that_cannot_be_told_apart_are_refused() -> None:
    twin = Verifier(A.name, A.key_id, BOB.public_key())
    with pytest.raises(SignatureError, match=r"two keys of alice\.example"):
        open_note(NOTE, [A, twin])


@pytest.mark.parametrize("text", ["", "hello", "a\tb\n", "a\0\n", "\ud800\n"])
def test_text_that_cannot_stand_in_a_note_is_not_signed(text: str) -> None:
    with pytest.raises(MalformedError):
        sign_note(text, "alice.example", ALICE)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u2028b", "a\nb", "a\x01b", "\ud800"])
def test_a_bad_key_name_is_refused_everywhere(name: str) -> None:
    with pytest.raises(MalformedError):
        sign_note("hello\n", name, ALICE)
    with pytest.raises(MalformedError):
        format_vkey(name, b"k" * 32)


@settings(max_examples=60)
@given(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]) | st.just("\n")))
def test_every_text_comes_back_as_it_was_signed(text: str) -> None:
    opened = open_note(sign_note(text + "\n", "alice.example", ALICE), [A])
    assert opened.text == text + "\n"


@settings(max_examples=120)
@given(st.integers(0, len(NOTE) - 1), st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(at: int, change: int) -> None:
    data = bytearray(NOTE)
    data[at] ^= change
    with pytest.raises((MalformedError, SignatureError)):
        open_note(bytes(data), [A])
