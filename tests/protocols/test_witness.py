"""The witness's core: every answer, every race, and nothing released that is not kept."""

import base64
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_protocols.base.errors import ConfigError, MalformedError, StorageError
from commonweal_protocols.tlog.cosignature import CosignerKey, cosign
from commonweal_protocols.tlog.note import make_verifier, open_note, sign_note, split_note
from commonweal_protocols.witness.store import WitnessStore
from commonweal_protocols.witness.witness import (
    MAX_REQUEST_BYTES,
    AddCheckpoint,
    Answer,
    Outcome,
    Witness,
    format_request,
    parse_request,
)
from tests.kit.witnesses import ORIGIN, T0, Clock, TestLog, ed25519, make_witness, open_store

KEY_OF = hashlib.sha256(ORIGIN.encode()).hexdigest()


class Place:
    """One witness of one log, with a store on disk that can be opened again."""

    def __init__(self, home: Path) -> None:
        self.path = home / "cosigned.sqlite"
        self.log = TestLog()
        self.clock = Clock()
        self.start()

    def start(self) -> None:
        self.store = open_store(self.path)
        self.witness = make_witness(self.store, self.log, self.clock)

    def restart(self) -> None:
        self.store.close()
        self.start()

    def ask(self, old_size: int, size: int, log: TestLog | None = None) -> Answer:
        return self.witness.add_checkpoint((log or self.log).request(old_size, size))

    def stands_at(self) -> int | None:
        """What is on disk, read by a connection of its own."""
        with closing(sqlite3.connect(self.path.absolute().as_uri() + "?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT size FROM latest WHERE key = ?", (bytes.fromhex(KEY_OF),)).fetchone()
        return row[0] if row else None


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.close()


# -- requests

GOOD = TestLog().request(3, 7)
HEAD, _, TAIL = GOOD.partition(b"\n\n")
HASH = base64.b64encode(b"h" * 32)


def test_a_request_has_the_form_of_the_specification() -> None:
    log = TestLog()
    hashes = [base64.b64encode(h) for h in log.path(3, 7)]
    assert b"\n".join([b"old 3", *hashes]) == HEAD
    assert parse_request(GOOD) == AddCheckpoint(3, tuple(log.path(3, 7)), log.note(7))
    assert parse_request(b"old 0\n\nrest") == AddCheckpoint(0, (), b"rest")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "nothing"),
        (GOOD.replace(b"old 3", b"old 03"), "a zero in front"),
        (GOOD.replace(b"old 3", b"old +3"), "a sign"),
        (GOOD.replace(b"old 3", b"old  3"), "two spaces"),
        (GOOD.replace(b"old 3", b"old"), "no size"),
        (GOOD.replace(b"old 3", b"Old 3"), "another word"),
        (GOOD.replace(b"old 3", b"old %d" % (1 << 63)), "2^63"),
        (GOOD.replace(b"old 3", "old ３".encode()), "a full-width digit"),
        (GOOD.removeprefix(b"old 3\n"), "no old line"),
        (HEAD + b"\n" + TAIL, "no empty line"),
        (HEAD + b"\nAAAA\n\n" + TAIL, "a hash of 3 bytes"),
        (HEAD + b"\n" + HASH[:-2] + b"h=\n\n" + TAIL, "base64 that is not canonical"),
        (HEAD + b"\n" + HASH + b" \n\n" + TAIL, "a space behind a hash"),
        (HEAD + (b"\n" + HASH) * 64 + b"\n\n" + TAIL, "more than 63 hashes"),
        (GOOD.replace(b"\n\n", b"\r\n\r\n", 1), "DOS line ends"),
        (GOOD + b"x" * MAX_REQUEST_BYTES, "above the bound"),
        (HEAD + b"\n\n", "no checkpoint"),
        (HEAD + b"\n\n" + TAIL.replace(b"\n\n", b"\n", 1), "a checkpoint without an empty line"),
        (HEAD + b"\n\n" + TAIL + b"junk\n", "a signature line that is none"),
        (HEAD + b"\n\n" + sign_note("hello\n", ORIGIN, ed25519("log")), "a note that is no checkpoint"),
        (HEAD + b"\n\n" + TAIL.replace(b"\n7\n", b"\n07\n"), "a size with a zero in front"),
        (HEAD + b"\n\n" + TAIL.replace(b"\n\n", b"\nextension\n\n", 1), "an extension line"),
        (TestLog().request(7, 7).replace(b"old 7", b"old 8"), "an old size above the checkpoint's"),
    ],
)
def test_a_malformed_request_is_answered_400(place: Place, body: bytes, why: str) -> None:
    answer = place.witness.add_checkpoint(body)
    assert (answer.outcome, answer.body) == (Outcome.MALFORMED, "malformed\n")
    assert place.stands_at() is None


