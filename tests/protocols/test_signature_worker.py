"""The process that checks signatures: bounded frames in, one byte for each claim out, and an end with its parent."""

import io
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweal_protocols.base.errors import MalformedError
from commonweal_protocols.records.signature_worker import (
    MAX_CLAIMS,
    MAX_FRAME_BYTES,
    Claim,
    answer,
    encode_frame,
    read_frame,
)
from tests.kit.federation import key_of

COMMAND = [sys.executable, "-m", "commonweal_protocols.records.signature_worker"]


def claim(message: bytes, *names: str, flip: bool = False) -> Claim:
    keys = [key_of(name) for name in names]
    signed = [k.public_key().public_bytes_raw() + k.sign(message) for k in keys]
    if flip:
        signed[-1] = signed[-1][:-1] + bytes([signed[-1][-1] ^ 1])
    return Claim(message, tuple(signed))


CLAIMS = [claim(b"x", "a"), claim(b"", "a", "b"), claim(b"y" * 70_000, "a", "b", flip=True), claim(b"z", "b")]


SIGNED = st.lists(st.binary(min_size=96, max_size=96), min_size=1, max_size=3).map(tuple)


@given(st.lists(st.builds(Claim, st.binary(max_size=50), SIGNED), min_size=1, max_size=6))
def test_a_frame_gives_its_claims_back_and_nothing_of_the_next(claims: list[Claim]) -> None:
    stream = io.BytesIO(encode_frame(claims) * 2)
    assert read_frame(stream) == read_frame(stream) == claims
    assert read_frame(stream) is None


@given(st.binary(max_size=300), st.integers(0, 2))
def test_whatever_is_read_is_a_frame_in_its_one_encoding_or_refused(data: bytes, claims: int) -> None:
    body = data + encode_frame(CLAIMS[:claims])[4:] if claims else data
    frame = len(body).to_bytes(4, "big") + body
    try:
        read = read_frame(io.BytesIO(frame))
    except MalformedError:
        return
    assert read is not None
    assert encode_frame(read) == frame


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\0\0\0", "half a length"),
        ((MAX_FRAME_BYTES + 1).to_bytes(4, "big"), "longer than a frame may be, and nothing of it is read"),
        (encode_frame(CLAIMS)[:-1], "cut off"),
        (bytes(4), "no claim"),
        (b"\0\0\0\5\0\1\0\0\0", "cut off in a claim's head"),
        (b"\0\0\0\6\0\0\0\0\0\0", "a claim without a signature"),
        (b"\0\0\0\6\0\1\0\0\0\0", "a claim without its signature"),
        (b"\0\0\0\6\xff\xff\xff\xff\xff\xff", "a claim that is larger than its frame"),
        ((103 * 257).to_bytes(4, "big") + encode_frame([Claim(b"x", (bytes(96),))])[4:] * 257, "a claim too many"),
    ],
)
def test_a_frame_of_another_form_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(MalformedError, match="frame: "):
        read_frame(io.BytesIO(data))


@pytest.mark.parametrize("count", [0, MAX_CLAIMS + 1])
def test_no_such_frame_is_written(count: int) -> None:
    with pytest.raises(ValueError, match="wanted 1 to 256 claims"):
        encode_frame([Claim(b"x", (bytes(96),))] * count)


def test_one_signature_that_does_not_hold_spoils_its_claim_and_no_other() -> None:
    assert answer(CLAIMS) == b"\1\1\0\1"


def test_the_process_answers_each_frame_and_ends_with_its_input_but_not_with_ctrl_c() -> None:
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for claims in (CLAIMS, CLAIMS[:1], CLAIMS[2:] * 100):
            process.stdin.write(encode_frame(claims))
            process.stdin.flush()
            assert process.stdout.read(len(claims)) == answer(claims)
            process.send_signal(signal.SIGINT)
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(30) == 0


def test_the_process_says_what_it_could_not_read_and_ends() -> None:
    done = subprocess.run(COMMAND, input=encode_frame(CLAIMS) + b"GET ", capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, b"\1\1\0\1")
    assert done.stderr.startswith(b"signature worker: frame: wanted a length of at most")


def test_the_process_ends_in_silence_once_nobody_reads_its_answers() -> None:
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(encode_frame(CLAIMS))
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0
