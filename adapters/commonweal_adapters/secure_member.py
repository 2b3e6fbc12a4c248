"""A member of a masked round: five calls in this order, each answered with one signed message.

    advertise ─▶ share ─▶ mask ─▶ confirm ─▶ reveal

Each takes the messages of the stage before, from all who are still there, and succeeds once; where it raises, the
member stands where it stood, and the coordinator may call again without those who were named. A member never gives a
share of both secrets of one owner, and none at all before enough of that owner's holders have signed for the same
list of survivors: a coordinator that shows one half a list and the other half another gets nothing from either.

The secrets live in this object and are never written anywhere: a member that starts again has dropped out of the round.
No I/O, no clock; randomness comes through the caller.
"""

import hashlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from commonweal_adapters import secure_masks as masks
from commonweal_adapters.delta import LIMIT, GridTensors
from commonweal_adapters.discrete_gaussian import Source
from commonweal_adapters.secure_round import (
    Advertised,
    SecureRound,
    verify_advertisements,
    verify_confirmations,
    verify_masked,
    verify_sealed,
)
from commonweal_adapters.shamir import split
from commonweal_protocols.errors import RuleError
from commonweal_protocols.predicates import Blob, Name
from commonweal_protocols.secure_messages import (
    Advertisement,
    Confirmation,
    MaskedInput,
    Place,
    Reveal,
    RevealedShare,
    SealedShare,
    SealedShares,
    sign_message,
)

_Stage = Literal["advertise", "share", "mask", "confirm", "reveal", "done"]


def flatten(delta: GridTensors) -> NDArray[np.int32]:
    """Return all integers as one vector: tensors by name, each row by row."""
    return np.concatenate([q.reshape(-1) for _, q in sorted(delta.items())])


