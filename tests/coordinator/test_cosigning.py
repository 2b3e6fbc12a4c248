"""The coordinator and its witnesses, real ones over real sockets: a quorum, one that is away, a fork."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from commonweal_coordinator.log.cosigner import Cosigner
from commonweal_coordinator.log.log import Log
from commonweal_coordinator.log.storage import LockDatabase
from commonweal_protocols.base.errors import SignatureError, UnavailableError
from commonweal_protocols.tlog.cosignature import make_cosignature_verifier
from commonweal_protocols.tlog.note import make_verifier, open_note
from commonweal_protocols.tlog.policy import Group, Policy, PolicyLog, PolicyWitness
from commonweal_protocols.tlog.proof import open_cosigned_proof
from commonweal_protocols.witness.server import WitnessServer
from commonweal_protocols.witness.store import WitnessStore
from commonweal_protocols.witness.witness import Witness
from tests.kit.federation import NAMES, ORIGIN, key_of

LOG = make_verifier(ORIGIN, key_of("log").public_key())


@dataclass
class Witnessed:
    """Three witnesses that serve, and the policy that wants two of them."""

    home: Path
    servers: dict[str, WitnessServer]
    policy: Policy

    @contextmanager
    def log(self, name: str = "log") -> Iterator[Log]:
        home = self.home / name
        make = Log.open if (home / "lock.db").exists() else Log.create
        with (
            closing(Cosigner(self.policy)) as cosigner,
            closing(make(home / "public", home / "lock.db", ORIGIN, key_of("log"), cosigner)) as log,
        ):
            yield log


@pytest.fixture
def witnessed(tmp_path: Path) -> Iterator[Witnessed]:
    with ExitStack() as stack:
        servers, witnesses = {}, []
        for name in NAMES:
            WitnessStore.create(tmp_path / f"{name}.sqlite")
            store = WitnessStore(tmp_path / f"{name}.sqlite")
            stack.callback(store.close)
            key = key_of(f"witness {name}")
            core = Witness(name, (key,), (LOG,), store, lambda: 1_800_000_000.0)
            servers[name] = stack.enter_context(WitnessServer(core, "127.0.0.1", 0))
            witnesses.append(PolicyWitness(name, make_cosignature_verifier(name, key.public_key()), servers[name].url))
        policy = Policy((PolicyLog(LOG),), tuple(witnesses), (Group("two", 2, NAMES),), "two")
        yield Witnessed(tmp_path, servers, policy)


def test_a_receipt_carries_the_quorum_and_holds_offline(witnessed: Witnessed) -> None:
    with witnessed.log() as log:
        for batch in ([b"one"], [b"two", b"three"]):
            for data, answer in zip(batch, log.append(batch), strict=True):
                index, cosigned = open_cosigned_proof(answer.proof, data, witnessed.policy)
                assert index == answer.index
                assert len(cosigned.witnesses) >= 2
                assert {w.at for w in cosigned.witnesses} == {1_800_000_000}


def test_a_log_with_a_post_quantum_key_signs_with_both_and_its_witnesses_see_the_first_alone(
    witnessed: Witnessed, tmp_path: Path
) -> None:
    second = MLDSA44PrivateKey.from_seed_bytes(b"s" * 32)
    verifier = make_cosignature_verifier(ORIGIN, second.public_key())
    strict = replace(witnessed.policy, logs=(PolicyLog(LOG, post_quantum=verifier),))
    with (
        closing(Cosigner(witnessed.policy, second, lambda: 1_900_000_000.9)) as cosigner,
        closing(Log.create(tmp_path / "public", tmp_path / "lock.db", ORIGIN, key_of("log"), cosigner)) as log,
    ):
        for data in (b"one", b"two"):
            (answer,) = log.append([data])
            open_cosigned_proof(answer.proof, data, strict)
        (line,) = open_note(log.checkpoint, [verifier]).lines
        assert line.at == 1_900_000_000
    # The store keeps the log's own word in the one form that it compares.
    with closing(LockDatabase(tmp_path / "lock.db")) as lock, pytest.raises(SignatureError):
        open_note(lock.read(), [verifier])


def test_another_policy_holds_from_the_next_checkpoint_on(witnessed: Witnessed, tmp_path: Path) -> None:
    nobody = Policy(witnessed.policy.logs, (), (), "none")
    with (
        closing(Cosigner(nobody)) as cosigner,
        closing(Log.create(tmp_path / "public", tmp_path / "lock.db", ORIGIN, key_of("log"), cosigner)) as log,
    ):
        (answer,) = log.append([b"one"])
        with pytest.raises(SignatureError, match="wanted the quorum two"):
            open_cosigned_proof(answer.proof, b"one", witnessed.policy)
        cosigner.set_policy(witnessed.policy)
        (answer,) = log.append([b"two"])
        open_cosigned_proof(answer.proof, b"two", witnessed.policy)


def test_one_witness_may_be_away_and_is_named_once(witnessed: Witnessed, caplog: pytest.LogCaptureFixture) -> None:
    witnessed.servers["coop"].stop()
    with witnessed.log() as log, caplog.at_level(logging.WARNING):
        for data in (b"one", b"two", b"three"):
            (answer,) = log.append([data])
            open_cosigned_proof(answer.proof, data, witnessed.policy)
    assert [r.getMessage().startswith("witnesses: coop: ") for r in caplog.records if "coop" in r.getMessage()] == [
        True
    ]


def test_without_a_quorum_the_sender_is_told_who_is_missing_and_nothing_is_published(witnessed: Witnessed) -> None:
    with witnessed.log() as log:
        log.append([b"one"])
        for name in ("coop", "school"):
            witnessed.servers[name].stop()
        with pytest.raises(UnavailableError, match=r"wanted a quorum for size 2, got 1 \(coop: .*; school: ") as e:
            log.append([b"two"])
        assert "may be sent again" in str(e.value)
        assert log.size == 1
    with pytest.raises(SignatureError):
        witnessed.policy.open(
            b"\n".join((witnessed.home / "log/public/checkpoint").read_bytes().split(b"\n")[:5]) + b"\n"
        )


def test_a_coordinator_that_starts_a_second_history_gets_no_quorum_for_it(witnessed: Witnessed) -> None:
    with witnessed.log() as log:
        log.append([b"one", b"two"])
    with witnessed.log("another") as log:
        with pytest.raises(UnavailableError, match="wanted a quorum for size 3, got 0"):
            log.append([b"one", b"other", b"three"])
        assert log.size == 0, "readers never see it"


def test_a_restart_goes_on_from_what_the_witnesses_know(witnessed: Witnessed) -> None:
    for i in range(3):
        with witnessed.log() as log:
            (answer,) = log.append([b"entry %d" % i])
            assert open_cosigned_proof(answer.proof, b"entry %d" % i, witnessed.policy)[0] == i
