"""A whole federation in memory: real keys, real statements, real merges, no daemons.

Tests edit one thing, re-sign what an attacker could re-sign, publish the records into a folder, and audit that folder.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from commonweal_adapters.files.delta import GridTensors, read_adapter, write_delta
from commonweal_adapters.recompute import merge_release, recompute_start
from commonweal_coordinator.log.log import Log
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.keys import public_hex, write_private
from commonweal_protocols.fold.rounds import release_inputs
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.statements.adoption import Adoption, ForeignAdoption, HeldoutLoss
from commonweal_protocols.statements.compact import (
    AdapterSpec,
    BaseModelRef,
    Compact,
    Coordinator,
    LoraModule,
    Member,
    Quorum,
    Recipe,
    Witness,
)
from commonweal_protocols.statements.data_manifest import DataManifest, Left, ReasonCount, StageRecord, Taken
from commonweal_protocols.statements.envelope import Signature, format_envelope, sign
from commonweal_protocols.statements.members import Identity, Rotation
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.rounds import ForeignRelease, Ratification, Release, Round, Update
from commonweal_protocols.statements.rules import AnyRule, FactorMean
from commonweal_protocols.statements.statement import Header, Statement
from commonweal_protocols.statements.values import Blob, Seen
from commonweal_protocols.tlog.cosignature import cosign, make_cosignature_verifier
from commonweal_protocols.tlog.merkle import Tree, leaf_hash
from commonweal_protocols.tlog.note import format_vkey, sign_note
from commonweal_protocols.tlog.proof import format_proof
from tests.kit.author import Author

NAMES = ("clinic", "school", "coop")
ORIGIN = "log.test/three"

TINY = AdapterSpec(
    rank=2,
    alpha=4,
    prefix="base_model.model.model.layers",
    layers=2,
    modules=(
        LoraModule(name="self_attn.q_proj", in_features=6, out_features=4),
        LoraModule(name="mlp.up_proj", in_features=4, out_features=5),
    ),
    grid_bits=20,
    seed=7,
)


def key_of(name: str) -> Ed25519PrivateKey:
    """A key that is the same in every run, so that a failing test can be run again."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"key of {name}".encode()).digest())


