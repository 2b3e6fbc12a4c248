"""What every party computes again for itself: the first round's start, and each release from its logged inputs.

This module, as an object, is the ``Recompute`` of ``commonweal_protocols.audit``. Coordinator, nodes and auditors call
the same functions, and whoever has the same records gets the same bytes. Blobs come through the caller's ``fetch`` and
are checked here against their names, whoever fetched them. No clock, no randomness, no floats but in the file format.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from commonweal_adapters.delta import GridTensors, read_adapter, read_delta, write_adapter, write_delta
from commonweal_adapters.gram import gram
from commonweal_adapters.lora_file import payload_bytes, slots
from commonweal_adapters.merge import merge
from commonweal_adapters.merge_error import error_micros, squared_error
from commonweal_adapters.plural import Interference, distance_micros, diversity_micros, interference
from commonweal_adapters.source import Delta, Spool
from commonweal_protocols import rules
from commonweal_protocols.canonical import digest_of
from commonweal_protocols.errors import BlobError
from commonweal_protocols.predicates import MAX_BLOB_BYTES, AdapterSpec, Blob, Digest, Input, Release, Rule
from commonweal_protocols.rules import AnyRule

_RULE: TypeAdapter[AnyRule] = TypeAdapter(rules.Rule)
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


def check_delta(data: bytes, spec: AdapterSpec) -> None:
    """Check that bytes are a delta that can enter a merge.

    Raises:
        BlobError: Not the spec's tensors, or an integer out of range.
    """
    read_delta(data, spec)


def merge_release(
    spec: AdapterSpec, start: Blob, rule: Rule | AnyRule, inputs: Sequence[Input], fetch: Callable[[Digest], bytes]
) -> bytes:
    """Merge deltas into an adapter file: the file of :func:`merge_round`."""
    return merge_round(spec, start, rule, inputs, fetch).adapter


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round's rule makes of its inputs."""

    adapter: bytes
    counted_micros: tuple[int, ...]
    """How much each input counted, in their order; see ``merge.Merged``."""
    state: tuple[bytes, ...]
    """Delta files that an outer optimiser keeps for the next round; empty for other rules."""


def merge_round(
    spec: AdapterSpec,
    start: Blob,
    rule: Rule | AnyRule,
    inputs: Sequence[Input],
    fetch: Callable[[Digest], bytes],
    state: Sequence[Blob] = (),
) -> Outcome:
    """Merge deltas by a rule.

    Args:
        spec: The consortium's one shape.
        start: The adapter from which all trained.
        rule: Weights are those that the inputs state, which is for the log's fold to check.
        inputs: In any order: it does not change a bit.
        fetch: Returns a blob's bytes by their SHA-256; called once for each blob, and each is let go before the next.
            Until the merge, deltas lie in a temporary file.
        state: What the round before kept.

    Raises:
        BlobError: A blob is not what its name or the spec says, the rule cannot be used with these inputs, or the
            result is out of range. ``fetch``'s own errors pass through.
    """
    begin = _read(f"start {start.sha256}", start, fetch, read_adapter, spec)
    kept = [_read(f"state {s.sha256}", s, fetch, read_delta, spec) for s in state]
    with closing(Spool(spec)) as spool:
        merged = merge(
            _RULE.validate_python(rule.model_dump()),
            spec,
            begin,
            _spooled(spool, spec, inputs, fetch),
            round_seed=start.sha256,
            state=kept,
        )
    return Outcome(
        write_adapter(merged.adapter, spec), merged.counted_micros, tuple(write_delta(s, spec) for s in merged.state)
    )


@dataclass(frozen=True, slots=True)
class Facts:
    """What is published beside a release, so that nobody has to trust a mean."""

    error_micros: int | None
    """How far the adapter is from the exact merge; see ``merge_error``. None where that is 0 and the adapter is not."""
    diversity_micros: int
    interference: Interference
    """Rows and columns in the order of the inputs."""


def release_facts(
    spec: AdapterSpec, start: Blob, inputs: Sequence[Input], adapter: Blob, fetch: Callable[[Digest], bytes]
) -> Facts:
    """Return a release's stated error, diversity and interference, from its logged inputs.

    Raises:
        BlobError: A blob is not what its name or the spec says. ``fetch``'s own errors pass through.
    """
    begin = _read(f"start {start.sha256}", start, fetch, read_adapter, spec)
    merged = _read(f"adapter {adapter.sha256}", adapter, fetch, read_adapter, spec)
    with closing(Spool(spec)) as spool:
        deltas = _spooled(spool, spec, inputs, fetch)
        error = squared_error(spec, begin, deltas, merged)
        rows = [d.rows for d in deltas]
        inner = gram(begin, rows)
        return Facts(
            None if error is None else error_micros(error), diversity_micros(inner), interference(begin, rows, inner)
        )


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
    data = merge_release(spec, release.start, release.rule, rest, fetch)
    published = _read(f"adapter {release.adapter.sha256}", release.adapter, fetch, read_adapter, spec)
    return data, distance_micros(published, read_adapter(data, spec), spec.grid_bits)


def _spooled(spool: Spool, spec: AdapterSpec, inputs: Sequence[Input], fetch: Callable[[Digest], bytes]) -> list[Delta]:
    """Fetch, check and spool one delta after the other."""
    return [
        Delta(
            i.institution,
            i.weight,
            spool.keep(_read(f"delta {i.delta.sha256} of {i.institution}", i.delta, fetch, read_delta, spec)),
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


def recompute_release(spec: AdapterSpec, release: Release, fetch: Callable[[Digest], bytes]) -> bytes:
    """Return the bytes that a release's adapter must have, from its logged inputs.

    Raises:
        BlobError: An input is not what its entry says, or the merge is not possible.
    """
    return merge_release(spec, release.start, release.rule, release.inputs, fetch)
