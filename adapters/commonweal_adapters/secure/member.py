"""A member of a masked round: what it says at each stage, as a function of its secret and of what the log has so far.

    advertise ─▶ seal ─▶ mask ─▶ confirm ─▶ reveal

Asked again with the same :class:`masking.Masking` it says the same again, so 32 random bytes are all that has to
survive a crash. Asked with another one it would say something else: its owner keeps what was said and never says two
things at one stage, for two masked vectors under the same masks show how they differ, and two lists of survivors open
an input.

A member never gives a share of both secrets of one owner, and none at all before enough of that owner's holders have
signed for the same list of survivors. No I/O, no clock, no randomness.
"""

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.secure import masks
from commonweal_adapters.secure.shamir import SECRET_BYTES, split
from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.fold.masked_round import Masking
from commonweal_protocols.statements.secure_messages import (
    Advertisement,
    Confirmation,
    Reveal,
    RevealedShare,
    SealedShare,
    SealedShares,
)
from commonweal_protocols.statements.values import Name


def flatten(delta: GridTensors) -> NDArray[np.int32]:
    """Return all integers as one vector: tensors by name, each row by row."""
    return np.concatenate([q.reshape(-1) for _, q in sorted(delta.items())])


class Member:
    """One member in one round."""

    def __init__(self, masking: Masking, number: int, institution: Name, root: bytes) -> None:
        """Derive the round's secrets.

        Args:
            masking: The round, as the log has it now.
            number: The round's.
            institution: Who this is.
            root: 32 random bytes, made for this round alone and known to nobody else.
        """
        if len(root) != SECRET_BYTES:
            raise ValueError(f"root: wanted {SECRET_BYTES} bytes, got {len(root)}")
        self._masking = masking
        self._number = number
        self._name = institution
        self._root = root
        self._mask_key = X25519PrivateKey.from_private_bytes(self._secret("mask-key"))
        self._box_key = X25519PrivateKey.from_private_bytes(self._secret("box-key"))
        self._seed = self._secret("self-mask")

    def _secret(self, use: str) -> bytes:
        return masks.member_secret(self._masking.context, self._root, use)

    def advertise(self) -> Advertisement:
        """Return this member's keys for the round."""
        return Advertisement(
            round=self._number,
            round_leaf=self._masking.context.round_leaf,
            mask_key=masks.public(self._mask_key),
            box_key=masks.public(self._box_key),
        )

    def seal(self) -> SealedShares:
        """Return boxes with shares of this member's two secrets, one for each holder.

        Raises:
            RuleError: A holder's key is of small order, or what the log has of this member is not from this secret.
        """
        m, context = self._masking, self._masking.context
        if m.advertised.get(self._name) != self.advertise():
            raise RuleError(f"seal: wanted the keys of {self._name} that follow from its secret, got none or others")
        holders, threshold = m.holders(self._name), m.threshold(self._name)
        drawn = [masks.draw_from(self._secret(use)) for use in ("shares of the mask key", "shares of the self-mask")]
        of_key = split(self._mask_key.private_bytes_raw(), threshold, len(holders), drawn[0])
        of_seed = split(self._seed, threshold, len(holders), drawn[1])
        shares = tuple(
            SealedShare(
                holder=holder,
                box=masks.seal(context, self._box_key, self._name, m.advertised[holder].box_key, holder, one + two),
                mask_commitment=context.share_commitment(self._name, holder, "mask", one),
                self_commitment=context.share_commitment(self._name, holder, "self", two),
            )
            for holder, one, two in zip(holders, of_key, of_seed, strict=True)
        )
        return SealedShares(
            round=self._number,
            round_leaf=context.round_leaf,
            advertised=m.digest,
            seed_commitment=context.seed_commitment(self._name, self._seed),
            shares=shares,
        )

    def check_partners(self) -> None:
        """Check that this member can mask, and could give every share back that it is to hold.

        Raises:
            RuleError: A box does not open or holds other shares than were committed to; or so few partners are left
                that a coordinator with their help could take the masks off.
        """
        m = self._masking
        partners, wanted = m.partners(self._name), m.threshold(self._name)
        if len(partners) + 1 < wanted:
            near = len(m.neighbours[self._name])
            raise RuleError(f"mask: wanted at least {wanted - 1} partners of {near}, got {len(partners)}")
        for owner in m.owners(self._name):
            self._unsealed(owner)

    def mask(self, delta: GridTensors, weight: int) -> bytes:
        """Return the masked vector: ``weight`` times the delta, plus masks, as unsigned 64-bit little-endian words.

        Args:
            delta: The round's spec's tensors, every integer in ±``LIMIT``.
            weight: 1 to 10^9. It is public.

        Raises:
            RuleError: See :meth:`check_partners`.
        """
        self.check_partners()
        m = self._masking
        vector = flatten(delta).astype(np.int64)
        if 8 * vector.size != m.vector_bytes or np.abs(vector).max() > LIMIT:
            raise ValueError(f"delta: wanted {m.vector_bytes // 8} integers in ±2^24, got {vector.size}")
        vector *= weight
        hidden = vector.view(np.uint64)
        masks.add_stream(hidden, masks.self_seed(m.context, self._seed, self._name), 1)
        for partner in m.partners(self._name):
            seed = masks.pair_seed(m.context, self._mask_key, m.advertised[partner].mask_key, partner)
            masks.add_stream(hidden, seed, 1 if self._name < partner else -1)
        return hidden.astype("<u8", copy=False).tobytes()

    def confirm(self) -> Confirmation:
        """Return whose inputs are in."""
        m = self._masking
        return Confirmation(round=self._number, round_leaf=m.context.round_leaf, survivors=m.survivors)

    def reveal(self) -> Reveal:
        """Return one share of each owner whose shares this member holds.

        Raises:
            RuleError: Too few of an owner's holders have confirmed the survivors, or a box does not open.
        """
        m = self._masking
        owners = m.owners(self._name)
        if early := m.unconfirmed(owners):
            raise RuleError(f"reveal: wanted {m.threshold(early[0])} confirmations among the holders of {early[0]}")
        shares = []
        for owner in owners:
            of_key, of_seed = self._unsealed(owner)
            which = m.wanted(owner)
            shares.append(RevealedShare(owner=owner, of=which, share={"mask": of_key, "self": of_seed}[which].hex()))
        return Reveal(round=self._number, round_leaf=m.context.round_leaf, shares=tuple(shares))

    def _unsealed(self, owner: Name) -> tuple[bytes, bytes]:
        """Open the box that is this member's, and hold what is in it to the owner's commitments."""
        m, context = self._masking, self._masking.context
        mine = m.sealed[owner].shares[m.holders(owner).index(self._name)]
        of_key, of_seed = masks.unseal(context, self._box_key, self._name, m.advertised[owner].box_key, owner, mine.box)
        found = (
            context.share_commitment(owner, self._name, "mask", of_key),
            context.share_commitment(owner, self._name, "self", of_seed),
        )
        if found != (mine.mask_commitment, mine.self_commitment):
            raise RuleError(f"{owner}: its box for {self._name} holds other shares than it has committed to")
        return of_key, of_seed
