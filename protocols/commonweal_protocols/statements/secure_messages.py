"""What the parties of a masked round say to each other, each an entry of the log under its author's signature.

::

    advertisement   two fresh public keys
    sealed shares   for each holder a box with shares of two secrets, and what the shares must hash to
    update          the masked vector, and with whom it is masked (``rounds.Update``)
    confirmation    whose masked inputs a member has seen to be in
    reveal          for each owner one share: of the self-mask's seed if its input is in, of the mask key if not

    stage end       the coordinator's: who has spoken in a stage, which is over

The vectors lie outside. What may be said in which state is :mod:`masking`'s concern.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, StringConstraints

from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.rounds import AboutRound
from commonweal_protocols.statements.secure_terms import MAX_NEIGHBOURS
from commonweal_protocols.statements.values import Digest, Name

Box = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{164}$")]
"""Two shares and a tag: 2 · 33 + 16 bytes in hex."""
Share = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{66}$")]
"""A share of a secret: an integer below 2^256 + 297 in 33 bytes, big-endian, in hex."""
Names = Annotated[tuple[Name, ...], Field(min_length=1, max_length=400)]
Secret: TypeAlias = Literal["mask", "self"]
"""Whose shares are left with holders: a member's mask key, or the seed of the mask that it puts on alone."""
Stage: TypeAlias = Literal["advertise", "seal", "mask", "reveal"]
"""The stages of a masked round, in this order. Confirmations and reveals are said in the last."""


class Advertisement(AboutRound):
    """Two X25519 public keys, made for this round alone: one for masks, one for boxes."""

    URI = "urn:commonweal:advertisement:v1"
    TITLE = "an institution takes part in a masked round"
    AUTHOR = "a member"
    mask_key: Digest
    box_key: Digest


class SealedShare(Closed):
    """One holder's box, and the SHA-256 commitments to what is in it."""

    holder: Name
    box: Box
    mask_commitment: Digest
    self_commitment: Digest


class SealedShares(AboutRound):
    """Shares for each holder; ``advertised`` is the digest of the advertisements that the author has seen.

    Those of 101 holders are the most that an entry of the log has room for.
    """

    URI = "urn:commonweal:sealed-shares:v1"
    TITLE = "an institution leaves sealed shares of its secrets"
    AUTHOR = "a member"
    advertised: Digest
    seed_commitment: Digest
    shares: Annotated[tuple[SealedShare, ...], Field(min_length=1, max_length=MAX_NEIGHBOURS + 1)]


class Confirmation(AboutRound):
    """Whose masked inputs are in, sorted: the only ones whose self-masks this member will help to take off."""

    URI = "urn:commonweal:confirmation:v1"
    TITLE = "an institution confirms whose masked contributions are in"
    AUTHOR = "a member"
    survivors: Names


class RevealedShare(Closed):
    """A share of one of an owner's two secrets."""

    owner: Name
    of: Secret
    share: Share


class Reveal(AboutRound):
    """For each owner whose shares this member holds, one share."""

    URI = "urn:commonweal:reveal:v1"
    TITLE = "an institution reveals shares, so that masks come off the sum"
    AUTHOR = "a member"
    shares: Annotated[tuple[RevealedShare, ...], Field(min_length=1, max_length=MAX_NEIGHBOURS + 1)]


class StageEnd(AboutRound):
    """The coordinator ends a stage: only those who have spoken in it, sorted, take part in the next."""

    URI = "urn:commonweal:stage-end:v1"
    TITLE = "a stage of a masked round ends"
    AUTHOR = "the coordinator"
    stage: Literal["advertise", "seal", "mask"]
    speakers: Names