def save_key(path: Path, key: Ed25519PrivateKey) -> None:
    """A key file with this very key."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(path, pem)


def blob_of(data: bytes) -> Blob:
    return Blob(sha256=digest_of(data), size_bytes=len(data))


def changed(compact: Compact, terms: dict[str, object]) -> Compact:
    """A compact with other terms, checked as one that was read."""
    return Compact.model_validate_json(json.dumps({**compact.model_dump(mode="json"), **terms}))


def data_manifest(institution: str, train_rows: int = 8) -> DataManifest:
    """What an institution might state of its rows; the digests are made up."""
    return DataManifest(
        institution=institution,
        charter_version=1,
        charter="c" * 64,
        key="e" * 64,
        taken=Taken(sources=1, conversations=12, texts=0, preferences=0, rows="1" * 64),
        stages=(
            StageRecord(
                stage="language",
                parameters={"languages": ("as", "en"), "min_confidence_millis": 300, "keep_undetermined": True},
                by="",
                rows_in=12,
                rows_out=train_rows + 2,
                reasons=(ReasonCount(reason="language und", rows=1), ReasonCount(reason="language xx", rows=1)),
                rows="2" * 64,
            ),
        ),
        left=Left(
            train_rows=train_rows, heldout_rows=2, train_groups=3, heldout_groups=1, conversations=train_rows + 2,
            texts=0, preferences=0, synthetic=0, characters=900, rows="3" * 64,
        ),
    )  # fmt: skip


@dataclass
class Federation:
    """Institutions (three, if not told otherwise) and a coordinator; every statement goes through the real replica."""

    entries: list[bytes] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    replica: Replica = field(default_factory=Replica)
    quorum: Quorum = field(default_factory=lambda: Quorum(updates=2, ratifications=2, amendments=2))
    rule: AnyRule = field(default_factory=lambda: FactorMean(weights="equal"))
    witnesses: int = 0
    """How many there are; all but one are the quorum."""
    names: tuple[str, ...] = NAMES
    """The founders."""
    origin: str = ORIGIN
    terms: dict[str, object] = field(default_factory=dict)
    """What else the founding compact says."""
    realm: str = ""
    """Begins the names of its keys: in another consortium, nobody has a key of this one."""

    def __post_init__(self) -> None:
        self.log_key = key_of(f"{self.realm}log")
        self.coordinator = key_of(f"{self.realm}coordinator")
        self.keys = {name: key_of(f"{self.realm}{name}") for name in self.names}
        start = recompute_start(TINY)
        self.keep(start)
        self.compact = Compact(
            consortium="three",
            version=1,
            base=BaseModelRef(reference="path:/models/tiny", sha256="ab" * 32),
            adapter=TINY,
            recipe=Recipe(steps=10, batch_size=4, learning_rate_micros=1000, max_tokens=64),
            rule=self.rule,
            quorum=self.quorum.model_copy(update={"witnesses": max(0, self.witnesses - 1)}),
            members=tuple(Member(institution=n, key=public_hex(self.keys[n])) for n in sorted(self.names)),
            coordinator=Coordinator(
                name="hub",
                key=public_hex(self.coordinator),
                log=format_vkey(self.origin, self.log_key.public_key().public_bytes_raw()),
            ),
            witnesses=tuple(
                Witness(
                    name=f"w{i}",
                    vkey=make_cosignature_verifier(f"w{i}", key_of(f"w{i}").public_key()).vkey,
                    url=f"http://127.0.0.1:{i + 1}",
                )
                for i in range(self.witnesses)
            ),
            start=blob_of(start),
            round_deadline_seconds=600,
            max_update_bytes=1 << 20,
        )
        self.compact = changed(self.compact, self.terms)
        self.add(self.founding())

    @property
    def state(self) -> State:
        return self.replica.state

    def keep(self, data: bytes) -> Blob:
        blob = blob_of(data)
        self.blobs[blob.sha256] = data
        return blob

    def founding(self, signers: tuple[str, ...] = ()) -> bytes:
        payload = Statement(None, self.compact).payload()
        signatures: list[Signature] = [sign(payload, self.keys[n]) for n in signers or self.names]
        return format_envelope(payload, signatures)

    def add(self, data: bytes) -> bytes:
        self.replica.add(data)
        self.entries.append(data)
        return data

    def key(self, who: str) -> Ed25519PrivateKey:
        return self.coordinator if who == "hub" else self.keys[who]

    def signed(self, who: str, predicate: Predicate) -> bytes:
        """What ``who`` would send next."""
        chain = self.state.chain(public_hex(self.key(who)))
        cp = self.replica.checkpoint()
        return Author(self.key(who), self.state.consortium).sign(
            predicate,
            seq=chain.seq + 1,
            prev=chain.leaf or None,
            seen=(Seen(origin=cp.origin, size=cp.size, root=cp.root.hex()),),
        )

    def say(self, who: str, predicate: Predicate) -> bytes:
        return self.add(self.signed(who, predicate))

    def receipt(self, entry: bytes) -> bytes:
        """The tlog-proof that the coordinator would answer with, under the newest checkpoint."""
        tree = Tree()
        for data in self.entries:
            tree.append(leaf_hash(data))
        note = self.note()
        index = self.entries.index(entry)
        return format_proof(index, tree.inclusion_path(index, tree.size), note)

    def note(self) -> bytes:
        """The newest checkpoint, as the log signs it."""
        return sign_note(self.replica.checkpoint().text(), self.replica.log.name, self.log_key)

    def cosigned(self, at: int) -> str:
        """The newest checkpoint, as all witnesses have cosigned it at this time."""
        checkpoint = self.replica.checkpoint()
        witnesses = self.state.compact.witnesses
        return self.note().decode() + "".join(cosign(checkpoint, w.name, key_of(w.name), at=at) for w in witnesses)

    # -- who decides, and under which keys

    def amended(self, **changes: object) -> Compact:
        """The next version of the compact in force, with these changes."""
        after: dict[str, object] = {
            "version": self.state.compact.version + 1,
            "previous": self.state.compact_sha256,
            "revocations": [],
            "succeeds": None,
        }
        return changed(self.state.compact, {**after, **changes})

    def members(self, **keys: str | None) -> list[dict[str, object]]:
        """The members in force, with other keys (by the name that ``key_of`` knows), or without those that are None."""
        members = {m.institution: m.key for m in self.state.compact.members}
        members |= {name: public_hex(key_of(key)) if key else "" for name, key in keys.items()}
        return [{"institution": name, "key": key} for name, key in sorted(members.items()) if key]

    def amendment(self, compact: Compact, *signers: str) -> bytes:
        """A compact, signed with the keys that ``key_of`` knows by these names."""
        payload = Statement(None, compact).payload()
        return format_envelope(payload, [sign(payload, key_of(s)) for s in signers])

    def rotation(self, who: str, key: str, *signers: str) -> bytes:
        """``who``'s rotation to another key, signed with the present and the new one, or with these."""
        chain = self.state.chain(public_hex(self.key(who)))
        header = Header(consortium=self.state.consortium, seq=chain.seq + 1, prev=chain.leaf or None, seen=())
        payload = Statement(header, Rotation(name=who, key=public_hex(key_of(key)), reason="routine")).payload()
        keys = [key_of(s) for s in signers] or [self.key(who), key_of(key)]
        return format_envelope(payload, [sign(payload, k) for k in keys])

    def rotate(self, who: str, key: str) -> None:
        """``who`` continues under another key."""
        self.add(self.rotation(who, key))
        if who == "hub":
            self.coordinator = key_of(key)
        else:
            self.keys[who] = key_of(key)

    # -- a round, step by step

    def announce(self) -> None:
        for name in self.names:
            self.say(name, Identity(institution=name, transport_key="A" * 44))

    def next_round(self) -> Round:
        return Round(
            round=len(self.state.rounds) + 1,
            start=self.state.next_start(),
            recipe=self.state.compact.recipe,
            rule=self.state.compact.rule,
            cohort=tuple(sorted(m.institution for m in self.state.compact.members)),
            deadline_seconds=600,
        )

    def open_round(self) -> None:
        self.say("hub", self.next_round())

    def delta(self, name: str) -> bytes:
        """A made-up contribution: small integers that depend on the institution and the round."""
        seed = int.from_bytes(hashlib.sha256(f"{name} {len(self.state.rounds)}".encode()).digest()[:4])
        rng = np.random.default_rng(seed)
        start = read_adapter(self.blobs[self.state.next_start().sha256], TINY)
        values = {k: rng.integers(-5000, 5000, v.shape, dtype=np.int32) for k, v in start.items()}
        return write_delta(GridTensors(values), TINY)

    def update(self, name: str, delta: bytes | None = None) -> Update:
        r = self.state.rounds[-1]
        return Update(
            round=r.round.round,
            round_leaf=r.leaf,
            delta=self.keep(self.delta(name) if delta is None else delta),
            num_examples=10 + len(name),
            heldout_before_micronats=3_000_000,
            heldout_after_micronats=2_000_000,
        )

    def release(self) -> Release:
        r = self.state.rounds[-1]
        inputs = release_inputs(self.state, r)
        made = merge_release(
            TINY, r.round.start, r.round.rule, inputs, r.state_before, self.blobs.__getitem__, r.masking
        )
        return Release(
            round=r.round.round,
            start=r.round.start,
            rule=r.round.rule,
            inputs=inputs,
            state_before=r.state_before,
            adapter=self.keep(made.adapter),
            state_after=tuple(map(self.keep, made.state)),
            figures=made.figures,
        )

    def ratification(self) -> Ratification:
        r = self.state.rounds[-1]
        assert r.release is not None
        return Ratification(
            round=r.round.round, release_leaf=r.release.leaf, adapter_sha256=r.release.release.adapter.sha256
        )

    def foreign_adoption(self, release: ForeignRelease) -> ForeignAdoption:
        loss = HeldoutLoss(base_micronats=4, local_micronats=3, shared_micronats=2, blend_micronats=1)
        return ForeignAdoption(
            release=release, decision="blend", shared_millis=500, own_millis=500, heldout=loss, reason="it helps us"
        )

    def adoption(self) -> Adoption:
        r = self.state.rounds[-1]
        assert r.release is not None
        loss = HeldoutLoss(base_micronats=4, local_micronats=3, shared_micronats=2, blend_micronats=1)
        return Adoption(
            round=r.round.round,
            release_leaf=r.release.leaf,
            decision="blend",
            shared_millis=500,
            own_millis=500,
            heldout=loss,
            reason="better on our rows",
        )

    def run_round(self) -> None:
        """A whole round: all contribute, ratify and adopt."""
        self.open_round()
        cohort = [name for name in self.keys if name in self.state.rounds[-1].round.cohort]
        for name in cohort:
            self.say(name, self.update(name))
        self.say("hub", self.release())
        for name in cohort:
            self.say(name, self.ratification())
        for name in cohort:
            self.say(name, self.adoption())

    # -- the public records

    def publish(self, directory: Path, entries: list[bytes] | None = None) -> Path:
        """Write the records as the coordinator would, or as one would who holds its log key and other entries."""
        public = directory / "public"
        public.mkdir(parents=True)
        log = Log.create(public, directory / "lock.db", self.replica.log.name, self.log_key)
        log.append(self.entries if entries is None else entries)
        log.close()
        store = BlobStore(public)
        for data in self.blobs.values():
            store.put_bytes(data)
        return public


def two_rounds() -> Federation:
    """A federation with two finished rounds: 3 + 2 · 11 + 1 entries."""
    f = Federation()
    f.announce()
    f.run_round()
    f.run_round()
    return f