@settings(max_examples=60)
@given(
    st.integers(0, (1 << 63) - 1),
    st.lists(st.binary(min_size=32, max_size=32), max_size=63),
    st.binary(max_size=300),
)
def test_every_request_comes_back(old_size: int, path: list[bytes], note: bytes) -> None:
    assert parse_request(format_request(old_size, path, note)) == AddCheckpoint(old_size, tuple(path), note)


# -- what is cosigned


def test_a_log_that_grows_is_cosigned_at_each_size(place: Place) -> None:
    old = 0
    for size in (1, 2, 7, 8, 8, 300):
        place.clock.now += 1
        answer = place.ask(old, size)
        assert answer.outcome is Outcome.COSIGNED
        opened = open_note(place.log.note(size) + answer.body.encode(), [place.log.verifier, *place.witness.verifiers])
        assert opened.signers == (place.log.verifier, *place.witness.verifiers)
        assert opened.lines[1].at == place.clock.now
        assert place.stands_at() == size
        old = size


def test_the_same_size_again_gives_a_fresh_time(place: Place) -> None:
    first = place.ask(0, 5)
    place.clock.now += 60
    again = place.ask(5, 5)
    assert again.outcome is Outcome.COSIGNED
    assert again.body != first.body
    assert again.body == cosign(place.log.checkpoint(5), "w.example/1", ed25519("w.example/1"), at=T0 + 60)


def test_an_empty_log_is_cosigned(place: Place) -> None:
    assert place.ask(0, 0).outcome is Outcome.COSIGNED
    assert place.ask(0, 0).outcome is Outcome.COSIGNED
    assert place.ask(0, 4).outcome is Outcome.COSIGNED
    assert place.stands_at() == 4


def test_a_witness_with_two_keys_sends_a_line_of_each(place: Place) -> None:
    keys: list[CosignerKey] = [ed25519("w"), MLDSA44PrivateKey.from_seed_bytes(b"m" * 32)]
    witness = Witness("w.example/2", keys, [place.log.verifier], place.store, place.clock)
    answer = witness.add_checkpoint(place.log.request(0, 3))
    opened = open_note(place.log.note(3) + answer.body.encode(), witness.verifiers)
    assert opened.signers == witness.verifiers
    assert len(opened.signers) == 2


def test_monitors_get_the_logs_verified_line_and_the_witnesss_and_no_other(place: Place) -> None:
    assert place.witness.latest(KEY_OF) is None
    stranger = sign_note(place.log.checkpoint(6).text(), "stranger.example", ed25519("s")).split(b"\n\n")[1]
    answer = place.witness.add_checkpoint(format_request(0, [], place.log.note(6) + stranger))
    assert place.witness.latest(KEY_OF) == place.log.note(6) + answer.body.encode()
    place.restart()
    assert place.witness.latest(KEY_OF) == place.log.note(6) + answer.body.encode()


def test_both_keys_of_an_origin_are_believed_while_they_change(place: Place) -> None:
    new = TestLog(key=ed25519("new"), tree=place.log.tree)
    place.witness.set_logs([place.log.verifier, new.verifier])
    assert place.ask(0, 3).outcome is Outcome.COSIGNED
    assert place.ask(3, 5, new).outcome is Outcome.COSIGNED
    place.witness.set_logs([new.verifier])
    assert place.ask(5, 6).outcome is Outcome.NOT_SIGNED
    assert place.ask(5, 6, new).outcome is Outcome.COSIGNED


# -- what is refused, each with its own answer


def test_an_unknown_origin_is_answered_404_before_its_signature_is_looked_at(place: Place) -> None:
    other = TestLog(origin="log.example/two")
    answer = place.ask(0, 3, other)
    assert (answer.outcome, answer.body) == (Outcome.UNKNOWN_LOG, "unknown log\n")
    bad = other.request(0, 3).replace(b"\n3\n", b"\n4\n")
    assert place.witness.add_checkpoint(bad).outcome is Outcome.UNKNOWN_LOG


