"""A masked round, stage by stage: who has said what, and what may be said next. Pure; no numpy, no I/O.

    advertise ──stage end──▶ seal ──stage end──▶ mask ──stage end──▶ reveal ──▶ the sum can be unmasked

The messages are entries of the log, so their authors, their order and that nobody says two things are settled before
they come here. Whatever is not as it must be is refused at the door: what stands in a :class:`Masking` is verified, but
for what only a holder can see (whether its box opens) and what only the shares can show (that they give the secrets
which their owner committed to).

A share of an owner's secret is given only after enough of that owner's holders have signed for one and the same list of
survivors. A log with two lists is a fork, and convicts its coordinator, but only afterwards; the confirmations see to
it that even then no input is opened.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.statements.rounds import Update
from commonweal_protocols.statements.secure_messages import (
    Advertisement,
    Confirmation,
    Reveal,
    RevealedShare,
    SealedShares,
    Secret,
    Stage,
)
from commonweal_protocols.statements.secure_terms import SecureTerms, neighbourhoods
from commonweal_protocols.statements.values import Digest, Name

_ANY_KEY = X25519PrivateKey.from_private_bytes(bytes(32))
"""Whichever it is, with a key of small order it agrees on zero (RFC 7748, section 6.1)."""
_NEXT: Mapping[Stage, Stage] = {"advertise": "seal", "seal": "mask", "mask": "reveal"}


@dataclass(frozen=True, slots=True)
class Context:
    """Which round of which consortium: nothing made for one is of use in another."""

    consortium: Digest
    round_leaf: Digest

    def info(self, use: str, *rest: str) -> bytes:
        """What a key is for, in lines."""
        return "\n".join([f"urn:commonweal:{use}:v1", self.consortium, self.round_leaf, *rest]).encode()

    def share_commitment(self, owner: Name, holder: Name, secret: Secret, share: bytes) -> Digest:
        """What a share must hash to. Shares are uniform in 2^256, so the digest gives nothing away."""
        return hashlib.sha256(self.info("secure-share", owner, holder, secret, share.hex())).hexdigest()

    def seed_commitment(self, owner: Name, seed: bytes) -> Digest:
        """What the seed of a self-mask must hash to."""
        return hashlib.sha256(self.info("secure-seed", owner, seed.hex())).hexdigest()


@dataclass(frozen=True, slots=True)
class Masking:
    """What has been said in a masked round so far, but for the updates, which the round itself holds.

    A compact's bounds (400 members, weights to 10^9) keep every sum of inputs in ±2^24 below 2^63.
    """

    context: Context
    terms: SecureTerms
    cohort: tuple[Name, ...]
    vector_bytes: int
    stage: Stage = "advertise"
    advertised: Mapping[Name, Advertisement] = field(default_factory=dict)
    digest: Digest = ""
    """Of the advertisements, once their stage is over."""
    neighbours: Mapping[Name, tuple[Name, ...]] = field(default_factory=dict)
    sealed: Mapping[Name, SealedShares] = field(default_factory=dict)
    survivors: tuple[Name, ...] = ()
    """Whose inputs are in, once their stage is over."""
    confirmed: frozenset[Name] = frozenset()
    reveals: Mapping[Name, Reveal] = field(default_factory=dict)

    # -- who holds what

    def holders(self, owner: Name) -> tuple[Name, ...]:
        """Who holds shares of an owner's secrets, itself among them: the k-th one's share is at x = k + 1."""
        return tuple(sorted((*self.neighbours[owner], owner)))

    def threshold(self, owner: Name) -> int:
        """How many of an owner's holders it takes to learn one of its secrets."""
        return self.terms.threshold(len(self.neighbours[owner]) + 1)

    def partners(self, name: Name) -> tuple[Name, ...]:
        """With whom a member masks: the neighbours who have left shares."""
        return tuple(n for n in self.neighbours[name] if n in self.sealed)

    def owners(self, holder: Name) -> tuple[Name, ...]:
        """Whose shares a member holds: its partners' and its own, sorted."""
        return tuple(sorted((*self.partners(holder), holder)))

    def wanted(self, owner: Name) -> Secret:
        """Which secret of an owner is to be known: never both."""
        return "self" if owner in self.survivors else "mask"

    def shares(self, owner: Name) -> dict[int, bytes]:
        """The revealed shares of the one secret of an owner that may be known, by their x."""
        found: dict[int, bytes] = {}
        for x, holder in enumerate(self.holders(owner), 1):
            for share in self.reveals[holder].shares if holder in self.reveals else ():
                if share.owner == owner:
                    found[x] = bytes.fromhex(share.share)
        return found

    # -- what may be done

    def unconfirmed(self, owners: tuple[Name, ...]) -> tuple[Name, ...]:
        """Those of some owners of whose holders too few have confirmed the survivors."""
        return tuple(o for o in owners if len(self.confirmed & set(self.holders(o))) < self.threshold(o))

    def hidden(self) -> tuple[Name, ...]:
        """The owners of whose secret too few shares are known, sorted; where there are none, the sum can be had."""
        known = self.reveals.keys()
        # A reveal has a share of every owner that its author is a holder of.
        return tuple(o for o in sorted(self.sealed) if len(known & set(self.holders(o))) < self.threshold(o))

    def absent(self, updates: Mapping[Name, object]) -> tuple[Name, ...]:
        """Who may speak now and has not: in the last stage, confirm first, and reveal once enough have confirmed."""
        match self.stage:
            case "advertise":
                return tuple(n for n in self.cohort if n not in self.advertised)
            case "seal":
                return tuple(n for n in sorted(self.advertised) if n not in self.sealed)
            case "mask":
                return tuple(n for n in sorted(self.sealed) if n not in updates)
            case "reveal":
                silent = [n for n in self.survivors if n not in self.reveals]
                return tuple(n for n in silent if n not in self.confirmed or not self.unconfirmed(self.owners(n)))

    def speakers(self, updates: Mapping[Name, object]) -> tuple[Name, ...]:
        """Who has spoken in this stage, sorted."""
        spoken: Mapping[Stage, Mapping[Name, object]] = {
            "advertise": self.advertised,
            "seal": self.sealed,
            "mask": updates,
            "reveal": self.reveals,
        }
        return tuple(sorted(spoken[self.stage]))

    # -- what is said

    def _at(self, kind: str, name: Name, stage: Stage, allowed: object) -> None:
        if self.stage != stage:
            raise RuleError(f"{kind}: wanted it in the stage {stage}, but the round is in the stage {self.stage}")
        if not allowed:
            raise RuleError(f"{kind}: {name} has no part in this stage of the round, or has spoken in it already")

    def advertise(self, name: Name, said: Advertisement) -> "Masking":
        """A member of the cohort takes part.

        Raises:
            RuleError: Not now, not this one, or not with keys of its own.
        """
        self._at("advertisement", name, "advertise", name in self.absent({}))
        known = {k for a in self.advertised.values() for k in (a.mask_key, a.box_key)}
        if said.mask_key == said.box_key or {said.mask_key, said.box_key} & known:
            raise RuleError(f"advertisement: {name}: wanted keys made for this round by their owner, got one twice")
        for key in (said.mask_key, said.box_key):
            _check_order(name, key)
        return replace(self, advertised={**self.advertised, name: said})

    def seal(self, name: Name, said: SealedShares) -> "Masking":
        """Who has advertised leaves shares with its holders.

        Raises:
            RuleError: Not now, not this one, for other advertisements, or with others than its holders.
        """
        self._at("sealed shares", name, "seal", name in self.absent({}))
        if said.advertised != self.digest:
            raise RuleError(f"sealed shares: wanted them for the advertisements {self.digest}, got {said.advertised}")
        if tuple(s.holder for s in said.shares) != (holders := self.holders(name)):
            raise RuleError(f"sealed shares: {name}: wanted one for each of {list(holders)}, in this order")
        return replace(self, sealed={**self.sealed, name: said})

    def check_input(self, name: Name, update: Update, updates: Mapping[Name, object]) -> None:
        """Check that an update may enter as a masked input.

        Raises:
            RuleError: Not now, not this one, masked with others than its partners, or a vector of another length.
        """
        self._at("update", name, "mask", name in self.absent(updates))
        if update.partners != (wanted := self.partners(name)):
            raise RuleError(f"update: {name}: wanted it masked with {list(wanted)}, got {list(update.partners)}")
        if update.delta.size_bytes != self.vector_bytes:
            raise RuleError(
                f"update: {name}: wanted a vector of {self.vector_bytes} bytes, got {update.delta.size_bytes}"
            )

    def confirm(self, name: Name, said: Confirmation) -> "Masking":
        """A survivor says whose inputs it has seen to be in.

        Raises:
            RuleError: Not now, not this one, or other survivors: somebody was shown another round than this one.
        """
        self._at("confirmation", name, "reveal", name in self.survivors and name not in self.confirmed)
        if said.survivors != self.survivors:
            raise RuleError(f"confirmation: wanted {list(self.survivors)}, got {list(said.survivors)}")
        return replace(self, confirmed=self.confirmed | {name})

    def reveal(self, name: Name, said: Reveal) -> "Masking":
        """A survivor gives one share of each owner whose shares it holds.

        Raises:
            RuleError: Not now, not this one, not yet confirmed, or not these owners' sealed shares of the one secret.
        """
        self._at("reveal", name, "reveal", name in self.confirmed and name not in self.reveals)
        owners = self.owners(name)
        if early := self.unconfirmed(owners):
            raise RuleError(f"reveal: wanted the survivors confirmed first by enough holders of {early[0]}")
        if tuple(s.owner for s in said.shares) != owners:
            raise RuleError(f"reveal: {name}: wanted one share of each of {list(owners)}, in this order")
        for share in said.shares:
            self._check_share(name, share)
        return replace(self, reveals={**self.reveals, name: said})

    def _check_share(self, holder: Name, revealed: RevealedShare) -> None:
        owner, wanted = revealed.owner, self.wanted(revealed.owner)
        if revealed.of != wanted:
            raise RuleError(f"reveal: {holder}: wanted its share of {owner}'s {wanted} secret, got the other")
        left = self.sealed[owner].shares[self.holders(owner).index(holder)]
        commitment = left.self_commitment if wanted == "self" else left.mask_commitment
        if self.context.share_commitment(owner, holder, wanted, bytes.fromhex(revealed.share)) != commitment:
            raise RuleError(f"reveal: {holder}: its share of {owner} is not the one that {owner} has sealed for it")

    def end_stage(
        self, stage: Stage, speakers: tuple[Name, ...], updates: Mapping[Name, object], fewest: int
    ) -> "Masking":
        """The coordinator ends a stage.

        Args:
            stage: Which.
            speakers: Who it says has spoken in it.
            updates: The round's, by institution.
            fewest: How many inputs a release must have.

        Raises:
            RuleError: Another stage, other speakers than those in the log, or too few of them.
        """
        if stage != self.stage or stage not in _NEXT:
            raise RuleError(f"stage end: wanted the end of the stage {self.stage}, got that of {stage}")
        if speakers != (spoken := self.speakers(updates)):
            raise RuleError(f"stage end: wanted all who have spoken, {list(spoken)}, got {list(speakers)}")
        if len(spoken) < fewest:
            raise RuleError(f"stage end: wanted at least {fewest} who have spoken in {stage}, got {len(spoken)}")
        after = replace(self, stage=_NEXT[stage])
        if stage == "advertise":
            digest = _digest(self.advertised)
            graph = neighbourhoods(self.advertised, bytes.fromhex(digest), self.terms)
            return replace(after, digest=digest, neighbours=graph)
        return replace(after, survivors=spoken) if stage == "mask" else after


