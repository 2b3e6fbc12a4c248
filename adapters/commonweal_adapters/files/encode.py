"""Deltas for a slow link: fewer elements, fewer bits, and still integers on the compact's grid.

What is lost is lost once, by the author, in :func:`quantise`. The file holds the integers that are left, exactly: every
reader gets the same int32 tensors, these are what the author signs for and what is merged, and so no proof changes.

*Elements.* Of a tensor's n elements the k = ``encoding.kept(n)`` largest in size are kept (ties: the lower index).
Their positions are an Elias-Fano code (Fano 1971; Elias 1974): with l = ⌊log₂(n/k)⌋ the low l bits of each position as
they are, then what is above in unary, k ones among k + ⌊(n - 1) / 2^l⌋ bits. About 2 + log₂(n/k) bits a position.

*Bits.* A tensor, row by row, falls into blocks of 64 · ⌊n/k⌋ elements. A block has one scale s, and each kept element
a code c in ±127 (8 bits) or ±7 (4 bits, two to a byte, the low half first) that stands for c · s grid steps.
With M the largest size in a block, s = ⌈M / 127⌉ or ⌈M / 7⌉ and |c · s - q| ≤ s / 2; where rounding up would pass
2^24, it rounds down, and the error is below s.

*The file.* A safetensors container of at most four arrays: ``scales``, ``codes``, and the ``high`` and ``low`` bits of
positions; each of them all tensors' parts, by tensor name, one after the other in whole bytes. Its metadata has the
encoding, and the SHA-256 of the tensors' names and shapes: their names would take more room than their values.

*One encoding.* The bytes of a tensor follow from its integers: a block's scale is their greatest common divisor (0
where all are 0); where fewer than k are not 0, the zeros at the lowest indices are listed too; unused bits are 0. Any
other encoding is refused. All sizes follow from the spec and the encoding, the header to the last byte, so a file can
ask for nothing. No I/O, no clock, no randomness.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.lora_file import spell_header, tensor_shapes
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec
from commonweal_protocols.statements.delta_encoding import Encoding

BLOCK = 64
"""Kept elements that share a scale, where they are spread evenly."""

_CODE_LIMIT = {4: 7, 8: 127, 32: LIMIT}
_CODES = {4: "U8", 8: "I8", 32: "I32"}
_NUMPY = {"U8": "u1", "I8": "i1", "I32": "<i4"}
_BEGINNING = re.compile(rb'.{8}\{"__metadata__":\{"delta":"bits=(4|8|32) keep_millis=([1-9][0-9]{0,3})",', re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What follows for one tensor from its size n and the encoding."""

    n: int
    bits: int
    k: int

    @property
    def low_bits(self) -> int:
        return (self.n // self.k).bit_length() - 1

    @property
    def span(self) -> int:
        """Elements of a block."""
        return BLOCK * (self.n // self.k)

    @property
    def blocks(self) -> int:
        return -(-self.n // self.span)

    def parts(self) -> dict[str, tuple[str, int]]:
        """Each array of the tensor: its dtype and how many items it has."""
        parts = {"scales": ("I32", self.blocks)} if self.bits < 32 else {}
        parts["codes"] = (_CODES[self.bits], -(-self.k // 2) if self.bits == 4 else self.k)
        if self.k < self.n:
            parts["high"] = ("U8", -(-(self.k + (self.n - 1 >> self.low_bits)) // 8))
            parts["low"] = ("U8", -(-self.k * self.low_bits // 8))
        return parts


def quantise(delta: GridTensors, encoding: Encoding) -> GridTensors:
    """Return the delta that an encoding can hold, near ``delta`` as the module says.

    Both have int32 tensors with every integer in ±``LIMIT``.
    """
    return GridTensors({name: _quantise(q, encoding).reshape(q.shape) for name, q in delta.items()})


def write_encoded(grid: GridTensors, spec: AdapterSpec, encoding: Encoding) -> bytes:
    """Return the file of a delta that :func:`quantise` has made.

    Raises:
        BlobError: Not the spec's tensors, or a value that this encoding cannot hold exactly.
    """
    plans = _plans(spec, encoding)
    if odd := sorted(plans.keys() ^ dict(grid.items()).keys()):
        raise BlobError(f"tensors: wanted {len(plans)}, got {len(grid.values)} ({ascii(odd[0])[:200]} is in one only)")
    parts: dict[str, list[bytes]] = {part: [] for part, _, _, _ in _layout(spec, encoding)}
    shapes = tensor_shapes(spec)
    for name, plan in plans.items():
        q = grid[name]
        if q.shape != shapes[name] or q.dtype != np.int32:
            raise BlobError(f"tensor {name}: wanted int32 {shapes[name]}, got {q.dtype} {q.shape}")
        for part, array in _spell(name, q.reshape(-1), plan).items():
            parts[part].append(array.tobytes())
    return b"".join([_header(spec, encoding), *itertools.chain.from_iterable(parts.values())])


def read_encoded(data: bytes, spec: AdapterSpec, encoding: Encoding) -> GridTensors:
    """Read an encoded delta: new int32 arrays of the spec's names and shapes, every integer in ±``LIMIT``.

    Memory: the delta, and beside it a few times its largest tensor.

    Raises:
        BlobError: Another header or size than the spec and the encoding give, an integer out of range, or another
            encoding of the same integers than :func:`write_encoded` gives.
    """
    header = _header(spec, encoding)
    size = len(header) + payload_bytes(spec, encoding)
    if len(data) != size:
        raise BlobError(f"encoded delta: wanted {size} bytes for this spec and {_label(encoding)}, got {len(data)}")
    if data[: len(header)] != header:
        odd = next(i for i, (a, b) in enumerate(zip(data, header, strict=False)) if a != b)
        raise BlobError(f"header: wanted that of this spec and {_label(encoding)}, got another from byte {odd} on")
    shapes = tensor_shapes(spec)
    values: dict[str, NDArray[np.int32]] = {}
    at = dict(_begins(spec, encoding, len(header)))
    for name, plan in _plans(spec, encoding).items():
        parts: dict[str, NDArray[np.generic]] = {}
        for part, (dtype, count) in plan.parts().items():
            parts[part] = np.frombuffer(memoryview(data)[at[part] :], _NUMPY[dtype], count)
            at[part] += parts[part].nbytes
        q = _decode(name, parts, plan)
        for part, again in _spell(name, q, plan).items():
            if again.tobytes() != parts[part].tobytes():
                raise BlobError(f"tensor {name}: its {part} are another encoding of the same integers")
        values[name] = q.reshape(shapes[name])
    return GridTensors(values)


def is_encoded(data: bytes) -> bool:
    """Whether a file begins as an encoded delta does; a plain one begins otherwise."""
    return _BEGINNING.match(data[:120]) is not None


def parse_encoding(data: bytes) -> Encoding:
    """Return the encoding that an encoded delta says it has; nothing else of the file is looked at.

    Raises:
        BlobError: It does not begin as an encoded delta does.
    """
    found = _BEGINNING.match(data[:120])
    if not found or int(found[2]) > 1000:
        raise BlobError(f"encoded delta: wanted a header that begins with its encoding, got {data[8:60]!a}")
    return Encoding.model_validate({"bits": int(found[1]), "keep_millis": int(found[2])})


def payload_bytes(spec: AdapterSpec, encoding: Encoding) -> int:
    """How many bytes the arrays of one encoded delta take, without its header."""
    return sum(size for _, _, _, size in _layout(spec, encoding))


# -- the container


def _plans(spec: AdapterSpec, encoding: Encoding) -> dict[str, _Plan]:
    """Every tensor, by name: the order in the file."""
    sizes = {name: a * b for name, (a, b) in sorted(tensor_shapes(spec).items())}
    return {name: _Plan(n, encoding.bits, encoding.kept(n)) for name, n in sizes.items()}


def _layout(spec: AdapterSpec, encoding: Encoding) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    every = [plan.parts() for plan in _plans(spec, encoding).values()]
    # A tensor of which all is kept at any rate lists no positions.
    for part in ("scales", "codes", "high", "low"):
        found = [parts[part] for parts in every if part in parts]
        if found:
            dtype, count = found[0][0], sum(n for _, n in found)
            yield part, dtype, (count,), count * np.dtype(_NUMPY[dtype]).itemsize


def _begins(spec: AdapterSpec, encoding: Encoding, at: int) -> Iterator[tuple[str, int]]:
    for part, _, _, size in _layout(spec, encoding):
        yield part, at
        at += size


def _label(encoding: Encoding) -> str:
    return f"bits={encoding.bits} keep_millis={encoding.keep_millis}"


def _header(spec: AdapterSpec, encoding: Encoding) -> bytes:
    lines = "".join(f"{name} {rows} {columns}\n" for name, (rows, columns) in sorted(tensor_shapes(spec).items()))
    metadata = {"delta": _label(encoding), "shapes": hashlib.sha256(lines.encode()).hexdigest()}
    return spell_header(_layout(spec, encoding), metadata)


# -- the arithmetic of one tensor


def _quantise(q: NDArray[np.int32], encoding: Encoding) -> NDArray[np.int32]:
    """Return the flat integers that are left of a tensor."""
    plan = _Plan(q.size, encoding.bits, encoding.kept(q.size))
    v = q.reshape(-1).copy()
    if plan.k < plan.n:
        _keep_largest(v, plan.k)
    if plan.bits == 32:
        return v
    limit = _CODE_LIMIT[plan.bits]
    blocks = _blocks(v, plan)
    scales = -(np.abs(blocks).max(axis=1, keepdims=True) // -limit)
    np.maximum(scales, 1, out=scales)
    # Half to even, and never wrong: a quotient that is no tie is at least 2^-23 away from one, and float64 sees 2^-45.
    codes = np.rint(blocks / scales).astype(np.int32)
    np.clip(codes, -(LIMIT // scales), LIMIT // scales, out=codes)
    codes *= scales
    left: NDArray[np.int32] = codes.reshape(-1)[: plan.n]
    return left


def _keep_largest(v: NDArray[np.int32], k: int) -> None:
    """Set all but the ``k`` largest in size to 0, in place."""
    size = np.abs(v)
    threshold = np.partition(size, v.size - k)[v.size - k]
    ties = np.flatnonzero(size == threshold)
    v[size < threshold] = 0
    # Of those at the threshold, the first ones fill what the larger ones leave.
    v[ties[k - np.count_nonzero(size > threshold) :]] = 0


def _blocks(v: NDArray[np.int32], plan: _Plan) -> NDArray[np.int32]:
    """The flat tensor in rows of one block each, the last one filled with zeros."""
    padded = np.zeros(plan.blocks * plan.span, np.int32)
    padded[: plan.n] = v
    return padded.reshape(plan.blocks, plan.span)


def _spell(name: str, v: NDArray[np.int32], plan: _Plan) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of flat integers, in the order of the file."""
    parts: dict[str, NDArray[np.generic]] = {}
    kept: NDArray[np.int32] = v
    at: NDArray[np.int64] = np.arange(plan.n)
    if plan.k < plan.n:
        at = _positions(name, v, plan)
        kept = v[at]
    if plan.bits < 32:
        scales = np.gcd.reduce(_blocks(v, plan), axis=1)
        kept = kept // np.maximum(scales, 1)[at // plan.span]
        parts["scales"] = scales.astype("<i4")
    limit = _CODE_LIMIT[plan.bits]
    if kept.min() < -limit or kept.max() > limit:
        worst = max(int(kept.max()), -int(kept.min()))
        raise BlobError(f"tensor {name}: wanted codes in ±{limit}, got {worst}; quantise it first")
    codes: NDArray[np.generic] = kept.astype(_NUMPY[_CODES[plan.bits]] if plan.bits > 4 else "i1")
    if plan.bits == 4:
        codes = _pack_halves(codes)
    if plan.k < plan.n:
        high, low = _pack_positions(at, plan)
        parts |= {"high": high, "low": low}
    return {part: ({"codes": codes} | parts)[part] for part in plan.parts()}


def _positions(name: str, v: NDArray[np.int32], plan: _Plan) -> NDArray[np.int64]:
    """The k indices that the file lists: all that hold no 0, and the first zeros."""
    found = np.flatnonzero(v)
    if found.size > plan.k:
        raise BlobError(f"tensor {name}: wanted at most {plan.k} values but 0, got {found.size}; quantise it first")
    # Among the first k indices there are zeros enough.
    zeros = np.flatnonzero(v[: plan.k] == 0)[: plan.k - found.size]
    return np.sort(np.concatenate([found, zeros]))


def _pack_positions(at: NDArray[np.int64], plan: _Plan) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    bits = np.zeros(plan.parts()["high"][1] * 8, np.uint8)
    bits[(at >> plan.low_bits) + np.arange(plan.k)] = 1
    low = (at[:, None] >> np.arange(plan.low_bits)) & 1
    return np.packbits(bits, bitorder="little"), np.packbits(low.astype(np.uint8).reshape(-1), bitorder="little")


def _unpack_positions(name: str, parts: dict[str, NDArray[np.generic]], plan: _Plan) -> NDArray[np.int64]:
    ones = np.flatnonzero(np.unpackbits(parts["high"].view(np.uint8), bitorder="little"))
    if ones.size != plan.k:
        raise BlobError(f"tensor {name}: wanted {plan.k} positions, got {ones.size}")
    low = np.unpackbits(parts["low"].view(np.uint8), count=plan.k * plan.low_bits, bitorder="little")
    at = (ones - np.arange(plan.k)) << plan.low_bits
    at |= low.reshape(plan.k, plan.low_bits).astype(np.int64) @ (1 << np.arange(plan.low_bits))
    if at.max() >= plan.n:
        raise BlobError(f"tensor {name}: wanted positions below {plan.n}, got {int(at.max())}")
    return at


def _pack_halves(codes: NDArray[np.generic]) -> NDArray[np.uint8]:
    halves = np.zeros(codes.size + codes.size % 2, np.uint8)
    halves[: codes.size] = codes.view(np.uint8) & 15
    halves[1::2] <<= 4
    return halves[0::2] | halves[1::2]


def _unpack_halves(packed: NDArray[np.generic], count: int) -> NDArray[np.int8]:
    halves = np.empty(packed.size * 2, np.uint8)
    halves[0::2] = packed.view(np.uint8) & 15
    halves[1::2] = packed.view(np.uint8) >> 4
    # From 4 bits in two's complement.
    return (halves[:count] ^ 8).view(np.int8) - np.int8(8)


def _decode(name: str, parts: dict[str, NDArray[np.generic]], plan: _Plan) -> NDArray[np.int32]:
    """Return the flat integers that arrays stand for; whether this was their one encoding is not checked."""
    at: NDArray[np.int64] | slice = _unpack_positions(name, parts, plan) if plan.k < plan.n else slice(None)
    codes = _unpack_halves(parts["codes"], plan.k) if plan.bits == 4 else parts["codes"]
    # int64, in which no product of a stranger's scale wraps.
    kept = codes.astype(np.int64)
    if plan.bits < 32:
        scales = parts["scales"].astype(np.int64)
        kept *= np.repeat(scales, plan.span)[: plan.n][at] if isinstance(at, slice) else scales[at // plan.span]
    if kept.min() < -LIMIT or kept.max() > LIMIT:
        worst = max(int(kept.max()), -int(kept.min()))
        raise BlobError(f"tensor {name}: wanted at most 2^24 = {LIMIT} grid steps, got {worst}")
    v = np.zeros(plan.n, np.int32)
    v[at] = kept
    return v
