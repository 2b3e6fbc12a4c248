"""The sum of a masked round, from what the log has of it and the vectors: everybody can compute it.

    Σᵢ wᵢ dᵢ = Σᵢ yᵢ - Σᵢ self-masks of the survivors - Σ pair masks with those who dropped out      (mod 2^64)

Pair masks of two survivors cancel. All arithmetic is modulo 2^64, and the true sum is within ±2^63 by the bound on the
weights, so the bytes of the release are those of ``factor-mean`` over the same deltas. Pure.
"""

from collections.abc import Callable, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from commonweal_adapters.exact.weighted_sum import divide_half_even, store
from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.source import Chunk
from commonweal_adapters.secure import masks
from commonweal_adapters.secure.shamir import join
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.fold.masked_round import Masking
from commonweal_protocols.statements.rounds import Input
from commonweal_protocols.statements.values import Digest, Name


def unmask(masking: Masking, inputs: Sequence[Input], fetch: Callable[[Digest], bytes]) -> NDArray[np.int64]:
    """Return the sum of the survivors' weighted deltas as one vector: tensors by name, row by row.

    Args:
        masking: What the fold has let in.
        inputs: The survivors', with the weights that the fold holds them to.
        fetch: Returns a vector's bytes by their SHA-256; called once for each. Memory: the sum and one vector.

    Raises:
        BlobError: A vector is not what its entry says; shares do not give what their owner has committed to; too few
            were revealed; or the sum is out of the range that honest inputs have, which masks cannot say the cause of.
    """
    total = np.zeros(masking.vector_bytes // 8, np.uint64)
    for i in inputs:
        data = fetch(i.delta.sha256)
        if len(data) != i.delta.size_bytes or digest_of(data) != i.delta.sha256:
            raise BlobError(f"masked vector of {i.institution}: wanted sha256 {i.delta.sha256}, got {digest_of(data)}")
        total += np.frombuffer(data, "<u8")
        masks.add_stream(total, masks.self_seed(masking.context, _seed(masking, i.institution), i.institution), -1)
    for owner in sorted(masking.sealed.keys() - set(masking.survivors)):
        _take_off(masking, owner, total)
    values = total.view(np.int64)
    worst = max(int(values.max()), -int(values.min()))
    if worst > (bound := sum(i.weight for i in inputs) * LIMIT):
        raise BlobError(f"sum: wanted at most {bound}, got {worst}: some input is out of range, and masks hide whose")
    return values


def secure_mean(start: GridTensors, total: NDArray[np.int64], weight: int) -> GridTensors:
    """Return what ``factor-mean`` makes of the same deltas and weights: byte for byte the same release.

    Args:
        start: The round's start, of as many elements as the sum has.
        total: The sum.
        weight: Of all its inputs together.

    Raises:
        BlobError: A result beyond ±``LIMIT``.
    """
    merged = {name: np.empty(q.shape, np.int32) for name, q in start.items()}
    at = 0
    for name, q in sorted(start.items()):
        mean = divide_half_even(total[at : at + q.size], weight)
        store(merged, start, Chunk(name, 0, q.size), mean)
        at += q.size
    return GridTensors(merged)


def _secret(masking: Masking, owner: Name) -> bytes | None:
    """Join as many shares as the threshold says: the fold has checked all of them, so it does not matter which."""
    shares, wanted = masking.shares(owner), masking.threshold(owner)
    if len(shares) < wanted:
        raise BlobError(f"unmask: wanted {wanted} shares of {owner}, got {len(shares)}")
    return join({x: shares[x] for x in sorted(shares)[:wanted]})


def _seed(masking: Masking, owner: Name) -> bytes:
    seed = _secret(masking, owner)
    if seed is None or masking.context.seed_commitment(owner, seed) != masking.sealed[owner].seed_commitment:
        raise BlobError(f"{owner}: the shares that it has left do not give the seed that it has committed to")
    return seed


def _take_off(masking: Masking, owner: Name, total: NDArray[np.uint64]) -> None:
    """Subtract the pair masks that survivors have put on together with one who dropped out."""
    secret = _secret(masking, owner)
    key = X25519PrivateKey.from_private_bytes(secret) if secret else None
    if key is None or masks.public(key) != masking.advertised[owner].mask_key:
        raise BlobError(f"{owner}: the shares that it has left do not give the key that it has advertised")
    for name in masking.survivors:
        if owner in masking.partners(name):
            seed = masks.pair_seed(masking.context, key, masking.advertised[name].mask_key, name)
            masks.add_stream(total, seed, -1 if name < owner else 1)
