"""Adapter files: safetensors, read as if a stranger had sent them, and written in one encoding.

Layout: 8 bytes header length N (unsigned, little-endian), N bytes of JSON, then the tensors' bytes. Everything that
the header says is held against the consortium's spec before a tensor is looked at, and tensors are read-only views
into the caller's bytes: a file can neither ask for memory nor name anything that the spec does not have. Nothing is
ever unpickled. No I/O, no clock.

Written files do not depend on the version of the ``safetensors`` package: tensors sorted by name, compact JSON, the
header padded with spaces to a multiple of 8 bytes, as that package does it too.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec

PEFT_ROOT = "base_model.model."
"""What PEFT puts before the path of every module that it adapts."""

Dtype: TypeAlias = Literal["F32", "I32"]
"""The two element types of adapters and deltas, by their safetensors names; 4 bytes each."""

_NUMPY: dict[Dtype, str] = {"F32": "<f4", "I32": "<i4"}
_ITEM_BYTES = 4
_ALIGNMENT = 8
"""Of what a federation exchanges; safetensors files of anybody may begin their tensors anywhere."""
_MAX_AXES = 8
_METADATA = {"format": "pt"}
"""What PEFT expects of a file that torch will load."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One adapted layer: the names of its two tensors, its path in the base model, and its width on either side."""

    path: str
    name_a: str
    name_b: str
    in_features: int
    out_features: int


def slots(spec: AdapterSpec) -> tuple[Slot, ...]:
    """Every adapted layer, in the spec's order: by layer, then by module."""
    return tuple(
        Slot(
            path=f"{spec.prefix}.{layer}.{m.name}".removeprefix(PEFT_ROOT),
            name_a=f"{spec.prefix}.{layer}.{m.name}.lora_A.weight",
            name_b=f"{spec.prefix}.{layer}.{m.name}.lora_B.weight",
            in_features=m.in_features,
            out_features=m.out_features,
        )
        for layer in range(spec.layers)
        for m in spec.modules
    )


def tensor_shapes(spec: AdapterSpec, *, rank: int | None = None) -> dict[str, tuple[int, int]]:
    """Every tensor's name and shape: A is (rank, in_features), B is (out_features, rank).

    Args:
        spec: The consortium's one shape.
        rank: Of the adapter, where it is not the spec's (a blend has twice that).
    """
    r = spec.rank if rank is None else rank
    shapes: dict[str, tuple[int, int]] = {}
    for slot in slots(spec):
        shapes[slot.name_a] = (r, slot.in_features)
        shapes[slot.name_b] = (slot.out_features, r)
    return shapes


def payload_bytes(spec: AdapterSpec) -> int:
    """How many bytes the tensors of one file take, without its header."""
    return sum(_size(shape) for shape in tensor_shapes(spec).values())


def write_tensors(tensors: Mapping[str, NDArray[np.float32] | NDArray[np.int32]], spec: AdapterSpec) -> bytes:
    """Return a file's bytes.

    Args:
        tensors: All float32 or all int32, under the spec's names, in the spec's shapes.
        spec: The consortium's one shape.

    Raises:
        BlobError: A name, shape or dtype differs.
    """
    check_tensors(tensors, spec)
    dtype: Dtype = "F32" if next(iter(tensors.values())).dtype == np.float32 else "I32"
    parts = (np.ascontiguousarray(tensors[name], dtype=_NUMPY[dtype]).data for name in sorted(tensors))
    return b"".join([_header(spec, dtype), *parts])


def check_tensors(tensors: Mapping[str, NDArray[np.float32] | NDArray[np.int32]], spec: AdapterSpec) -> None:
    """Hold arrays to the spec's names and shapes, and to one dtype, float32 or int32.

    Raises:
        BlobError: A name, shape or dtype differs.
    """
    wanted = tensor_shapes(spec)
    if odd := sorted(wanted.keys() ^ tensors.keys()):
        raise BlobError(f"tensors: wanted {len(wanted)}, got {len(tensors)} ({_short(odd[0])} is in one only)")
    dtype = tensors[next(iter(wanted))].dtype
    if dtype not in (np.float32, np.int32):
        raise BlobError(f"tensors: wanted float32 or int32, got {dtype}")
    for name, shape in wanted.items():
        got = tensors[name]
        if got.shape != shape or got.dtype != dtype:
            raise BlobError(f"tensor {name}: wanted {dtype} {shape}, got {got.dtype} {got.shape}")


