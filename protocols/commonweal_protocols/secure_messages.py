"""What the parties of a masked round say to each other: five signed messages, each a closed model in one spelling.

::

    advertisement   two fresh public keys
    sealed shares   for each holder a box with shares of two secrets, and what the shares must hash to
    masked input    the digest of a masked vector, its weight, and with whom it is masked
    confirmation    whose masked inputs a member has seen to be in
    reveal          for each owner one share: of the self-mask's seed if its input is in, of the mask key if not

A message is canonical JSON ``{"body": ..., "signature": hex}``; the institution's Ed25519 key signs the domain and the
canonical body, which names the consortium, the round's entry and the institution. The vectors lie outside. No I/O.
"""

from typing import Annotated, Literal, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, StringConstraints, ValidationError

from commonweal_protocols import canonical
from commonweal_protocols.closed import Closed
from commonweal_protocols.errors import MalformedError
from commonweal_protocols.keys import verify_signature
from commonweal_protocols.predicates import Blob, Count, Digest, Name, PublicKey

MAX_MESSAGE_BYTES = 1 << 18
"""400 boxes with their digests fit."""

_DOMAIN = b"urn:commonweal:secure-message:v1\n"

Box = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{164}$")]
"""Two shares and a tag: 2 · 33 + 16 bytes in hex."""
Share = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{66}$")]
"""A share of a secret: an integer below 2^256 + 297 in 33 bytes, big-endian, in hex."""


class Place(Closed):
    """Where a message belongs, and who says it."""

    consortium: Digest
    round_leaf: Digest
    institution: Name


class Advertisement(Closed):
    """Two X25519 public keys, made for this round alone: one for masks, one for boxes."""

    kind: Literal["advertisement"] = "advertisement"
    place: Place
    mask_key: Digest
    box_key: Digest


class SealedShare(Closed):
    """One holder's box, and the SHA-256 commitments to what is in it."""

    holder: Name
    box: Box
    mask_commitment: Digest
    self_commitment: Digest


class SealedShares(Closed):
    """Shares for each holder; ``advertised`` is the digest of the advertisements that the author has seen."""

    kind: Literal["sealed-shares"] = "sealed-shares"
    place: Place
    advertised: Digest
    seed_commitment: Digest
    shares: Annotated[tuple[SealedShare, ...], Field(min_length=1, max_length=401)]


class MaskedInput(Closed):
    """A masked vector: weight times delta, plus masks, modulo 2^64."""

    kind: Literal["masked-input"] = "masked-input"
    place: Place
    weight: Count
    partners: Annotated[tuple[Name, ...], Field(min_length=1, max_length=400)]
    """With whom it is masked: the neighbours whose sealed shares have come."""
    vector: Blob


class Confirmation(Closed):
    """Whose masked inputs are in, sorted: the only ones whose self-masks this member will help to take off."""

    kind: Literal["confirmation"] = "confirmation"
    place: Place
    survivors: Annotated[tuple[Name, ...], Field(min_length=1, max_length=400)]


class RevealedShare(Closed):
    """A share of one of an owner's two secrets."""

    owner: Name
    of: Literal["mask", "self"]
    share: Share


class Reveal(Closed):
    """For each owner whose shares this member holds, one share."""

    kind: Literal["reveal"] = "reveal"
    place: Place
    shares: Annotated[tuple[RevealedShare, ...], Field(min_length=1, max_length=401)]


Body = Advertisement | SealedShares | MaskedInput | Confirmation | Reveal
M = TypeVar("M", bound=Body)


class _Signed(Closed):
    body: Annotated[Body, Field(discriminator="kind")]
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]


def sign_message(body: Body, key: Ed25519PrivateKey) -> bytes:
    """Return a message's bytes, signed by its institution.

    Raises:
        MalformedError: Larger than a message may be.
    """
    signature = key.sign(_DOMAIN + canonical.encode(body.model_dump(mode="json")))
    data = canonical.encode({"body": body.model_dump(mode="json"), "signature": signature.hex()})
    if len(data) > MAX_MESSAGE_BYTES:
        raise MalformedError(f"secure message: wanted at most {MAX_MESSAGE_BYTES} bytes, got {len(data)}")
    return data


def open_message(data: bytes, kind: type[M], institution: Name, key: PublicKey) -> M:
    """Verify a message as one institution's, and return its body.

    Raises:
        MalformedError: Not the one spelling of such a message, or not that institution's.
        SignatureError: The signature does not hold.
    """
    canonical.parse(data, max_bytes=MAX_MESSAGE_BYTES)
    try:
        signed = _Signed.model_validate_json(data)
    except ValidationError as e:
        first = e.errors()[0]
        raise MalformedError(f"secure message: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e
    if not isinstance(signed.body, kind):
        raise MalformedError(f"secure message of {institution}: wanted a {kind.__name__}, got a {signed.body.kind}")
    verify_signature(
        key, bytes.fromhex(signed.signature), _DOMAIN + canonical.encode(signed.body.model_dump(mode="json"))
    )
    if signed.body.place.institution != institution:
        raise MalformedError(f"secure message: wanted {institution}'s, got {signed.body.place.institution}'s")
    return signed.body
