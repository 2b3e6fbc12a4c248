"""``commonweal adapter compress``: a delta in fewer bytes and back, and what that costs in precision."""

import math
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from commonweal_adapters.commands.inspection import load_sound
from commonweal_adapters.files.delta import GridTensors, make_delta, write_delta
from commonweal_adapters.files.encode import parse_encoding, payload_bytes, quantise, read_encoded, write_encoded
from commonweal_adapters.files.lora_file import payload_bytes as float32_bytes
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import BlobError, ConfigError
from commonweal_protocols.base.files import read_bounded, write_atomic
from commonweal_protocols.base.report import Report
from commonweal_protocols.statements.compact import AdapterSpec
from commonweal_protocols.statements.delta_encoding import Encoding
from commonweal_protocols.statements.values import MAX_BLOB_BYTES, Digest


class CompressReport(Report):
    """A delta, encoded or decoded. The error is ‖decoded - delta‖ / ‖delta‖; None where the delta is not at hand."""

    bits: int
    keep_millis: int = Field(title="share of elements kept")
    size_bytes: int
    float32_bytes: int = Field(title="size as float32")
    bits_per_element: float
    relative_error: float | None
    largest_error_steps: int | None = Field(title="largest error, grid steps")
    sha256: Digest


def encode_file(
    path: Path, start: Path | None, grid_bits: int, bits: int, keep_millis: int, out: Path
) -> CompressReport:
    """Encode a delta: a file of int32 as it is; or an adapter, of which ``start`` is taken away if it is given.

    Raises:
        ConfigError: A file cannot be read, or there is no encoding of so many bits.
        BlobError: One is no adapter, has problems, or another shape than the other.
        StorageError: The file cannot be written.
    """
    try:
        encoding = Encoding.model_validate({"bits": bits, "keep_millis": keep_millis})
    except ValidationError as e:
        raise ConfigError(f"--bits: wanted 4, 8 or 32, got {bits}") from e
    adapter = load_sound(path)
    spec = adapter.spec(grid_bits)
    delta = adapter.grid(grid_bits)
    if start is not None:
        delta = make_delta(load_sound(start).grid(grid_bits), delta, spec)
    left = quantise(delta, encoding)
    data = write_encoded(left, spec, encoding)
    write_atomic(out, data)
    return _report(spec, encoding, len(data), digest_of(data), delta, left)


def decode_file(path: Path, like: Path, grid_bits: int, out: Path) -> CompressReport:
    """Write the int32 delta file of an encoded delta: what a coordinator or an auditor merges.

    Args:
        path: The encoded delta.
        like: Any adapter or delta of the same shape: an encoded file does not say its own.
        grid_bits: Of the spec.
        out: The delta file.

    Raises:
        ConfigError: A file cannot be read.
        BlobError: The encoded delta is not in its one encoding, or of another shape than ``like``.
        StorageError: The file cannot be written.
    """
    spec = load_sound(like).spec(grid_bits)
    data = read_bounded(path, MAX_BLOB_BYTES, "an encoded delta", error=ConfigError, too_large=BlobError)
    try:
        encoding = parse_encoding(data)
        delta = read_encoded(data, spec, encoding)
    except BlobError as e:
        raise BlobError(f"{path}: {e}") from e
    plain = write_delta(delta, spec)
    write_atomic(out, plain)
    return _report(spec, encoding, len(data), digest_of(plain), None, delta)


def _report(
    spec: AdapterSpec, encoding: Encoding, size: int, sha256: Digest, before: GridTensors | None, after: GridTensors
) -> CompressReport:
    off = whole = 0.0
    largest = 0
    for name, q in before.items() if before else ():
        gap = q.astype(np.int64) - after[name]
        largest = max(largest, int(np.abs(gap).max()))
        off += float(np.sum(gap.astype(np.float64) ** 2))
        whole += float(np.sum(q.astype(np.float64) ** 2))
    elements = float32_bytes(spec) // 4
    return CompressReport(
        bits=encoding.bits,
        keep_millis=encoding.keep_millis,
        size_bytes=size,
        float32_bytes=float32_bytes(spec),
        bits_per_element=8 * payload_bytes(spec, encoding) / elements,
        relative_error=math.sqrt(off / whole) if whole else None,
        largest_error_steps=largest if before else None,
        sha256=sha256,
    )