def read_floats(data: bytes, spec: AdapterSpec) -> dict[str, NDArray[np.float32]]:
    """Read a float32 file: read-only arrays over ``data``, in the spec's order. Values are not looked at.

    Raises:
        BlobError: Not exactly the spec's tensors, laid end to end.
    """
    views = _locate(data, spec, "F32")
    # On a little-endian machine these are the views themselves.
    return {name: _view(data, at, shape, "F32").astype(np.float32, copy=False) for name, (at, shape) in views.items()}


def read_ints(data: bytes, spec: AdapterSpec) -> dict[str, NDArray[np.int32]]:
    """Read an int32 file: read-only arrays over ``data``, in the spec's order. Values are not looked at.

    Raises:
        BlobError: Not exactly the spec's tensors, laid end to end.
    """
    views = _locate(data, spec, "I32")
    return {name: _view(data, at, shape, "I32").astype(np.int32, copy=False) for name, (at, shape) in views.items()}


# -- the header


def _size(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1] * _ITEM_BYTES


def spell_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file's length field and JSON, in the one encoding that we write.

    Args:
        tensors: Name, dtype, shape and size in bytes of each tensor, as they follow each other.
        metadata: What the file says of itself.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, dtype, shape, size in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    # Padded, so that the tensors are aligned in memory wherever the file is.
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _header(spec: AdapterSpec, dtype: Dtype) -> bytes:
    tensors = ((name, dtype, shape, _size(shape)) for name, shape in sorted(tensor_shapes(spec).items()))
    return spell_header(tensors, _METADATA)


def _parse_header(data: bytes, max_bytes: int, *, strict: bool) -> tuple[dict[str, object], int]:
    """Return the header's JSON object, and where the tensors begin; ``strict`` as a federation exchanges it."""
    step = _ALIGNMENT if strict else 1
    if len(data) < 8:
        raise BlobError(f"file: wanted at least the 8 bytes of the header's length, got {len(data)}")
    size = int.from_bytes(data[:8], "little")
    # Before anything of that size is copied or parsed.
    if size > max_bytes or size % step:
        raise BlobError(f"header: wanted a length of at most {max_bytes} bytes, a multiple of {step}, got {size}")
    if len(data) < 8 + size:
        raise BlobError(f"file: cut off in its header: wanted at least {8 + size} bytes, got {len(data)}")
    raw = data[8 : 8 + size]
    if (raw if strict else raw.lstrip(b" \t\r\n"))[:1] != b"{":
        raise BlobError(f"header: wanted a JSON object, got {raw[:20]!r}")
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_natural,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    # RecursionError: a few thousand "[" fit into any sensible bound.
    except (ValueError, RecursionError) as e:
        raise BlobError(f"header: not JSON: {e}") from e
    return value, 8 + size


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise BlobError("header: a key is repeated")
    return value


def _natural(text: str) -> int:
    if text.startswith("-") or len(text) > 19:
        _no_number(text)
    return int(text)


def _no_number(text: str) -> NoReturn:
    raise BlobError(f"header: wanted a whole number below 10^19, got {text[:40]!r}")


