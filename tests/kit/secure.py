"""A masked round played in memory, with members that drop out: what the log would hold, without a log."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.files.delta import GridTensors, read_delta
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_adapters.secure.masked_sum import unmask
from commonweal_adapters.secure.member import Member
from commonweal_protocols.fold.masked_round import Context, Masking
from commonweal_protocols.fold.weights import Voice, weigh
from commonweal_protocols.statements.rounds import Input, Update
from commonweal_protocols.statements.secure_messages import Advertisement, Confirmation, Reveal, SealedShares, StageEnd
from commonweal_protocols.statements.secure_terms import SecureTerms
from tests.kit.federation import TINY, Federation, blob_of

STAGES = ("advertise", "seal", "mask", "confirm", "reveal")
LEAF = "1f" * 32
ELEMENTS = sum(a * b for a, b in tensor_shapes(TINY).values())
Drops = Mapping[str, str]
"""Who drops out, and before which stage."""
Message = Advertisement | SealedShares | Update | Confirmation | Reveal


def names_of(count: int) -> tuple[str, ...]:
    return tuple(f"inst-{i:02d}" for i in range(count))


def delta_of(name: str, size: int = 1 << 23) -> GridTensors:
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]))
    return GridTensors({n: rng.integers(-size, size, s, dtype=np.int32) for n, s in tensor_shapes(TINY).items()})


def weight_of(name: str) -> int:
    return 1 + int(name[-2:]) * 1000


def a_round(count: int = 7, millis: int = 667, neighbours: int = 100, leaf: str = LEAF) -> Masking:
    terms = SecureTerms(neighbours=neighbours, threshold_millis=millis)
    return Masking(Context("c0" * 32, leaf), terms, names_of(count), 8 * ELEMENTS)


@dataclass
class Play:
    """One round, stage by stage. ``tamper`` may change what somebody says before it is said."""

    masking: Masking
    drops: Drops = field(default_factory=dict)
    delta: Callable[[str], GridTensors] = delta_of
    tamper: Callable[[str, str, Message], Message] = lambda stage, name, said: said
    updates: dict[str, Update] = field(default_factory=dict)
    vectors: dict[str, bytes] = field(default_factory=dict)

    @property
    def fewest(self) -> int:
        return self.masking.terms.threshold(len(self.masking.cohort))

    def member(self, name: str, masking: Masking | None = None) -> Member:
        return Member(masking or self.masking, 1, name, hashlib.sha256(name.encode()).digest())

    def alive(self, stage: str) -> list[str]:
        """Whose turn it is: of those who have spoken in all stages before, no matter who has not dropped out."""
        gone = {name for name, at in self.drops.items() if STAGES.index(at) <= STAGES.index(stage)}
        if stage == "reveal":
            return [n for n in self.masking.survivors if n in self.masking.confirmed and n not in gone]
        return [n for n in self.masking.absent(self.updates) if n not in gone]

    def said(self, stage: str, name: str, masking: Masking | None = None) -> Message:
        member = self.member(name, masking)
        match stage:
            case "advertise":
                return member.advertise()
            case "seal":
                return member.seal()
            case "mask":
                return self.update(name, member.mask(self.delta(name), weight_of(name)), masking or self.masking)
            case "confirm":
                return member.confirm()
        return member.reveal()

    def update(self, name: str, vector: bytes, masking: Masking) -> Update:
        blob = blob_of(vector)
        self.vectors[blob.sha256] = vector
        return Update(
            round=1,
            round_leaf=LEAF,
            delta=blob,
            partners=masking.partners(name),
            num_examples=weight_of(name),
            heldout_before_micronats=2,
            heldout_after_micronats=1,
        )

    def hear(self, name: str, said: Message) -> None:
        match said:
            case Advertisement():
                self.masking = self.masking.advertise(name, said)
            case SealedShares():
                self.masking = self.masking.seal(name, said)
            case Update():
                self.masking.check_input(name, said, self.updates)
                self.updates[name] = said
            case Confirmation():
                self.masking = self.masking.confirm(name, said)
            case Reveal():
                self.masking = self.masking.reveal(name, said)

    def end(self, stage: str) -> None:
        if stage in ("advertise", "seal", "mask"):
            speakers = self.masking.speakers(self.updates)
            self.masking = self.masking.end_stage(self.masking.stage, speakers, self.updates, self.fewest)

    def step(self, stage: str) -> None:
        for name in self.alive(stage):
            self.hear(name, self.tamper(stage, name, self.said(stage, name)))
        self.end(stage)

    def until(self, stage: str) -> "Play":
        """Everything that comes before a stage."""
        for before in STAGES[: STAGES.index(stage)]:
            self.step(before)
        return self

    def run(self) -> NDArray[np.int64]:
        self.until("reveal").step("reveal")
        return self.sum()

    def inputs(self) -> list[Input]:
        return [
            Input(institution=name, leaf="ab" * 32, delta=self.updates[name].delta, weight=weight_of(name))
            for name in self.masking.survivors
        ]

    def weight(self) -> int:
        return sum(i.weight for i in self.inputs())

    def sum(self) -> NDArray[np.int64]:
        return unmask(self.masking, self.inputs(), self.vectors.__getitem__)


def masked_round(f: Federation) -> None:
    """A whole masked round in a federation's log, up to its release: nobody drops out."""
    f.open_round()
    number = len(f.state.rounds)
    for stage in STAGES:
        for name in f.state.rounds[-1].round.cohort:
            r = f.state.rounds[-1]
            assert r.masking is not None
            member = Member(r.masking, number, name, hashlib.sha256(f"{name} {number}".encode()).digest())
            match stage:
                case "advertise":
                    f.say(name, member.advertise())
                case "seal":
                    f.say(name, member.seal())
                case "mask":
                    update = f.update(name)
                    (weight,) = weigh(r.round.rule.weights, [Voice(update.num_examples, ())])
                    vector = f.keep(member.mask(read_delta(f.blobs[update.delta.sha256], TINY), weight))
                    f.say(name, update.model_copy(update={"delta": vector, "partners": r.masking.partners(name)}))
                case "confirm":
                    f.say(name, member.confirm())
                case "reveal":
                    f.say(name, member.reveal())
        r = f.state.rounds[-1]
        assert r.masking is not None
        if r.masking.stage != "reveal":
            speakers = r.masking.speakers(r.updates)
            f.say("hub", StageEnd(round=number, round_leaf=r.leaf, stage=r.masking.stage, speakers=speakers))
    f.say("hub", f.release())