class Member:
    """Not thread-safe. A call out of order is the caller's bug (RuntimeError)."""

    def __init__(self, round_: SecureRound, institution: Name, key: Ed25519PrivateKey, source: Source) -> None:
        self._round = round_
        self._name = institution
        self._key = key
        self._source = source
        self._stage: _Stage = "advertise"
        self._mask_key = X25519PrivateKey.from_private_bytes(source(32))
        self._box_key = X25519PrivateKey.from_private_bytes(source(32))
        self._seed = source(32)
        self._own: dict[_Stage, bytes] = {}
        context = round_.context
        self._place = Place(consortium=context.consortium, round_leaf=context.round_leaf, institution=institution)
        # Set by share(), mask() and confirm(), in this order.
        self._advertised = Advertised({}, "", {})
        self._sealed: dict[Name, SealedShares] = {}
        self._held: dict[Name, tuple[bytes, bytes]] = {}
        self._survivors: tuple[Name, ...] = ()

    def advertise(self) -> bytes:
        """Return this member's keys for the round."""
        self._at("advertise")
        body = Advertisement(
            place=self._place, mask_key=masks.public(self._mask_key), box_key=masks.public(self._box_key)
        )
        return self._done("advertise", sign_message(body, self._key), "share")

    def share(self, advertisements: Mapping[Name, bytes]) -> bytes:
        """Return boxes with shares of this member's two secrets, one for each holder.

        Raises:
            PeerError: Some advertisement is not its member's; there are too few; or this member's own is missing.
        """
        self._at("share")
        advertised = verify_advertisements(self._round, advertisements)
        self._mine("advertise", advertisements)
        context, holders = self._round.context, advertised.holders(self._name)
        threshold = self._round.terms.threshold(len(holders))
        of_key = split(self._mask_key.private_bytes_raw(), threshold, len(holders), self._source)
        of_seed = split(self._seed, threshold, len(holders), self._source)
        shares = tuple(
            SealedShare(
                holder=holder,
                box=masks.seal(context, self._box_key, self._name, advertised.keys[holder].box_key, holder, one + two),
                mask_commitment=masks.share_commitment(context, self._name, holder, "mask", one),
                self_commitment=masks.share_commitment(context, self._name, holder, "self", two),
            )
            for holder, one, two in zip(holders, of_key, of_seed, strict=True)
        )
        body = SealedShares(
            place=self._place,
            advertised=advertised.digest,
            seed_commitment=masks.seed_commitment(context, self._name, self._seed),
            shares=shares,
        )
        self._advertised = advertised
        return self._done("share", sign_message(body, self._key), "mask")

    def mask(self, sealed: Mapping[Name, bytes], delta: GridTensors, weight: int) -> tuple[bytes, bytes]:
        """Return the signed input, and the masked vector that it names.

        Args:
            sealed: The sealed shares of all that have left any.
            delta: The round's spec's tensors, every integer in ±``LIMIT``.
            weight: 1 to 10^9. It is public.

        Raises:
            PeerError: Some message is not its member's, a box does not open or holds other shares than were committed
                to; or so few partners are left that a coordinator with their help could take the masks off.
        """
        self._at("mask")
        opened = verify_sealed(self._round, self._advertised, sealed)
        self._mine("share", sealed)
        neighbours = self._advertised.neighbours[self._name]
        partners = tuple(n for n in neighbours if n in opened)
        wanted = self._round.terms.threshold(len(neighbours) + 1)
        if len(partners) + 1 < wanted:
            raise RuleError(f"mask: wanted at least {wanted - 1} partners of {len(neighbours)}, got {len(partners)}")
        held = {owner: self._unsealed(owner, opened[owner]) for owner in (*partners, self._name)}
        vector = flatten(delta).astype(np.int64)
        if vector.size != self._round.elements or np.abs(vector).max() > LIMIT:
            raise ValueError(f"delta: wanted {self._round.elements} integers in ±2^24, got {vector.size}")
        vector *= weight
        hidden = vector.view(np.uint64)
        context = self._round.context
        masks.add_stream(hidden, masks.self_seed(context, self._seed, self._name), 1)
        for partner in partners:
            seed = masks.pair_seed(context, self._mask_key, self._advertised.keys[partner].mask_key, partner)
            masks.add_stream(hidden, seed, 1 if self._name < partner else -1)
        data = hidden.astype("<u8", copy=False).tobytes()
        blob = Blob(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        body = MaskedInput(place=self._place, weight=weight, partners=partners, vector=blob)
        self._sealed, self._held = opened, held
        return self._done("mask", sign_message(body, self._key), "confirm"), data

    def confirm(self, masked: Mapping[Name, bytes]) -> bytes:
        """Return whose inputs are in.

        Raises:
            PeerError: Some input is not its member's or not masked as it should be; there are too few; or this member's
                own is missing.
        """
        self._at("confirm")
        survivors = tuple(verify_masked(self._round, self._advertised, self._sealed, masked))
        self._mine("mask", masked)
        self._survivors = survivors
        body = Confirmation(place=self._place, survivors=survivors)
        return self._done("confirm", sign_message(body, self._key), "reveal")

    def reveal(self, confirmations: Mapping[Name, bytes]) -> bytes:
        """Return one share of each owner whose shares this member holds.

        Raises:
            PeerError: Some confirmation is not its member's or names other survivors; or too few of an owner's holders
                have confirmed.
        """
        self._at("reveal")
        confirmed = verify_confirmations(self._round, self._survivors, confirmations)
        for owner in self._held:
            holders = self._advertised.holders(owner)
            wanted, got = self._round.terms.threshold(len(holders)), len(confirmed.keys() & set(holders))
            if got < wanted:
                raise RuleError(f"reveal: wanted {wanted} confirmations among the holders of {owner}, got {got}")
        shares = tuple(
            RevealedShare(owner=owner, of="self", share=of_seed.hex())
            if owner in self._survivors
            else RevealedShare(owner=owner, of="mask", share=of_key.hex())
            for owner, (of_key, of_seed) in sorted(self._held.items())
        )
        return self._done("reveal", sign_message(Reveal(place=self._place, shares=shares), self._key), "done")

    # -- order, and what is always the same

    def _at(self, stage: _Stage) -> None:
        if self._stage != stage:
            raise RuntimeError(f"secure member {self._name}: wanted a call of {self._stage}, got {stage}")

    def _done(self, stage: _Stage, message: bytes, after: _Stage) -> bytes:
        self._own[stage], self._stage = message, after
        return message

    def _mine(self, stage: _Stage, messages: Mapping[Name, bytes]) -> None:
        if messages.get(self._name) != self._own[stage]:
            raise RuleError(f"{stage}: wanted what {self._name} has said among the messages, got none or another")

    def _unsealed(self, owner: Name, sealed: SealedShares) -> tuple[bytes, bytes]:
        """Open the box that is this member's, and hold what is in it to the owner's commitments."""
        context, peer = self._round.context, self._advertised.keys[owner].box_key
        (mine,) = (s for s in sealed.shares if s.holder == self._name)
        of_key, of_seed = masks.unseal(context, self._box_key, self._name, peer, owner, mine.box)
        found = (
            masks.share_commitment(context, owner, self._name, "mask", of_key),
            masks.share_commitment(context, owner, self._name, "self", of_seed),
        )
        if found != (mine.mask_commitment, mine.self_commitment):
            raise RuleError(f"{owner}: its box for {self._name} holds other shares than it has committed to")
        return of_key, of_seed