def _check_order(name: Name, key: str) -> None:
    """Refuse a key with which every secret is the same: nobody could seal or mask anything with its owner."""
    try:
        _ANY_KEY.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(key)))
    except ValueError as e:
        raise RuleError(f"advertisement: {name}: wanted X25519 keys, got one of small order, {key}") from e


def _digest(advertised: Mapping[Name, Advertisement]) -> Digest:
    """SHA-256 over a line for each advertisement, by institution: its name, and its two keys."""
    lines = "".join(f"{name} {a.mask_key} {a.box_key}\n" for name, a in sorted(advertised.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def explain(masking: Masking, weights: Mapping[Name, int]) -> tuple[str, ...]:
    """Return, for people, what an audit of a masked release proves, and what nobody can prove of it.

    Args:
        masking: Of a round with a release.
        weights: Of the release's inputs, by institution.
    """
    survivors = ", ".join(f"{name} (weight {weights[name]})" for name in sorted(weights))
    dropped = [name for name in sorted(masking.sealed) if name not in weights]
    before = [name for name in masking.cohort if name not in masking.sealed]
    fewest = min(masking.threshold(name) for name in masking.sealed)
    return (
        f"proved: each of {survivors} signed one input; together {sum(weights.values())}",
        f"proved: left out: {', '.join(dropped) or 'nobody'} (dropped out after leaving shares), "
        f"{', '.join(before) or 'nobody'} (before)",
        "proved: the sum is that of exactly these inputs, and the release is its mean: anybody re-computes both",
        "proved: each share that took a mask off is the one that its owner sealed",
        f"hidden: each single delta, from everybody who has not the help of {fewest} of its holders",
        "not provable: that an input was in range, within a norm, or trained at all",
        "not possible: to set one update aside, robust rules, a member's influence, diversity and interference figures",
    )
