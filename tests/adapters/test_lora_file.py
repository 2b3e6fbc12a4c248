"""Adapter files: one encoding written, read by the ``safetensors`` package, and nothing else of a stranger's let in."""

import importlib
import json
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from commonweal_adapters.files.lora_file import (
    payload_bytes,
    read_floats,
    read_ints,
    slots,
    tensor_shapes,
    write_tensors,
)
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule
from tests.kit.federation import TINY

SHAPES = tensor_shapes(TINY)
FIRST = min(SHAPES)
"""The first tensor in a written file."""
LAST = max(SHAPES)


def ints(seed: int = 0) -> dict[str, NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(-(2**31), 2**31, shape, dtype=np.int32) for name, shape in SHAPES.items()}


def floats(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Any bits at all, NaN among them: this layer does not look at values."""
    return {name: q.view(np.float32) for name, q in ints(seed).items()}


def same(one: dict[str, NDArray[Any]], two: dict[str, NDArray[Any]]) -> bool:
    return one.keys() == two.keys() and all(
        one[n].dtype == two[n].dtype and one[n].shape == two[n].shape and one[n].tobytes() == two[n].tobytes()
        for n in one
    )


def header(dtype: str = "I32") -> dict[str, Any]:
    """A good header, encoded from the format's description and not by our code."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in sorted(SHAPES):
        size = 4 * math.prod(SHAPES[name])
        entries[name] = {"dtype": dtype, "shape": list(SHAPES[name]), "data_offsets": [at, at + size]}
        at += size
    return entries


PAYLOAD = b"".join(ints()[name].astype("<i4").tobytes() for name in sorted(SHAPES))


def spell(entries: dict[str, Any] | bytes, payload: bytes = PAYLOAD) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + payload


# -- what is written, and what is read


def test_the_written_bytes_are_those_that_the_format_says() -> None:
    assert write_tensors(ints(), TINY) == spell(header("I32"))
    assert write_tensors(floats(), TINY) == spell(header("F32"))


@given(st.integers(0, 2**32))
def test_what_is_written_is_read_back_bit_for_bit(seed: int) -> None:
    assert same(read_ints(write_tensors(ints(seed), TINY), TINY), ints(seed))
    assert same(read_floats(write_tensors(floats(seed), TINY), TINY), floats(seed))


def test_the_safetensors_package_reads_what_we_write() -> None:
    assert same(safetensors.numpy.load(write_tensors(ints(), TINY)), ints())
    assert same(safetensors.numpy.load(write_tensors(floats(), TINY)), floats())


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_we_read_what_the_safetensors_package_writes(metadata: dict[str, str] | None) -> None:
    assert same(read_ints(safetensors.numpy.save(ints(), metadata), TINY), ints())
    assert same(read_floats(safetensors.numpy.save(floats(), metadata), TINY), floats())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers
def test_peft_takes_a_written_adapter_without_a_missing_or_unexpected_key() -> None:
    peft = pytest.importorskip("peft")
    torch_files = importlib.import_module("safetensors.torch")
    tiny = importlib.import_module("tests.kit.tiny_model")
    spec = AdapterSpec(
        rank=2,
        alpha=4,
        prefix="base_model.model.model.layers",
        layers=2,
        modules=(LoraModule(name="mlp.up_proj", in_features=32, out_features=64),),
    )
    adapter = tiny.random_adapter(spec, seed=1)
    model = tiny.peft_model(spec, tiny.random_adapter(spec, seed=2))
    result = peft.set_peft_model_state_dict(model, torch_files.load(write_tensors(adapter, spec)))
    assert result.unexpected_keys == []
    assert not [key for key in result.missing_keys if "lora_" in key]
    taken = peft.get_peft_model_state_dict(model)
    assert same({name: value.numpy() for name, value in taken.items()}, adapter)


OTHER_SPELLINGS: list[tuple[str, bytes]] = [
    ("another order in the header", spell(dict(reversed(header().items())))),
    ("white space", spell(json.dumps(header(), indent=1).encode())),
    ("no metadata", spell({k: v for k, v in header().items() if k != "__metadata__"})),
]


@pytest.mark.parametrize(("why", "data"), OTHER_SPELLINGS, ids=[w for w, _ in OTHER_SPELLINGS])
def test_other_writers_encodings_of_the_same_tensors_are_read(why: str, data: bytes) -> None:
    assert same(read_ints(data, TINY), ints())


def test_tensors_may_lie_in_any_order() -> None:
    entries, parts, at = header(), [], 0
    for name in sorted(SHAPES, reverse=True):
        part = ints()[name].tobytes()
        entries[name]["data_offsets"] = [at, at + len(part)]
        at += len(part)
        parts.append(part)
    assert same(read_ints(spell(entries, b"".join(parts)), TINY), ints())


def test_reading_copies_nothing_and_allows_no_writing() -> None:
    data = write_tensors(ints(), TINY)
    for q in read_ints(data, TINY).values():
        assert np.shares_memory(q, np.frombuffer(data, np.uint8))
        assert not q.flags.writeable


def test_one_list_of_slots_gives_names_shapes_and_sizes() -> None:
    m = TINY.modules[1]
    slot = slots(TINY)[3]
    assert slot.name_a == "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    assert slot.path == "model.layers.1.mlp.up_proj"
    assert SHAPES[slot.name_a] == (TINY.rank, m.in_features)
    assert SHAPES[slot.name_b] == (m.out_features, TINY.rank)
    assert tensor_shapes(TINY, rank=6)[slot.name_b] == (m.out_features, 6)
    assert payload_bytes(TINY) == len(PAYLOAD)


# -- what is refused


def edited(name: str, **changes: object) -> bytes:
    entries = header()
    entries[name].update(changes)
    return spell(entries)


def renamed(old: str, new: str) -> bytes:
    return spell({new if k == old else k: v for k, v in header().items()})


def repeated(name: str) -> bytes:
    text = json.dumps(header(), separators=(",", ":"))
    return spell((text[:-1] + f',"{name}":{json.dumps(header()[name])}}}').encode())


def raw(change: Callable[[bytes], bytes]) -> bytes:
    return spell(change(json.dumps(header(), separators=(",", ":")).encode()))


GOOD = spell(header())
END = header()[FIRST]["data_offsets"][1]
SECOND = sorted(SHAPES)[1]
BOTH = header()[SECOND]["data_offsets"]

MALFORMED: list[tuple[str, bytes, str]] = [
    ("empty", b"", "wanted at least the 8 bytes of the header's length, got 0"),
    ("no whole length", GOOD[:7], "wanted at least the 8 bytes of the header's length, got 7"),
    ("a header of 2^63 bytes", (2**63).to_bytes(8, "little") + GOOD[8:], f"got {2**63}"),
    ("a header far beyond what the spec needs", spell(raw(lambda h: h)[8:] + b" " * 10**6), "header: wanted a length"),
    ("a length that is not in eights", (9).to_bytes(8, "little") + GOOD[8:], "a multiple of 8, got 9"),
    ("cut off in the header", GOOD[:100], "cut off in its header"),
    ("cut off in the tensors", GOOD[:-1], f"wanted {len(GOOD)} bytes, got {len(GOOD) - 1}"),
    ("bytes after the last tensor", GOOD + b"\0", f"wanted {len(GOOD)} bytes, got {len(GOOD) + 1}"),
    ("a pickle", b"\x80\x04" + GOOD, "header: wanted a length"),
    ("no object", spell(b"[1,2]"), "wanted a JSON object"),
    ("a byte order mark", raw(lambda h: b"\xef\xbb\xbf" + h), "wanted a JSON object"),
    ("not UTF-8", raw(lambda h: h.replace(b"pt", b"\xff\xff")), "not JSON"),
    ("something after the object", raw(lambda h: h + b"{}"), "not JSON"),
    ("a zero byte as padding", raw(lambda h: h + b"\0"), "not JSON"),
    ("nested beyond reason", spell(b'{"a":' + b"[" * 1500), "not JSON"),
    ("a tensor twice", repeated(FIRST), "a key is repeated"),
    ("dtype twice", raw(lambda h: h.replace(b'"dtype":"I32"', b'"dtype":"I32","dtype":"I32"', 1)), "a key is repeated"),
    ("other metadata", spell(header() | {"__metadata__": {"format": "pt", "by": "me"}}), "as the metadata, or none"),
    ("metadata that is no object", spell(header() | {"__metadata__": []}), "as the metadata, or none"),
    ("a wrong name", renamed(FIRST, FIRST.replace("lora_A", "lora_C")), "is in one only"),
    ("a name that no log could hold", spell(header() | {"\ud800": header()[LAST]}), r"'\\ud800' is in one only"),
    ("a tensor too few", spell({k: v for k, v in header().items() if k != LAST}), "wanted 8, got 7"),
    ("a tensor too many", spell(header() | {"z": header()[LAST]}), "wanted 8, got 9"),
    ("float for int", edited(FIRST, dtype="F32"), "wanted dtype I32, got 'F32'"),
    ("a dtype that is no text", edited(FIRST, dtype=[4]), r"wanted dtype I32, got \[4\]"),
    ("10^9 rows", edited(FIRST, shape=[10**9, 4]), r"wanted shape \[2, 4\], got \[1000000000, 4\]"),
    ("transposed", edited(FIRST, shape=[4, 2]), r"wanted shape \[2, 4\], got \[4, 2\]"),
    ("flat", edited(FIRST, shape=[8]), r"wanted shape \[2, 4\], got \[8\]"),
    ("a shape with a fraction", raw(lambda h: h.replace(b"[2,4]", b"[2.0,4]", 1)), "wanted a whole number"),
    ("a negative number", raw(lambda h: h.replace(b"[2,4]", b"[-2,4]", 1)), "wanted a whole number"),
    ("a number of 5000 digits", raw(lambda h: h.replace(b"[2,4]", b"[" + b"9" * 400 + b",4]", 1)), "whole number"),
    ("NaN for a number", raw(lambda h: h.replace(b"[2,4]", b"[NaN,4]", 1)), "wanted a whole number"),
    ("false for 0", edited(FIRST, data_offsets=[False, END]), r"bytes apart, got \[False, "),
    ("an entry with another key", edited(FIRST, stride=[1]), "wanted dtype, shape and data_offsets"),
    ("an entry that is no object", spell(header() | {FIRST: 3}), "wanted dtype, shape and data_offsets, got 3"),
    ("offsets too far apart", edited(FIRST, data_offsets=[0, END + 4]), f"wanted data_offsets {END} bytes apart"),
    ("offsets the wrong way round", edited(FIRST, data_offsets=[END, 0]), f"wanted data_offsets {END} bytes apart"),
    ("one offset", edited(FIRST, data_offsets=[END]), f"wanted data_offsets {END} bytes apart"),
    ("overlapping offsets", edited(SECOND, data_offsets=[b - 4 for b in BOTH]), f"begin at {END}, .* got {END - 4}"),
    ("a hole", edited(SECOND, data_offsets=[b + 4 for b in BOTH]), f"begin at {END}, .* got {END + 4}"),
    ("beyond the file", edited(FIRST, data_offsets=[10**9, 10**9 + END]), f"begin at 0, .* got {END}"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "data", "message"), MALFORMED, ids=[w for w, _, _ in MALFORMED])
def test_a_malformed_file_is_refused_before_memory_is_taken(why: str, data: bytes, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BlobError, match=message) as e:
            read_ints(data, TINY)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 200_000
    # The sentence may become a rejection's reason in the log.
    assert str(e.value).isascii()


def test_the_table_starts_from_a_good_file() -> None:
    assert same(read_ints(GOOD, TINY), ints())


def test_true_is_not_taken_for_1() -> None:
    spec = TINY.model_copy(update={"rank": 1})
    data = write_tensors({name: np.zeros(shape, np.int32) for name, shape in tensor_shapes(spec).items()}, spec)
    assert data.count(b"[1,6]") == 2
    size = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + size].replace(b"[1,6]", b"[true,6]").rstrip()
    with pytest.raises(BlobError, match=r"wanted shape \[1, 6\], got \[True, 6\]"):
        read_ints(spell(text, data[8 + size :]), spec)