BAD = TestLog(key=ed25519("other"))
THREE, OWN_LINE = TestLog().note(3).split(b"\n\n")
SPOILED = TestLog(label="forked").note(3).split(b"\n\n")[1]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (BAD.request(0, 3), "another key under the log's name"),
        (TestLog().request(0, 3).replace(b"\n3\n", b"\n2\n"), "a size that was not signed"),
        (format_request(0, [], THREE + b"\n\n" + SPOILED), "the log's line of another text"),
        (
            format_request(0, [], THREE + b"\n\n" + SPOILED + OWN_LINE),
            "a bad line of the log's key before its good one",
        ),
        (format_request(0, [], THREE + b"\n\n" + OWN_LINE.replace(b"log.", b"lag.")), "the line under another name"),
        (BAD.request(7, 7).replace(b"old 7", b"old 8"), "and a wrong old size: the signature comes first"),
    ],
)
def test_a_checkpoint_without_the_logs_good_signature_is_answered_403(place: Place, body: bytes, why: str) -> None:
    answer = place.witness.add_checkpoint(body)
    assert (answer.outcome, answer.body) == (Outcome.NOT_SIGNED, "not signed\n")
    assert place.stands_at() is None


@pytest.mark.parametrize("old_size", [0, 3, 6, 8])
def test_a_proof_from_another_size_is_answered_409_and_the_size(place: Place, old_size: int) -> None:
    place.ask(0, 7)
    answer = place.ask(old_size, 9)
    assert (answer.outcome, answer.body) == (Outcome.OTHER_SIZE, "7\n")
    assert place.stands_at() == 7


def test_at_the_first_sight_any_old_size_but_0_is_answered_409_and_0(place: Place) -> None:
    answer = place.ask(3, 7)
    assert (answer.outcome, answer.body) == (Outcome.OTHER_SIZE, "0\n")


def test_the_size_is_looked_at_before_the_proof(place: Place) -> None:
    place.ask(0, 7)
    assert place.witness.add_checkpoint(format_request(3, [], place.log.note(9))).outcome is Outcome.OTHER_SIZE


def test_a_log_that_shrinks_is_never_cosigned(place: Place) -> None:
    place.ask(0, 7)
    assert place.ask(5, 5).body == "7\n"
    assert place.ask(0, 5).body == "7\n"
    assert (
        place.witness.add_checkpoint(place.log.request(5, 5).replace(b"old 5", b"old 7")).outcome is Outcome.MALFORMED
    )


LOG, FORK = TestLog(), TestLog(label="forked")
FOREIGN_EMPTY = sign_note(f"{ORIGIN}\n0\n{base64.b64encode(bytes(32)).decode()}\n", ORIGIN, ed25519("log"))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (format_request(7, LOG.path(7, 9)[:-1], LOG.note(9)), "one hash too few"),
        (format_request(7, [*LOG.path(7, 9), b"h" * 32], LOG.note(9)), "one hash too many"),
        (format_request(7, [b"h" * 32, *LOG.path(7, 9)[1:]], LOG.note(9)), "another hash"),
        (format_request(7, [], LOG.note(9)), "no proof"),
        (format_request(7, LOG.path(6, 9), LOG.note(9)), "a proof from another size"),
        (FORK.request(7, 9), "a fork with an honest proof of its own"),
        (FORK.request(7, 7), "the same size with another root"),
        (format_request(7, [b"h" * 32], LOG.note(7)), "the same size with a proof that should be empty"),
    ],
)
def test_what_is_inconsistent_is_answered_422_and_nothing_is_cosigned(place: Place, body: bytes, why: str) -> None:
    place.ask(0, 7)
    before = place.witness.latest(KEY_OF)
    answer = place.witness.add_checkpoint(body)
    assert (answer.outcome, answer.body) == (Outcome.INCONSISTENT, "inconsistent\n")
    assert place.witness.latest(KEY_OF) == before


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (format_request(0, [b"h" * 32], LOG.note(9)), "a proof from 0 that should be empty"),
        (format_request(0, [], FOREIGN_EMPTY), "size 0 with another root than the empty tree's"),
    ],
)
def test_what_is_inconsistent_at_the_first_sight_is_answered_422(place: Place, body: bytes, why: str) -> None:
    assert place.witness.add_checkpoint(body).outcome is Outcome.INCONSISTENT
    assert place.stands_at() is None


def test_no_answer_to_a_refused_request_quotes_it(place: Place) -> None:
    place.ask(0, 7)
    for body in (b"secret", FORK.request(7, 9), BAD.request(7, 9), TestLog(origin="secret.example").request(0, 1)):
        assert "secret" not in place.witness.add_checkpoint(body).body


