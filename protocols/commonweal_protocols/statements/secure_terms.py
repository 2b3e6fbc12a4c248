"""Secure aggregation's terms: who masks with whom, and how many must stay. Integers and digests; no numpy, no I/O.

Each member hides its weighted delta under masks that it shares with its neighbours, and leaves shares of its secrets
with them for the case that somebody drops out (Bonawitz et al. 2017, eprint 2017/281; with neighbours instead of
everybody: Bell et al. 2020, eprint 2020/704).
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import Annotated

from pydantic import Field

from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.delta_encoding import Encoding
from commonweal_protocols.statements.rules import AnyRule, FactorMean, weights_name

_DOMAIN = b"urn:commonweal:secure-graph:v1"
MAX_NEIGHBOURS = 100
"""What one member seals for so many is the most that an entry of the log has room for."""
FEWEST_INPUTS = 3
"""Of a sum of two, each has the other's input: it need only subtract its own."""


class SecureTerms(Closed):
    """A compact's terms for masked rounds.

    ``neighbours``: with how many others each member masks, evenly placed on a ring; where the cohort has no more than
    that, with everybody. ``threshold_millis``: how many of 1000 holders must be exceeded, by those who stay, to unmask.
    With 500 a coordinator that lies learns nothing as long as no member helps it; with 667, as long as less than a
    third of each member's holders do. The price is that fewer may drop out.
    """

    neighbours: Annotated[int, Field(ge=2, le=MAX_NEIGHBOURS, multiple_of=2)] = MAX_NEIGHBOURS
    threshold_millis: Annotated[int, Field(ge=500, le=999)] = 667

    def threshold(self, holders: int) -> int:
        """How many of so many holders are needed: more than ``threshold_millis`` of 1000."""
        return holders * self.threshold_millis // 1000 + 1


def objection(
    terms: SecureTerms,
    rule: AnyRule,
    encoding: Encoding | None,
    updates: int,
    members: int,
    vector_bytes: int,
    most: int,
) -> str | None:
    """Return why rounds cannot be masked under a compact, or None where they can.

    Args:
        terms: The compact's.
        rule: Its rule of aggregation.
        encoding: How its deltas are encoded.
        updates: The fewest updates that it lets be merged.
        members: How many there are.
        vector_bytes: What a masked vector takes.
        most: What it lets an update take.
    """
    if not isinstance(rule, FactorMean) or rule.weights not in ("equal", "examples"):
        return (
            "wanted the rule factor-mean with equal weights or by examples: nobody sees a single delta, and each "
            f"weighs its own before the others' are known; got {rule.name}, weights {weights_name(rule)}"
        )
    if encoding is not None:
        return f"wanted no encoding, since masks fill all 64 bits of every element; got {encoding}"
    if updates < (wanted := max(FEWEST_INPUTS, terms.threshold(members))):
        return (
            f"wanted quorum.updates of at least {wanted} (more than {terms.threshold_millis} of 1000 of {members} "
            f"members, and at least {FEWEST_INPUTS}), got {updates}"
        )
    if vector_bytes > most:
        return f"wanted max_update_bytes of at least {vector_bytes}, the size of a masked vector, got {most}"
    return None


def neighbourhoods(names: Collection[str], seed: bytes, terms: SecureTerms) -> Mapping[str, tuple[str, ...]]:
    """Return each name's neighbours, sorted: a relation that goes both ways.

    Where there are more names than neighbours, the names stand on a ring in the order of SHA-256 over the seed and the
    name, and each has half of its neighbours on either side.

    Args:
        names: The members that take part.
        seed: What the order depends on. Anyone who chooses it chooses the graph.
        terms: The compact's.
    """
    reach = terms.neighbours // 2
    if len(names) <= terms.neighbours + 1:
        return {name: tuple(sorted(set(names) - {name})) for name in names}
    ring = sorted(names, key=lambda name: hashlib.sha256(b"\n".join([_DOMAIN, seed, name.encode()])).digest())
    n = len(ring)
    return {
        name: tuple(sorted(ring[(i + step) % n] for step in range(-reach, reach + 1) if step))
        for i, name in enumerate(ring)
    }
