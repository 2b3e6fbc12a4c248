"""What every party computes again for itself: the first round's start, and each release from its logged inputs.

This module, as an object, is the ``Recompute`` of ``commonweal_protocols.audit.releases``. Coordinator, nodes and
auditors call the same functions, and anyone with the same records gets the same bytes. Blobs come through the caller's
``fetch`` and are checked here against their names. No clock, no randomness, no floats but in the file format.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.exact.gram import gram
from commonweal_adapters.exact.weighted_sum import to_micros
from commonweal_adapters.files.delta import (
    GridTensors,
    apply_delta,
    read_adapter,
    read_delta,
    write_adapter,
    write_delta,
)
from commonweal_adapters.files.encode import is_encoded, parse_encoding, read_encoded
from commonweal_adapters.files.lora_file import payload_bytes, slots
from commonweal_adapters.files.source import Delta, Spool
from commonweal_adapters.rules.merge import merge
from commonweal_adapters.rules.merge_error import error_micros, squared_error
from commonweal_adapters.rules.plural import distance_micros, diversity_micros
from commonweal_adapters.secure.masked_sum import secure_mean, unmask
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.fold.masked_round import Masking
from commonweal_protocols.statements.compact import AdapterSpec
from commonweal_protocols.statements.delta_encoding import Encoding
from commonweal_protocols.statements.rounds import Figures, Input, Release
from commonweal_protocols.statements.rules import AnyRule
from commonweal_protocols.statements.values import MAX_BLOB_BYTES, Blob, Digest

_DOMAIN = "urn:commonweal:start:v1"


def recompute_start(spec: AdapterSpec) -> bytes:
    """Return the first round's start: B = 0, and A uniform in ±1/√in_features on the grid.

    That is the distribution with which PEFT begins (kaiming_uniform with a = √5), made from integers only. For each
    A the SHAKE-256 stream of three lines, joined by line feeds without one at the end ("urn:commonweal:start:v1", the
    seed in decimal, the tensor's name), is cut into unsigned 64-bit little-endian words u, row by row, and

        q = u mod (2b + 1) - b,    b = isqrt(4^grid_bits // in_features) = ⌊2^grid_bits / √in_features⌋

    Since 2b + 1 ≤ 2^24 + 1, the remainder favours some q over others by less than 2^-39 of their probability.

    Raises:
        BlobError: The spec asks for more than a blob may have, or for a grid too coarse for any A but 0.
    """
    if (size := payload_bytes(spec)) > MAX_BLOB_BYTES:
        raise BlobError(f"adapter spec: wanted tensors of at most {MAX_BLOB_BYTES} bytes, got {size}")
    values: dict[str, NDArray[np.int32]] = {}
    for slot in slots(spec):
        bound = math.isqrt(4**spec.grid_bits // slot.in_features)
        if bound == 0:
            # With A = 0 and B = 0 both gradients are 0 for ever.
            raise BlobError(
                f"adapter spec: wanted grid_bits of at least {math.ceil(math.log2(slot.in_features) / 2)} "
                f"for {slot.in_features} in_features, got {spec.grid_bits}"
            )
        values[slot.name_a] = _uniform(spec.seed, slot.name_a, (spec.rank, slot.in_features), bound)
        values[slot.name_b] = np.zeros((slot.out_features, spec.rank), np.int32)
    return write_adapter(GridTensors(values), spec)


def _uniform(seed: int, name: str, shape: tuple[int, int], bound: int) -> NDArray[np.int32]:
    stream = hashlib.shake_256(f"{_DOMAIN}\n{seed}\n{name}".encode()).digest(8 * shape[0] * shape[1])
    q = (np.frombuffer(stream, "<u8") % np.uint64(2 * bound + 1)).astype(np.int32)
    q -= np.int32(bound)
    return q.reshape(shape)


def check_delta(data: bytes, spec: AdapterSpec, encoding: Encoding | None) -> None:
    """Check that bytes are a delta that can enter a merge, in the encoding that the compact asks for.

    Raises:
        BlobError: Not the spec's tensors, an integer out of range, or another encoding.
    """
    if encoding is None:
        read_delta(data, spec)
    else:
        read_encoded(data, spec, encoding)


def read_any_delta(data: bytes, spec: AdapterSpec) -> GridTensors:
    """Read a delta in whichever encoding it says it has: the grid is the same in all of them.

    Raises:
        BlobError: Not the spec's tensors, or an integer out of range.
    """
    if not is_encoded(data):
        return read_delta(data, spec)
    return read_encoded(data, spec, parse_encoding(data))


def recompute_trained(spec: AdapterSpec, start: bytes, delta: bytes) -> bytes:
    """Return the adapter file that a start and a delta of it make: what its author had before it took the difference.

    Raises:
        BlobError: Not the spec's tensors, or a sum out of range.
    """
    return write_adapter(apply_delta(read_adapter(start, spec), read_any_delta(delta, spec), spec), spec)


@dataclass(frozen=True, slots=True)
class Made:
    """What a rule makes of a round: the adapter file, what an outer optimiser keeps, and the figures of the merge."""

    adapter: bytes
    state: tuple[bytes, ...]
    figures: Figures


def merge_release(
    spec: AdapterSpec,
    start: Blob,
    rule: AnyRule,
    inputs: Sequence[Input],
    state: Sequence[Blob],
    fetch: Callable[[Digest], bytes],
    masking: Masking | None = None,
) -> Made:
    """Merge deltas by a rule.

    Args:
        spec: The consortium's one shape.
        start: The adapter from which all trained.
        rule: Weights are those that the inputs state, which is for the log's fold to check.
        inputs: In any order: it does not change a bit of the adapter.
        state: What the round before kept.
        fetch: Returns a blob's bytes by their SHA-256; called once for each blob, and each is let go before the next.
            Until the merge, deltas lie in a temporary file.
        masking: What the log has of a masked round, whose inputs are then masked vectors; the rule is ``factor-mean``.

    Raises:
        BlobError: A blob is not what its name or the spec says, the rule cannot be used with these inputs, the masks
            do not come off, or the result is out of range. ``fetch``'s own errors pass through.
    """
    begin = _read(f"start {start.sha256}", start, fetch, read_adapter, spec)
    if masking is not None:
        return _unmasked(spec, begin, inputs, masking, fetch)
    kept = [_read(f"state {s.sha256}", s, fetch, read_delta, spec) for s in state]
    with closing(Spool(spec)) as spool:
        deltas = _spooled(spool, spec, inputs, fetch)
        merged = merge(rule, spec, begin, deltas, round_seed=start.sha256, state=kept)
        error = squared_error(spec, begin, deltas, merged.adapter)
        figures = Figures(
            error_micros=None if error is None else error_micros(error),
            diversity_micros=diversity_micros(gram(begin, [d.rows for d in deltas])),
            counted_micros=merged.counted_micros,
        )
    return Made(write_adapter(merged.adapter, spec), tuple(write_delta(s, spec) for s in merged.state), figures)


def _unmasked(
    spec: AdapterSpec, begin: GridTensors, inputs: Sequence[Input], masking: Masking, fetch: Callable[[Digest], bytes]
) -> Made:
    weights = [i.weight for i in inputs]
    adapter = secure_mean(begin, unmask(masking, inputs, fetch), sum(weights))
    figures = Figures(error_micros=None, diversity_micros=None, counted_micros=to_micros(weights, sum(weights)))
    return Made(write_adapter(adapter, spec), (), figures)


def recompute_release(
    spec: AdapterSpec, release: Release, fetch: Callable[[Digest], bytes], masking: Masking | None = None
) -> Release:
    """Return a release with the adapter, the state and the figures that its logged inputs make.

    ``masking`` is the round's: None where it is not masked.

    Raises:
        BlobError: An input is not what its entry says, or the merge is not possible.
    """
    made = merge_release(spec, release.start, release.rule, release.inputs, release.state_before, fetch, masking)
    return release.model_copy(
        update={
            "adapter": _blob(made.adapter),
            "state_after": tuple(map(_blob, made.state)),
            "figures": made.figures,
        }
    )


def _blob(data: bytes) -> Blob:
    return Blob(sha256=digest_of(data), size_bytes=len(data))


def recompute_without(
    spec: AdapterSpec, release: Release, institution: str, fetch: Callable[[Digest], bytes]
) -> tuple[bytes, int]:
    """Return a release as it would be without one institution, and how far that is from what was published.

    The others keep the weights that they have in the release.

    Returns:
        The adapter file; and the L2 norm of the change in millionths of an adapter's unit, rounded down.

    Raises:
        BlobError: The institution is none of the inputs, or too few are left for the rule.
    """
    rest = [i for i in release.inputs if i.institution != institution]
    if len(rest) == len(release.inputs):
        names = ", ".join(i.institution for i in release.inputs)
        raise BlobError(f"institution: wanted one of {names}, got {institution}")
    data = merge_release(spec, release.start, release.rule, rest, release.state_before, fetch).adapter
    published = _read(f"adapter {release.adapter.sha256}", release.adapter, fetch, read_adapter, spec)
    return data, distance_micros(published, read_adapter(data, spec), spec.grid_bits)


def _spooled(spool: Spool, spec: AdapterSpec, inputs: Sequence[Input], fetch: Callable[[Digest], bytes]) -> list[Delta]:
    """Fetch, check and spool one delta after the other."""
    return [
        Delta(
            i.institution,
            i.weight,
            spool.keep(_read(f"delta {i.delta.sha256} of {i.institution}", i.delta, fetch, read_any_delta, spec)),
        )
        for i in inputs
    ]


def _read(
    what: str,
    blob: Blob,
    fetch: Callable[[Digest], bytes],
    parse: Callable[[bytes, AdapterSpec], GridTensors],
    spec: AdapterSpec,
) -> GridTensors:
    """Fetch a blob, hold its bytes to its name, and parse them."""
    data = fetch(blob.sha256)
    if len(data) != blob.size_bytes:
        raise BlobError(f"{what}: wanted {blob.size_bytes} bytes, got {len(data)}")
    if (got := digest_of(data)) != blob.sha256:
        raise BlobError(f"{what}: wanted sha256 {blob.sha256}, got {got}")
    try:
        return parse(data, spec)
    except BlobError as e:
        raise BlobError(f"{what}: {e}") from e
