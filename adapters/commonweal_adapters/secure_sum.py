"""The sum of a masked round, from its messages and vectors: what the coordinator computes and everybody can again.

    Σᵢ wᵢ dᵢ = Σᵢ yᵢ - Σᵢ self-masks of the survivors - Σ pair masks with those who dropped out      (mod 2^64)

Pair masks of two survivors cancel. All arithmetic is modulo 2^64, and the true sum is within ±2^63 by the bound on the
weights, so the bytes of the release are those of ``factor-mean`` over the same deltas. Pure.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from commonweal_adapters import secure_masks as masks
from commonweal_adapters.aggregate import divide_half_even, store
from commonweal_adapters.delta import LIMIT, GridTensors
from commonweal_adapters.secure_round import (
    Advertised,
    SecureRound,
    verify_advertisements,
    verify_masked,
    verify_reveals,
    verify_sealed,
)
from commonweal_adapters.shamir import join
from commonweal_adapters.source import Chunk
from commonweal_protocols.canonical import digest_of
from commonweal_protocols.errors import BlobError, RuleError
from commonweal_protocols.predicates import Digest, Name
from commonweal_protocols.secure_messages import MaskedInput, Reveal, SealedShares


@dataclass(frozen=True, slots=True)
class Transcript:
    """All that a sum follows from, by stage and institution."""

    advertisements: Mapping[Name, bytes]
    sealed: Mapping[Name, bytes]
    masked: Mapping[Name, bytes]
    reveals: Mapping[Name, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class SecureSum:
    """Σ wᵢ dᵢ as one int64 vector (tensors by name, row by row), and who stands in it."""

    values: NDArray[np.int64]
    weights: Mapping[Name, int]
    dropped: tuple[Name, ...]
    """Who left shares and gave no input."""


def unmask(round_: SecureRound, transcript: Transcript, fetch: Callable[[Digest], bytes]) -> SecureSum:
    """Return the sum of the survivors' weighted deltas.

    Args:
        round_: The round.
        transcript: Its messages, none of them verified.
        fetch: Returns a vector's bytes by their SHA-256; called once for each. Memory: the sum and one vector.

    Raises:
        PeerError: A message, a vector or a share is not what it should be, and says whose; too few shares of an owner
            were revealed; or the sum is out of the range that honest inputs have, which masks cannot say the cause of.
    """
    advertised = verify_advertisements(round_, transcript.advertisements)
    sealed = verify_sealed(round_, advertised, transcript.sealed)
    masked = verify_masked(round_, advertised, sealed, transcript.masked)
    shares = _shares(round_, advertised, sealed, masked, verify_reveals(round_, transcript.reveals))
    total = np.zeros(round_.elements, np.uint64)
    for name, body in masked.items():
        data = fetch(body.vector.sha256)
        if len(data) != body.vector.size_bytes or digest_of(data) != body.vector.sha256:
            raise BlobError(f"masked vector of {name}: wanted sha256 {body.vector.sha256}, got {digest_of(data)}")
        total += np.frombuffer(data, "<u8")
        seed = _secret(round_, advertised, shares[name], name)
        if seed is None or masks.seed_commitment(round_.context, name, seed) != sealed[name].seed_commitment:
            raise RuleError(f"{name}: the shares that it has left do not give the seed that it has committed to")
        masks.add_stream(total, masks.self_seed(round_.context, seed, name), -1)
    dropped = tuple(name for name in sealed if name not in masked)
    for name in dropped:
        _take_off(round_, advertised, masked, name, _secret(round_, advertised, shares[name], name), total)
    values = total.view(np.int64)
    weights = {name: body.weight for name, body in masked.items()}
    worst = max(int(values.max()), -int(values.min()))
    if worst > (bound := sum(weights.values()) * LIMIT):
        raise BlobError(f"sum: wanted at most {bound}, got {worst}: some input is out of range, and masks hide whose")
    return SecureSum(values, weights, dropped)


def secure_mean(start: GridTensors, total: SecureSum) -> GridTensors:
    """Return what ``factor-mean`` makes of the same deltas and weights: byte for byte the same release.

    Args:
        start: The round's start, of as many elements as the sum has.
        total: The sum.

    Raises:
        BlobError: A result beyond ±``LIMIT``.
    """
    weight = sum(total.weights.values())
    merged = {name: np.empty(q.shape, np.int32) for name, q in start.items()}
    at = 0
    for name, q in sorted(start.items()):
        mean = divide_half_even(total.values[at : at + q.size], weight)
        store(merged, start, Chunk(name, 0, q.size), mean)
        at += q.size
    return GridTensors(merged)


def _shares(
    round_: SecureRound,
    advertised: Advertised,
    sealed: Mapping[Name, SealedShares],
    masked: Mapping[Name, MaskedInput],
    reveals: Mapping[Name, Reveal],
) -> dict[Name, dict[int, bytes]]:
    """Each owner's revealed shares by x, every one checked against the owner's commitment."""
    shares: dict[Name, dict[int, bytes]] = {owner: {} for owner in sealed}
    for holder, reveal in reveals.items():
        for revealed in reveal.shares:
            owner, wanted = revealed.owner, "self" if revealed.owner in masked else "mask"
            if owner not in sealed or holder not in (holders := advertised.holders(owner)):
                raise RuleError(f"{holder}: holds no share of {owner}")
            if revealed.of != wanted:
                raise RuleError(f"{holder}: wanted its share of {owner}'s {wanted} secret, got the other")
            left = sealed[owner].shares[holders.index(holder)]
            commitment = left.self_commitment if wanted == "self" else left.mask_commitment
            share = bytes.fromhex(revealed.share)
            if masks.share_commitment(round_.context, owner, holder, revealed.of, share) != commitment:
                raise RuleError(f"{holder}: its share of {owner} is not the one that {owner} has sealed for it")
            shares[owner][holders.index(holder) + 1] = share
    return shares


def _secret(round_: SecureRound, advertised: Advertised, shares: Mapping[int, bytes], owner: Name) -> bytes | None:
    """Join as many shares as the threshold says: all of them were checked, so it does not matter which."""
    wanted = round_.terms.threshold(len(advertised.holders(owner)))
    if len(shares) < wanted:
        raise RuleError(
            f"unmask: wanted {wanted} shares of {owner}, got {len(shares)}; wait for more, or end the round"
        )
    return join({x: shares[x] for x in sorted(shares)[:wanted]})


def _take_off(
    round_: SecureRound,
    advertised: Advertised,
    masked: Mapping[Name, MaskedInput],
    owner: Name,
    secret: bytes | None,
    total: NDArray[np.uint64],
) -> None:
    """Subtract the pair masks that survivors have put on together with one who dropped out."""
    key = X25519PrivateKey.from_private_bytes(secret) if secret else None
    if key is None or masks.public(key) != advertised.keys[owner].mask_key:
        raise RuleError(f"{owner}: the shares that it has left do not give the key that it has advertised")
    for name, body in masked.items():
        if owner in body.partners:
            seed = masks.pair_seed(round_.context, key, advertised.keys[name].mask_key, name)
            masks.add_stream(total, seed, -1 if name < owner else 1)


def explain(round_: SecureRound, total: SecureSum) -> str:
    """Return, for people, what an audit of this sum has proved and what nobody can prove of a masked round."""
    survivors, weight = sorted(total.weights), sum(total.weights.values())
    lines = [
        f"proved: each of {', '.join(survivors)} signed one input, of weight "
        + ", ".join(str(total.weights[name]) for name in survivors)
        + f"; together {weight}",
        f"proved: left out: {', '.join(total.dropped) or 'nobody'} (dropped out after leaving shares), "
        f"{', '.join(sorted(round_.members.keys() - total.weights.keys() - set(total.dropped))) or 'nobody'} (before)",
        "proved: the sum is that of exactly these inputs, and the release is its mean: anybody re-computes both",
        "proved: each share that took a mask off is the one that its owner sealed",
        "hidden: each single delta, from everybody with fewer than "
        f"{round_.terms.threshold(min(len(round_.members), round_.terms.neighbours + 1))} of its holders' help",
        "not provable: that an input was in range, within a norm, or trained at all",
        "not possible: to reject one update, robust rules, a member's influence, diversity and interference figures",
    ]
    return "\n".join(lines)
