"""Error feedback: what an encoding leaves out of one update is added to the next (Seide 2014; Karimireddy 2019).

    wanted = delta + residual      sent = quantise(wanted)      new residual = wanted - sent

so that over rounds the sum of what was sent differs from the sum of the deltas by one residual, however coarse the
encoding is. All in integers on the grid, hence exact but for one thing: ``wanted`` and the residual saturate at ±2^24.

The residual says what an institution's rows taught that nobody has seen yet. It never leaves the node, and belongs to
one consortium's adapter: start a new one where the spec changes, or where rounds were left out for long.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.files.delta import LIMIT, GridTensors, read_delta, write_delta
from commonweal_adapters.files.encode import quantise, write_encoded
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_protocols.base.errors import BlobError, ConfigError
from commonweal_protocols.base.files import read_if_there, write_atomic
from commonweal_protocols.statements.compact import AdapterSpec
from commonweal_protocols.statements.delta_encoding import Encoding
from commonweal_protocols.statements.values import MAX_BLOB_BYTES


def encode_with_feedback(
    delta: GridTensors, residual: GridTensors, spec: AdapterSpec, encoding: Encoding
) -> tuple[bytes, GridTensors]:
    """Return the encoded delta's file, and the residual for the next round. Pure.

    Args:
        delta: What was trained; the spec's tensors, every integer in ±``LIMIT``.
        residual: What the last round left, of the same kind; :func:`no_residual` in the first one.
        spec: The consortium's one shape.
        encoding: The compact's.

    Raises:
        BlobError: Not the spec's tensors.
    """
    # int32 holds the sum of two such integers.
    wanted = GridTensors({name: _saturated(q + residual[name]) for name, q in delta.items()})
    sent = quantise(wanted, encoding)
    left = GridTensors({name: _saturated(q - sent[name]) for name, q in wanted.items()})
    return write_encoded(sent, spec, encoding), left


def _saturated(q: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.clip(q, -LIMIT, LIMIT)


def no_residual(spec: AdapterSpec) -> GridTensors:
    """Return the residual before the first round: zeros."""
    return GridTensors({name: np.zeros(shape, np.int32) for name, shape in tensor_shapes(spec).items()})


def load_residual(path: Path, spec: AdapterSpec) -> GridTensors:
    """Read the residual that the last round left; zeros where there is no file yet.

    Raises:
        ConfigError: It is of another spec, or damaged.
        StorageError: It cannot be read.
    """
    data = read_if_there(path, MAX_BLOB_BYTES, "a residual")
    if data is None:
        return no_residual(spec)
    try:
        return read_delta(data, spec)
    except BlobError as e:
        raise ConfigError(
            f"{path}: not a residual of this consortium's adapter: {e}; move it away to start anew"
        ) from e


def save_residual(path: Path, residual: GridTensors, spec: AdapterSpec) -> None:
    """Replace the residual's file (a delta file, mode 0600) in one step; durable on return.

    To be called before the update is submitted, with a path of its own for each round: a node continues from the
    residual of the round in which its newest logged update is. So no crash makes what was left out count twice, or not
    at all.

    Raises:
        BlobError: Not the spec's tensors.
        StorageError: The disk is full, or the folder cannot be written.
    """
    write_atomic(path, write_delta(residual, spec), mode=0o600)
