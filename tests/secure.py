"""A masked round played in memory, with members that drop out and messages that are tampered with on the way."""

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from commonweal_adapters.delta import GridTensors
from commonweal_adapters.lora_file import tensor_shapes
from commonweal_adapters.secure_masks import Context
from commonweal_adapters.secure_member import Member
from commonweal_adapters.secure_round import SecureRound
from commonweal_adapters.secure_sum import SecureSum, Transcript, unmask
from commonweal_protocols.keys import public_hex
from commonweal_protocols.secure_messages import M, open_message, sign_message
from commonweal_protocols.secure_terms import SecureTerms
from tests.federation import TINY, key_of

STAGES = ("advertise", "share", "mask", "confirm", "reveal")
ELEMENTS = sum(a * b for a, b in tensor_shapes(TINY).values())
Drops = Mapping[str, str]
"""Who drops out, and before which stage."""


def names_of(count: int) -> tuple[str, ...]:
    return tuple(f"inst-{i:02d}" for i in range(count))


def delta_of(name: str, size: int = 1 << 23) -> GridTensors:
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]))
    return GridTensors({n: rng.integers(-size, size, s, dtype=np.int32) for n, s in tensor_shapes(TINY).items()})


def weight_of(name: str) -> int:
    return 1 + int(name[-2:]) * 1000


def a_round(count: int = 7, millis: int = 667, neighbours: int = 400, leaf: str = "1f" * 32) -> SecureRound:
    return SecureRound(
        context=Context("c0" * 32, leaf),
        members={name: public_hex(key_of(name)) for name in names_of(count)},
        terms=SecureTerms(neighbours=neighbours, threshold_millis=millis),
        elements=ELEMENTS,
    )


@dataclass
class Play:
    """One round, stage by stage. ``tamper`` may change what a stage's messages are on their way to everybody."""

    round: SecureRound
    drops: Drops = field(default_factory=dict)
    delta: Callable[[str], GridTensors] = delta_of
    tamper: Callable[[str, dict[str, bytes]], dict[str, bytes]] = lambda stage, messages: messages
    messages: dict[str, dict[str, bytes]] = field(default_factory=dict)
    vectors: dict[str, bytes] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i, name in enumerate(self.round.members):
            self.members[name] = Member(self.round, name, key_of(name), random.Random(i).randbytes)

    def alive(self, stage: str) -> list[str]:
        gone = {name for name, at in self.drops.items() if STAGES.index(at) <= STAGES.index(stage)}
        return [name for name in self.members if name not in gone]

    def step(self, stage: str) -> dict[str, bytes]:
        said = {}
        for name in self.alive(stage):
            member = self.members[name]
            match stage:
                case "advertise":
                    said[name] = member.advertise()
                case "share":
                    said[name] = member.share(self.messages["advertise"])
                case "mask":
                    said[name], vector = member.mask(self.messages["share"], self.delta(name), weight_of(name))
                    self.vectors[hashlib.sha256(vector).hexdigest()] = vector
                case "confirm":
                    said[name] = member.confirm(self.messages["mask"])
                case "reveal":
                    said[name] = member.reveal(self.messages["confirm"])
        self.messages[stage] = self.tamper(stage, said)
        return self.messages[stage]

    def run(self) -> SecureSum:
        for stage in STAGES:
            self.step(stage)
        return self.sum()

    def transcript(self) -> Transcript:
        m = self.messages
        return Transcript(m["advertise"], m["share"], m["mask"], m["reveal"])

    def sum(self) -> SecureSum:
        return unmask(self.round, self.transcript(), self.vectors.__getitem__)


def resigned(data: bytes, kind: type[M], name: str, **changes: object) -> bytes:
    """A message with fields of its body changed, signed again by its author."""
    body = open_message(data, kind, name, public_hex(key_of(name)))
    return sign_message(kind.model_validate(body.model_dump() | changes), key_of(name))