# -- races


def test_of_forks_that_race_from_one_size_only_one_is_ever_cosigned(tmp_path: Path) -> None:
    # Each thread has a store of its own on one file, as processes would; each round starts from a barrier.
    place = Place(tmp_path)
    stores = [WitnessStore(place.path) for _ in range(6)]
    barrier = threading.Barrier(len(stores))

    def race(store: WitnessStore, fork: TestLog) -> Answer:
        witness, body = make_witness(store, fork, Clock()), fork.request(0, 5)
        barrier.wait()
        return witness.add_checkpoint(body)

    with ThreadPoolExecutor(len(stores)) as pool:
        for n in range(12):
            forks = [TestLog(origin=f"log.example/{n}", label=f"fork {i}") for i in range(len(stores))]
            answers = list(pool.map(race, stores, forks))
            assert sorted(a.outcome for a in answers) == [200, 409, 409, 409, 409, 409]
            assert {a.body for a in answers if a.outcome is Outcome.OTHER_SIZE} == {"5\n"}
    for store in [*stores, place.store]:
        store.close()


def test_requests_that_race_forwards_never_roll_the_store_back(place: Place) -> None:
    place.ask(0, 4)
    bodies = {size: place.log.request(4, size) for size in range(5, 13)}
    barrier = threading.Barrier(len(bodies))

    def race(size: int) -> tuple[int, Answer]:
        barrier.wait()
        return size, place.witness.add_checkpoint(bodies[size])

    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = dict(pool.map(race, bodies))
    (won,) = (size for size, a in answers.items() if a.outcome is Outcome.COSIGNED)
    assert {a.body for size, a in answers.items() if size != won} == {f"{won}\n"}
    assert place.stands_at() == won


# -- what must be kept before anything is released


class FailingStore(WitnessStore):
    """A store whose commit fails, before or after the file has changed."""

    error: Exception | None = None
    kept = False

    def _commit(self) -> None:
        if self.error is None or self.kept:
            super()._commit()
        if self.error is not None:
            raise self.error


def disk_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize("kept", [False, True], ids=["lost", "kept"])
def test_a_failed_commit_releases_nothing_and_only_a_restart_goes_on(tmp_path: Path, kept: bool) -> None:
    place = Place(tmp_path)
    place.ask(0, 4)
    place.store.close()
    store = FailingStore(place.path)
    witness = make_witness(store, place.log, place.clock)
    store.error, store.kept = disk_error(sqlite3.SQLITE_IOERR_FSYNC), kept
    with pytest.raises(StorageError, match="nothing is cosigned"):
        witness.add_checkpoint(place.log.request(4, 9))
    store.error = None
    # The kernel may call the next sync a success though the bytes are gone.
    for action in (lambda: witness.add_checkpoint(place.log.request(4, 9)), lambda: witness.latest(KEY_OF)):
        with pytest.raises(StorageError, match="fix the disk and start again"):
            action()
    store.close()
    place.start()
    assert place.stands_at() == (9 if kept else 4)
    assert place.ask(4, 9).outcome is (Outcome.OTHER_SIZE if kept else Outcome.COSIGNED)
    assert place.ask(9, 9).outcome is Outcome.COSIGNED
    place.store.close()