def test_an_int_file_is_no_adapter() -> None:
    with pytest.raises(BlobError, match="wanted dtype F32, got 'I32'"):
        read_floats(GOOD, TINY)


@settings(deadline=None)
@given(st.data())
def test_whatever_is_done_to_a_header_it_is_refused_or_reads_as_the_spec_says(data: st.DataObject) -> None:
    size = int.from_bytes(GOOD[:8], "little") + 8
    at = data.draw(st.integers(0, size - 1))
    cut = data.draw(st.integers(0, 8))
    new = data.draw(st.binary(max_size=8))
    try:
        read = read_ints(GOOD[:at] + new + GOOD[at + cut :], TINY)
    except BlobError:
        return
    assert {name: q.shape for name, q in read.items()} == SHAPES


WRONG_ARRAYS: list[tuple[str, Callable[[dict[str, NDArray[Any]]], object], str]] = [
    ("one missing", lambda t: t.pop(FIRST), "wanted 8, got 7"),
    ("one more", lambda t: t.update(x=t[FIRST]), "wanted 8, got 9"),
    ("transposed", lambda t: t.update({FIRST: t[FIRST].T}), "wanted int32"),
    ("float among ints", lambda t: t.update({LAST: t[LAST].view(np.float32)}), "wanted int32 .*, got float32"),
    ("int64", lambda t: t.update({k: v.astype(np.int64) for k, v in t.items()}), "float32 or int32, got int64"),
]


@pytest.mark.parametrize(("why", "change", "message"), WRONG_ARRAYS, ids=[w for w, _, _ in WRONG_ARRAYS])
def test_arrays_that_break_the_spec_are_not_written(
    why: str, change: Callable[[dict[str, NDArray[Any]]], object], message: str
) -> None:
    tensors: dict[str, NDArray[Any]] = dict(ints())
    change(tensors)
    with pytest.raises(BlobError, match=message):
        write_tensors(tensors, TINY)


def test_arrays_that_lie_in_another_order_in_memory_are_written_row_by_row() -> None:
    tensors = {name: np.asfortranarray(q) for name, q in ints().items()}
    assert write_tensors(tensors, TINY) == GOOD
