"""What every party of a masked round checks of the others' messages: members, coordinator and auditors alike.

Each function takes one stage's messages by institution and refuses by name; whoever was refused is left out and the
stage is judged again. What was opened is verified. Pure.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from commonweal_adapters.secure_masks import Context
from commonweal_protocols.errors import RuleError
from commonweal_protocols.predicates import Digest, Name, PublicKey
from commonweal_protocols.secure_messages import (
    Advertisement,
    Confirmation,
    M,
    MaskedInput,
    Reveal,
    SealedShares,
    open_message,
)
from commonweal_protocols.secure_terms import SecureTerms, neighbourhoods


@dataclass(frozen=True, slots=True)
class SecureRound:
    """A masked round: which one, the cohort's keys as the compact has them, its terms, and the vectors' length.

    A compact's bounds (400 members, weights to 10^9) keep every sum of inputs in ±2^24 below 2^63.
    """

    context: Context
    members: Mapping[Name, PublicKey]
    terms: SecureTerms
    elements: int

    @property
    def quorum(self) -> int:
        """The fewest members that may stand in a sum."""
        return self.terms.threshold(len(self.members))

    def open(self, messages: Mapping[Name, bytes], kind: type[M]) -> dict[Name, M]:
        """Verify one stage's messages, in the order of their institutions.

        Raises:
            PeerError: One is not that member's message of this kind and round.
        """
        opened = {}
        for name, data in sorted(messages.items()):
            if name not in self.members:
                raise RuleError(f"{name}: wanted a member of the cohort")
            body = open_message(data, kind, name, self.members[name])
            if (body.place.consortium, body.place.round_leaf) != (self.context.consortium, self.context.round_leaf):
                raise RuleError(f"{name}: wanted a {kind.__name__} for round {self.context.round_leaf}, got another's")
            opened[name] = body
        return opened

    def enough(self, what: str, count: int) -> None:
        """Refuse a stage with fewer members than a sum may have.

        Raises:
            RuleError: Fewer than the quorum.
        """
        if count < self.quorum:
            raise RuleError(f"{what}: wanted at least {self.quorum} of {len(self.members)} members, got {count}")


@dataclass(frozen=True, slots=True)
class Advertised:
    """Who takes part, with whom each masks, and the digest of the very messages."""

    keys: Mapping[Name, Advertisement]
    digest: Digest
    neighbours: Mapping[Name, tuple[Name, ...]]

    def holders(self, owner: Name) -> tuple[Name, ...]:
        """Who holds shares of an owner's secrets, itself among them: the k-th one's share is at x = k + 1."""
        return tuple(sorted((*self.neighbours[owner], owner)))


def verify_advertisements(round_: SecureRound, messages: Mapping[Name, bytes]) -> Advertised:
    """Verify who takes part.

    Raises:
        PeerError: A message is not its member's; or fewer than the quorum.
    """
    keys = round_.open(messages, Advertisement)
    round_.enough("advertisements", len(keys))
    fields = [k for a in keys.values() for k in (a.mask_key, a.box_key)]
    if len(set(fields)) != len(fields):
        raise RuleError("advertisements: wanted keys made for this round by their owners, got one twice")
    digest = hashlib.sha256(b"".join(hashlib.sha256(messages[name]).digest() for name in keys))
    return Advertised(keys, digest.hexdigest(), neighbourhoods(keys, digest.digest(), round_.terms))


def verify_sealed(
    round_: SecureRound, advertised: Advertised, messages: Mapping[Name, bytes]
) -> dict[Name, SealedShares]:
    """Verify who has left shares with its holders. Whether a box opens, only its holder can say.

    Raises:
        PeerError: A message is not its member's, answers other advertisements, or leaves shares with others than its
            holders; or fewer than the quorum.
    """
    sealed = round_.open(messages, SealedShares)
    for name, body in sealed.items():
        if body.advertised != advertised.digest or name not in advertised.keys:
            raise RuleError(f"{name}: wanted shares for the advertisements {advertised.digest}, got {body.advertised}")
        if tuple(s.holder for s in body.shares) != advertised.holders(name):
            raise RuleError(f"{name}: wanted a share for each of {list(advertised.holders(name))}, in this order")
    round_.enough("sealed shares", len(sealed))
    return sealed


def verify_masked(
    round_: SecureRound, advertised: Advertised, sealed: Mapping[Name, SealedShares], messages: Mapping[Name, bytes]
) -> dict[Name, MaskedInput]:
    """Verify whose inputs are in: the survivors.

    Raises:
        PeerError: A message is not its member's, is masked with others than its neighbours that have left shares, or
            has a vector of another length; or fewer than the quorum.
    """
    masked = round_.open(messages, MaskedInput)
    for name, body in masked.items():
        wanted = tuple(n for n in advertised.neighbours.get(name, ()) if n in sealed)
        if name not in sealed or body.partners != wanted:
            raise RuleError(f"{name}: wanted an input masked with {list(wanted)}, got {list(body.partners)}")
        if body.vector.size_bytes != 8 * round_.elements:
            raise RuleError(f"{name}: wanted a vector of {8 * round_.elements} bytes, got {body.vector.size_bytes}")
    round_.enough("masked inputs", len(masked))
    return masked


def verify_confirmations(
    round_: SecureRound, survivors: tuple[Name, ...], messages: Mapping[Name, bytes]
) -> dict[Name, Confirmation]:
    """Verify who has confirmed these survivors.

    Raises:
        PeerError: A message is not its member's, or confirms others: somebody was shown another round than this one.
    """
    confirmed = round_.open(messages, Confirmation)
    for name, body in confirmed.items():
        if name not in survivors or body.survivors != survivors:
            raise RuleError(f"{name}: wanted a confirmation of {list(survivors)}, got {list(body.survivors)}")
    return confirmed


def verify_reveals(round_: SecureRound, messages: Mapping[Name, bytes]) -> dict[Name, Reveal]:
    """Verify who has revealed shares. Whether a share is the sealed one is checked where it is used.

    Raises:
        PeerError: A message is not its member's, or has two shares of one owner.
    """
    reveals = round_.open(messages, Reveal)
    for name, body in reveals.items():
        if len({s.owner for s in body.shares}) != len(body.shares):
            raise RuleError(f"{name}: wanted one share of each owner, got two: both secrets of one must not be known")
    return reveals
