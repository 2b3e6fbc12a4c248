"""Between a log's commit and its publishing stand the witnesses: what they see, and what happens while they are off."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from commonweal_coordinator.log.log import Log
from commonweal_protocols.base.errors import UnavailableError
from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint
from commonweal_protocols.tlog.merkle import leaf_hash, verify_consistency
from commonweal_protocols.tlog.note import make_verifier
from commonweal_protocols.tlog.proof import open_proof, parse_proof
from tests.kit.federation import ORIGIN, key_of

KEY = key_of("log")
VERIFIER = make_verifier(ORIGIN, KEY.public_key())
LINE = "— witness.example AAAAAAAA\n".encode()


@dataclass
class Witnesses:
    """Stands for a quorum: checks that each checkpoint extends the last, adds a line, and can be away."""

    last: Checkpoint | None = None
    away: bool = False
    asked: list[int] = field(default_factory=list)

    def __call__(self, checkpoint: Checkpoint, note: bytes, path_from: Callable[[int], list[bytes]]) -> bytes:
        self.asked.append(checkpoint.size)
        if self.away:
            raise UnavailableError("witnesses: wanted 2, got 0")
        assert open_checkpoint(note, VERIFIER) == checkpoint, "what is cosigned is signed by the log"
        if self.last is not None:
            path = path_from(self.last.size)
            verify_consistency(self.last.size, self.last.root, checkpoint.size, checkpoint.root, path)
        self.last = checkpoint
        return note + LINE


def place(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "public", tmp_path / "lock.db"


def published(tmp_path: Path) -> Checkpoint:
    return open_checkpoint((tmp_path / "public/checkpoint").read_bytes(), VERIFIER)


def test_every_answer_and_the_public_checkpoint_carry_the_cosignatures(tmp_path: Path) -> None:
    witnesses = Witnesses()
    with closing(Log.create(*place(tmp_path), ORIGIN, KEY, witnesses)) as log:
        for batch in ([b"a"], [b"b", b"c"], [bytes([i]) * 2 for i in range(255)]):
            for data, answer in zip(batch, log.append(batch), strict=True):
                open_proof(answer.proof, data, VERIFIER)
                assert parse_proof(answer.proof).checkpoint_note.endswith(LINE)
            assert (tmp_path / "public/checkpoint").read_bytes() == log.checkpoint
            assert log.checkpoint.endswith(LINE)
    assert witnesses.asked == [1, 3, 258]
    with closing(Log.open(*place(tmp_path), ORIGIN, KEY, witnesses)) as log:
        assert log.checkpoint.endswith(LINE), "a restart keeps the cosignatures that are there"
    assert witnesses.asked == [1, 3, 258]


def test_without_witnesses_nothing_is_published_and_nothing_is_built_on_it(tmp_path: Path) -> None:
    witnesses = Witnesses()
    with closing(Log.create(*place(tmp_path), ORIGIN, KEY, witnesses)) as log:
        log.append([b"a"])
        witnesses.away = True
        with pytest.raises(UnavailableError, match="wanted 2"):
            log.append([b"b"])
        assert (bool(log.held([leaf_hash(b"b")])), log.find(b"b"), log.size, published(tmp_path).size) == (
            True,
            None,
            1,
            1,
        )
        with pytest.raises(UnavailableError, match="wanted 2"):
            log.append([b"c"])
        assert not bool(log.held([leaf_hash(b"c")])), "it is not sequenced on top of what no witness has seen"
        assert log.find(b"a") is not None, "what is published can still be proved"
        witnesses.away = False
        (answer,) = log.append([b"b"])
        assert answer.index == 1, "the same entry again keeps the place that it had"
        assert published(tmp_path).size == 2
        assert [a.index for a in log.append([b"c", b"b"])] == [2, 1]


@pytest.mark.parametrize("away", [True, False])
def test_a_restart_in_between_loses_nothing_and_asks_again(tmp_path: Path, away: bool) -> None:
    witnesses = Witnesses()
    with closing(Log.create(*place(tmp_path), ORIGIN, KEY, witnesses)) as log:
        log.append([b"a"])
        witnesses.away = True
        with pytest.raises(UnavailableError):
            log.append([bytes([i]) * 2 for i in range(255)])
    witnesses.away = away
    with closing(Log.open(*place(tmp_path), ORIGIN, KEY, witnesses)) as log:
        assert bool(log.held([leaf_hash(b"\7\7")]))
        assert published(tmp_path).size == log.size == (1 if away else 256)
        witnesses.away = False
        (answer,) = log.append([b"\7\7"])
        assert answer.index == 8
        assert published(tmp_path).size == 256
        open_proof(answer.proof, b"\7\7", VERIFIER)
    assert not list((tmp_path / "public/staging").iterdir())


def test_a_witness_that_saw_it_before_the_crash_may_sign_it_again(tmp_path: Path) -> None:
    witnesses = Witnesses()

    def crash(checkpoint: Checkpoint, note: bytes, path_from: Callable[[int], list[bytes]]) -> bytes:
        witnesses(checkpoint, note, path_from)
        raise UnavailableError("the answer is lost")

    with closing(Log.create(*place(tmp_path), ORIGIN, KEY, crash)) as log, pytest.raises(UnavailableError):
        log.append([b"a"])
    with closing(Log.open(*place(tmp_path), ORIGIN, KEY, witnesses)) as log:
        assert log.size == 1
    assert witnesses.asked == [1, 1]