def _locate(data: bytes, spec: AdapterSpec, dtype: Dtype) -> dict[str, tuple[int, tuple[int, int]]]:
    """Check a whole file but for its values; return where in ``data`` each tensor begins, and its shape."""
    wanted = tensor_shapes(spec)
    # Twice our own encoding leaves room for another writer's white space, and none for a bomb.
    entries, begin = _parse_header(data, 2 * len(_header(spec, dtype)), strict=True)
    if entries.pop("__metadata__", _METADATA) != _METADATA:
        raise BlobError(f"header: wanted {_METADATA} as the metadata, or none")
    if odd := sorted(wanted.keys() ^ entries.keys()):
        raise BlobError(f"tensors: wanted {len(wanted)}, got {len(entries)} ({_short(odd[0])} is in one only)")
    found: dict[str, tuple[int, tuple[int, int]]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, shape in wanted.items():
        start, end = _check_entry(name, entries[name], shape, dtype)
        spans.append((start, end, name))
        found[name] = (begin + start, shape)
    _check_spans(spans, begin, len(data))
    return found


def _check_spans(spans: list[tuple[int, int, str]], begin: int, size: int) -> None:
    """Hold tensors to lie end to end, from the header to the file's last byte."""
    at = 0
    for start, end, name in sorted(spans):
        if start != at:
            raise BlobError(f"tensor {_short(name)}: wanted to begin at {at}, where the last one ends, got {start}")
        at = end
    if size != begin + at:
        raise BlobError(f"file: wanted {begin + at} bytes, got {size}")


class Span(NamedTuple):
    """Where one tensor of a file lies, which nobody has named before."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """From the file's first byte on."""


def parse_layout(data: bytes, item_bytes: Mapping[str, int], max_header_bytes: int) -> dict[str, Span]:
    """Check a file whose spec is not known, but for its values; return where each tensor lies.

    Args:
        data: The whole file.
        item_bytes: The dtypes that are taken, and the size of an element of each.
        max_header_bytes: The largest header that is parsed.

    Raises:
        BlobError: Not a safetensors file of such tensors, at least one, laid end to end.
    """
    entries, begin = _parse_header(data, max_header_bytes, strict=False)
    if not isinstance(entries.pop("__metadata__", {}), dict) or not entries:
        raise BlobError("header: wanted tensors, and an object as the metadata, or none")
    found: dict[str, Span] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise BlobError(f"tensor {_short(name)}: wanted dtype, shape and data_offsets, got {_short(entry)}")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in item_bytes:
            raise BlobError(f"tensor {_short(name)}: wanted dtype {', '.join(item_bytes)}, got {_short(dtype)}")
        if not _naturals(shape) or not 1 <= len(shape) <= _MAX_AXES or 0 in shape:
            raise BlobError(f"tensor {_short(name)}: wanted a shape of 1 to {_MAX_AXES} axes, got {_short(shape)}")
        # In Python's integers, in which no product wraps.
        size = math.prod(shape) * item_bytes[dtype]
        if not _naturals(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != size:
            raise BlobError(f"tensor {_short(name)}: wanted data_offsets {size} bytes apart, got {_short(offsets)}")
        spans.append((offsets[0], offsets[1], name))
        found[name] = Span(dtype, tuple(shape), begin + offsets[0])
    _check_spans(spans, begin, len(data))
    return found


def _check_entry(name: str, entry: object, shape: tuple[int, int], dtype: Dtype) -> tuple[int, int]:
    """Hold one tensor's entry to the spec; return where its bytes begin and end."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BlobError(f"tensor {name}: wanted dtype, shape and data_offsets, got {_short(entry)}")
    if entry["dtype"] != dtype:
        raise BlobError(f"tensor {name}: wanted dtype {dtype}, got {_short(entry['dtype'])}")
    if not _naturals(entry["shape"]) or entry["shape"] != list(shape):
        raise BlobError(f"tensor {name}: wanted shape {list(shape)}, got {_short(entry['shape'])}")
    offsets = entry["data_offsets"]
    if not _naturals(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != _size(shape):
        raise BlobError(f"tensor {name}: wanted data_offsets {_size(shape)} bytes apart, got {_short(offsets)}")
    return offsets[0], offsets[1]


def _short(value: object) -> str:
    """A stranger's value, fit for a sentence that may enter the log: plain ASCII, and not long."""
    try:
        return ascii(value)[:200]
    except RecursionError:
        return "a deeply nested value"


def _naturals(value: object) -> bool:
    # To Python true is 1, and JSON has it.
    return isinstance(value, list) and all(type(n) is int for n in value)


def _view(data: bytes, at: int, shape: tuple[int, int], dtype: Dtype) -> NDArray[np.generic]:
    return np.frombuffer(data, _NUMPY[dtype], count=shape[0] * shape[1], offset=at).reshape(shape)