def test_a_full_disk_is_an_error_once_and_not_for_ever(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.store.close()
    store = FailingStore(place.path)
    witness = make_witness(store, place.log, place.clock)
    store.error = disk_error(sqlite3.SQLITE_FULL)
    with pytest.raises(StorageError):
        witness.add_checkpoint(place.log.request(0, 4))
    assert place.stands_at() is None
    store.error = None
    assert witness.add_checkpoint(place.log.request(0, 4)).outcome is Outcome.COSIGNED
    store.close()


def test_when_the_answer_is_there_the_disk_has_it_already(tmp_path: Path) -> None:
    order: list[object] = []
    place = Place(tmp_path)
    place.store.close()

    class Watched(WitnessStore):
        def _commit(self) -> None:
            order.append(("before", place.stands_at()))
            super()._commit()
            order.append(("after", place.stands_at()))

    store = Watched(place.path)
    answer = make_witness(store, place.log, place.clock).add_checkpoint(place.log.request(0, 4))
    order.append(answer.outcome)
    assert order == [("before", None), ("after", 4), Outcome.COSIGNED]
    store.close()


_KILLED = """
import os, signal, sys
from pathlib import Path
from commonweal_protocols.witness.store import WitnessStore
from tests.kit.witnesses import Clock, TestLog, make_witness

class Killed(WitnessStore):
    def _commit(self):
        if sys.argv[2] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super()._commit()
        os.kill(os.getpid(), signal.SIGKILL)

log = TestLog()
witness = make_witness(Killed(Path(sys.argv[1])), log, Clock())
print(witness.add_checkpoint(log.request(4, 9)))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_witness_killed_around_its_commit_still_refuses_a_fork(tmp_path: Path, when: str) -> None:
    place = Place(tmp_path)
    place.ask(0, 4)
    place.store.close()
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(place.path), when],
        cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": "."}, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b""), done.stderr
    place.start()
    stands = 9 if when == "after" else 4
    assert place.stands_at() == stands
    fork = TestLog(label="forked")
    assert place.ask(stands, 11, fork).outcome is Outcome.INCONSISTENT
    assert place.ask(stands, stands, fork).outcome is Outcome.INCONSISTENT
    assert place.ask(0, 11, fork).body == f"{stands}\n"
    assert place.ask(stands, 11).outcome is Outcome.COSIGNED
    place.store.close()


def test_a_clock_that_goes_back_signs_nothing(place: Place) -> None:
    place.ask(0, 4)
    place.clock.now = T0 - 1
    with pytest.raises(StorageError, match=f"clock: wanted at least {T0}, .* got {T0 - 1}"):
        place.ask(4, 5)
    assert place.stands_at() == 4
    place.clock.now = T0
    assert place.ask(4, 5).outcome is Outcome.COSIGNED


def test_a_witness_whose_store_is_rolled_back_cannot_notice(place: Place, tmp_path: Path) -> None:
    # Not a promise but its limit: this is why the store stays out of backups.
    place.ask(0, 4)
    place.store.close()
    shutil.copy(place.path, tmp_path / "backup")
    place.start()
    place.ask(4, 9)
    place.store.close()
    shutil.copy(tmp_path / "backup", place.path)
    place.start()
    fork = TestLog(label="entry", tree=TestLog().tree)
    fork.grow(4)
    fork.label = "forked"
    assert fork.checkpoint(9) != place.log.checkpoint(9)
    assert place.ask(4, 9, fork).outcome is Outcome.COSIGNED


# -- the store and the set-up


def test_a_missing_store_is_never_a_fresh_start(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="a witness that lost it needs a new key and name"):
        WitnessStore(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_made_once(place: Place) -> None:
    place.ask(0, 4)
    with pytest.raises(StorageError, match="is there already"):
        WitnessStore.create(place.path)
    assert place.stands_at() == 4


def test_a_store_is_for_its_owner_alone(place: Place) -> None:
    assert place.path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(StorageError, match="cannot be opened"):
        WitnessStore(tmp_path / "x")


def test_a_closed_store_answers_nothing(place: Place) -> None:
    place.store.close()
    with pytest.raises(StorageError, match="closed"):
        place.ask(0, 1)


def test_a_log_with_the_witnesss_own_key_is_refused(place: Place) -> None:
    own = make_verifier("log.example/own", ed25519("w.example/1").public_key())
    with pytest.raises(ConfigError, match="one key, one role"):
        place.witness.set_logs([own])
    assert place.witness.origins == (ORIGIN,)


def test_a_witness_has_a_key_and_a_name(place: Place) -> None:
    with pytest.raises(ConfigError, match="at least one key"):
        Witness("w.example/1", [], [], place.store, place.clock)
    with pytest.raises(MalformedError):
        Witness("w 1", [ed25519("w")], [], place.store, place.clock)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_no_changed_byte_of_a_request_is_cosigned_as_something_else(
    tmp_path_factory: pytest.TempPathFactory, at: int, change: int
) -> None:
    place = Place(tmp_path_factory.mktemp("w"))
    place.ask(0, 3)
    body = bytearray(GOOD)
    body[at] ^= change
    answer = place.witness.add_checkpoint(bytes(body))
    assert answer.outcome is not Outcome.COSIGNED
    assert place.stands_at() == 3
    place.store.close()


def test_what_is_signed_is_spelled_anew(place: Place) -> None:
    answer = place.ask(0, 6)
    _, (line,) = split_note(place.log.checkpoint(6).text().encode() + b"\n" + answer.body.encode())
    public = ed25519("w.example/1").public_key()
    at = int.from_bytes(line.signature[:8], "big")
    public.verify(line.signature[8:], f"cosignature/v1\ntime {at}\n{place.log.checkpoint(6).text()}".encode())
