"""Adapters of the world: what PEFT writes is read, what no consortium could take is named, the rest is refused."""

import importlib
import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from commonweal_adapters.files.delta import from_grid, to_grid, write_adapter, write_delta
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_adapters.files.peft_files import CONFIG, WEIGHTS, find_spec, load_adapter, save_adapter
from commonweal_protocols.base.errors import BlobError, ConfigError
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule
from tests.kit.encodings import delta, equal
from tests.kit.federation import TINY

SHAPES = tensor_shapes(TINY)
NAME = min(SHAPES)
BITS = TINY.grid_bits
GOOD_CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "hub/base", "lora_dropout": 0.1}


def floats(seed: int = 1) -> dict[str, NDArray[Any]]:
    return {**from_grid(delta(seed, TINY), BITS)}


def folder(path: Path, tensors: dict[str, NDArray[Any]] | bytes, config: object = GOOD_CONFIG) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    data = tensors if isinstance(tensors, bytes) else safetensors.numpy.save(tensors)
    (path / WEIGHTS).write_bytes(data)
    (path / CONFIG).write_text(json.dumps(config))
    return path


def test_a_folder_is_read_and_its_spec_is_found(tmp_path: Path) -> None:
    adapter = load_adapter(folder(tmp_path, floats()))
    assert adapter.problems == ()
    # Modules are sorted by name: a file does not say in which order a compact lists them.
    wanted = TINY.model_copy(update={"modules": tuple(sorted(TINY.modules, key=lambda m: m.name)), "seed": 0})
    assert adapter.spec(BITS) == wanted
    assert equal(adapter.grid(BITS), delta(1, TINY))


def test_what_is_saved_is_loaded_and_peft_finds_what_it_wants(tmp_path: Path) -> None:
    save_adapter(tmp_path / "new/folder", TINY, delta(1, TINY), "hub/base")
    adapter = load_adapter(tmp_path / "new/folder")
    assert equal(adapter.grid(BITS), delta(1, TINY))
    assert adapter.config
    assert (adapter.config.r, adapter.config.lora_alpha, adapter.config.base_model_name_or_path) == (2, 4, "hub/base")
    peft = pytest.importorskip("peft")
    config = peft.PeftConfig.from_pretrained(str(tmp_path / "new/folder"))
    assert config.target_modules == {
        n[len("base_model.model.") : -len(".lora_A.weight")] for n in SHAPES if "lora_A" in n
    }
    assert config.lora_alpha / config.r == TINY.alpha / TINY.rank


def test_float16_is_read_exactly(tmp_path: Path) -> None:
    halves = {n: x.astype(np.float16) for n, x in floats().items()}
    adapter = load_adapter(folder(tmp_path, halves))
    assert adapter.dtypes == ("F16",)
    assert all(np.array_equal(adapter.tensors[n], x.astype(np.float32)) for n, x in halves.items())


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch_files = importlib.import_module("safetensors.torch")
    halves = {n: torch.from_numpy(x).to(torch.bfloat16) for n, x in floats().items()}
    adapter = load_adapter(folder(tmp_path, torch_files.save(halves)))
    assert adapter.dtypes == ("BF16",)
    assert all(np.array_equal(adapter.tensors[n], x.to(torch.float32).numpy()) for n, x in halves.items())


def test_a_release_file_and_a_delta_file_are_read_without_a_folder(tmp_path: Path) -> None:
    (tmp_path / "release").write_bytes(write_adapter(delta(1, TINY), TINY))
    (tmp_path / "delta").write_bytes(write_delta(delta(1, TINY), TINY))
    release, found = load_adapter(tmp_path / "release"), load_adapter(tmp_path / "delta")
    assert (release.is_delta, found.is_delta, release.config) == (False, True, None)
    assert release.spec(BITS).alpha == TINY.rank, "unknown: a scaling of one"
    assert equal(release.grid(BITS), delta(1, TINY))
    assert equal(found.grid(BITS), delta(1, TINY))
    assert equal(found.grid(8), delta(1, TINY))


def changed(**values: float) -> dict[str, NDArray[Any]]:
    tensors = floats()
    tensors[NAME] = tensors[NAME].copy()
    tensors[NAME][0, 0] = values["at"]
    return tensors


PROBLEMS: list[tuple[str, dict[str, NDArray[Any]], object, str]] = [
    ("not a number", changed(at=math.nan), GOOD_CONFIG, "1 values are not finite"),
    ("infinite", changed(at=math.inf), GOOD_CONFIG, "1 values are not finite"),
    ("infinite downwards", changed(at=-math.inf), GOOD_CONFIG, "1 values are not finite"),
    ("subnormal", changed(at=1e-40), GOOD_CONFIG, "1 values are subnormal"),
    ("DoRA", floats(), {**GOOD_CONFIG, "use_dora": True}, "use_dora: wanted False, got True"),
    ("biases", floats(), {**GOOD_CONFIG, "bias": "all"}, "bias: wanted 'none', got 'all'"),
    ("ranks by name", floats(), {**GOOD_CONFIG, "rank_pattern": {"q": 4}}, "rank_pattern: wanted {}"),
]


@pytest.mark.parametrize(("why", "tensors", "config", "problem"), PROBLEMS, ids=[p[0] for p in PROBLEMS])
def test_what_no_consortium_could_take_is_named(
    tmp_path: Path, why: str, tensors: dict[str, NDArray[Any]], config: object, problem: str
) -> None:
    (said,) = load_adapter(folder(tmp_path, tensors, config)).problems
    assert problem in said


NOT_LORA: list[tuple[str, object, str]] = [
    ("another method", {**GOOD_CONFIG, "peft_type": "IA3"}, "wanted peft_type LORA, got 'IA3'"),
    ("no rank", {"peft_type": "LORA", "lora_alpha": 1}, "r: Field required"),
    ("rank 0", {**GOOD_CONFIG, "r": 0}, "r: Input should be greater"),
    ("alpha that is not a number", {**GOOD_CONFIG, "lora_alpha": math.nan}, "lora_alpha: "),
    ("no object", [1], "wanted a JSON object, got another value"),
]


@pytest.mark.parametrize(("why", "config", "message"), NOT_LORA, ids=[n[0] for n in NOT_LORA])
def test_a_configuration_that_is_not_loras_is_refused(tmp_path: Path, why: str, config: object, message: str) -> None:
    with pytest.raises(BlobError, match=f"{CONFIG}: .*{message}"):
        load_adapter(folder(tmp_path, floats(), config))


def test_a_folder_without_an_adapter_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{WEIGHTS}: wanted an adapter's file, got no such file"):
        load_adapter(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(safetensors.numpy.save(floats()))
    with pytest.raises(ConfigError, match=f"{CONFIG}: wanted an adapter's file, got no such file"):
        load_adapter(tmp_path)


def header(change: Callable[[dict[str, Any]], object], data: bytes | None = None) -> bytes:
    data = safetensors.numpy.save(floats()) if data is None else data
    size = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + size])
    change(entries)
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def entry(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda entries: entries[NAME].update(changes)


MALFORMED: list[tuple[str, bytes, str]] = [
    ("empty", b"", "wanted at least the 8 bytes"),
    ("a header of 2^62 bytes", (1 << 62).to_bytes(8, "little") + b"{}", "wanted a length of at most"),
    ("no tensors", header(lambda e: e.clear()), "wanted tensors"),
    ("metadata that is no object", header(lambda e: e.update(__metadata__=3)), "an object as the metadata"),
    ("10^9 rows", header(entry(shape=[10**9, 4])), "wanted data_offsets 16000000000 bytes apart"),
    ("a shape whose product wraps", header(entry(shape=[1 << 32, 1 << 32])), r"wanted data_offsets 7378\d{16} "),
    ("no rows", header(entry(shape=[0, 4])), "wanted a shape of 1 to 8 axes"),
    ("a shape without axes", header(entry(shape=[])), "wanted a shape of 1 to 8 axes"),
    ("a shape of a hundred axes", header(entry(shape=[1] * 100)), "wanted a shape of 1 to 8 axes"),
    ("true for 1", header(entry(shape=[True, 8])), "wanted a shape of 1 to 8 axes"),
    ("64-bit floats", header(entry(dtype="F64")), "wanted dtype F32, F16, BF16, I32, got 'F64'"),
    ("a dtype that is no text", header(entry(dtype=[])), "wanted dtype"),
    ("overlapping offsets", header(entry(data_offsets=[4, 36])), "where the last one ends"),
    ("offsets beyond the file", header(entry(data_offsets=[10**9, 10**9 + 32])), "where the last one ends"),
    ("one offset", header(entry(data_offsets=[0])), "bytes apart"),
    ("another key", header(entry(stride=1)), "wanted dtype, shape and data_offsets"),
    ("an entry that is no object", header(lambda e: e.update({NAME: 1})), "shape and data_offsets, got 1"),
    ("cut off", safetensors.numpy.save(floats())[:-1], r"wanted \d+ bytes, got \d+"),
    ("ints among floats", safetensors.numpy.save({**floats(), NAME: delta(1, TINY)[NAME]}), "wanted floats, or int32"),
    ("integers beyond a grid", safetensors.numpy.save({NAME: np.full((2, 4), -(2**31), np.int32)}), "got 2147483648"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "data", "message"), MALFORMED, ids=[m[0] for m in MALFORMED])
def test_a_file_that_is_no_adapter_is_refused_before_memory_is_taken(
    tmp_path: Path, why: str, data: bytes, message: str
) -> None:
    folder(tmp_path, data)
    tracemalloc.start()
    try:
        with pytest.raises(BlobError, match=message) as e:
            load_adapter(tmp_path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 500_000
    assert str(tmp_path) in str(e.value)


A, B = "m.layers.{}.q.lora_A.weight", "m.layers.{}.q.lora_B.weight"
PAIR: dict[str, tuple[int, ...]] = {A.format(0): (2, 6), B.format(0): (4, 2)}
NO_SPEC: list[tuple[str, dict[str, tuple[int, ...]], float, str]] = [
    ("nothing", {}, 1, "wanted one prefix"),
    ("no LoRA factor", {"m.layers.0.q.weight": (2, 2)}, 1, "wanted PREFIX.LAYER.MODULE.lora_"),
    ("a name that no log could hold", {"\ud800": (2, 2)}, 1, r"tensor '\\ud800'"),
    ("three axes", {A.format(0): (2, 3, 4)}, 1, "of two axes"),
    ("a factor alone", {A.format(0): (2, 6)}, 1, "out_features: Input should be greater"),
    ("a layer too few", {A.format(1): (2, 6), B.format(1): (4, 2)}, 1, "layers from 0 on"),
    ("two ranks", {**PAIR, A.format(1): (3, 6), B.format(1): (4, 3)}, 1, r"ranks \[2, 3\]"),
    ("two widths", {**PAIR, A.format(1): (2, 7), B.format(1): (4, 2)}, 1, "wanted every layer alike"),
    ("two prefixes", {**PAIR, "x.0.q.lora_A.weight": (2, 6)}, 1, "wanted one prefix"),
    ("half an alpha", PAIR, 1.5, "wanted a whole lora_alpha, got 1.5"),
    ("an alpha beyond a spec's", PAIR, 1e9, "alpha: Input should be less"),
]


@pytest.mark.parametrize(("why", "shapes", "alpha", "message"), NO_SPEC, ids=[n[0] for n in NO_SPEC])
def test_tensors_that_no_spec_has_are_refused(
    why: str, shapes: dict[str, tuple[int, ...]], alpha: float, message: str
) -> None:
    with pytest.raises(BlobError, match=message):
        find_spec(shapes, alpha, 20)


def test_numbers_in_a_modules_name_are_not_taken_for_its_layer() -> None:
    spec = AdapterSpec(
        rank=2,
        alpha=4,
        prefix="base_model.model.model.layers",
        layers=2,
        modules=(
            LoraModule(name="mlp.experts.0.w1", in_features=4, out_features=6),
            LoraModule(name="mlp.experts.1.w1", in_features=4, out_features=6),
        ),
    )
    assert find_spec(tensor_shapes(spec), 4, 20) == spec


def test_rounding_to_a_grid_is_to_grids(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
    assert equal(load_adapter(folder(tmp_path, tensors)).grid(16), to_grid(tensors, 16))


# -- what is not known to be harmless

PEFT_WRITES: dict[str, object] = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "auto_mapping": None, "bias": "none", "eva_config": None,
    "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "layer_replication": None, "layers_to_transform": None, "loftq_config": {}, "lora_bias": False,
    "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "peft_version": "0.21.2",
    "qalora_group_size": 16, "rank_pattern": {}, "revision": None, "target_parameters": None, "task_type": "CAUSAL_LM",
    "trainable_token_indices": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
}  # fmt: skip


def test_what_peft_itself_writes_is_no_problem(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=[m.name for m in TINY.modules])
    config.save_pretrained(str(tmp_path))
    written = json.loads((tmp_path / CONFIG).read_text())
    assert load_adapter(folder(tmp_path, floats(), written | {"base_model_name_or_path": "hub/base"})).problems == ()
    assert load_adapter(folder(tmp_path, floats(), GOOD_CONFIG | PEFT_WRITES)).problems == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alora_invocation_tokens", [5, 6]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [7]),
        ("lora_bias", True),
        ("use_qalora", True),
        ("loftq_config", {"loftq_bits": 4}),
        ("what_the_next_version_has", 0),
        ("what_the_next_version_has", "x"),
    ],
)
def test_a_key_that_may_change_what_an_adapter_does_is_a_problem_by_its_name(
    tmp_path: Path, key: str, value: object
) -> None:
    (problem,) = load_adapter(folder(tmp_path, floats(), GOOD_CONFIG | {key: value})).problems
    assert problem.startswith(f"{CONFIG}: {key}: wanted ")
    assert "take the key out" in problem


def test_a_configuration_that_says_a_key_twice_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, floats())
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_alpha": 8}')
    with pytest.raises(BlobError, match=f"{CONFIG}: wanted each key once"):
        load_adapter(tmp_path)


ROOT = "base_model.model."


@pytest.mark.parametrize(
    ("turned", "message"),
    [
        (lambda n: n.removeprefix(ROOT), f"wanted {ROOT} in front"),
        (lambda n: n.replace(ROOT, f"{ROOT}module."), "got one with a wrapper's name in it"),
        (lambda n: n.replace(ROOT, f"{ROOT}_orig_mod."), "got one with a wrapper's name in it"),
        (lambda n: n.replace("layers.0.", "layers.0._fsdp_wrapped_module."), "got one with a wrapper's name in it"),
    ],
)
def test_a_name_that_peft_applies_to_nothing_is_a_problem(
    tmp_path: Path, turned: Callable[[str], str], message: str
) -> None:
    adapter = load_adapter(folder(tmp_path, {turned(n): x for n, x in floats().items()}))
    assert len(adapter.problems) == 1
    assert message in adapter.problems[0]


@pytest.mark.parametrize("targets", [["nothing"], "nothing_like_it", "(", ["roj"]])
def test_modules_that_the_configuration_does_not_name_are_a_problem(tmp_path: Path, targets: object) -> None:
    (problem,) = load_adapter(folder(tmp_path, floats(), GOOD_CONFIG | {"target_modules": targets})).problems
    assert problem.startswith("target_modules: wanted all modules that have tensors, got none for ")


@pytest.mark.parametrize("targets", ["all-linear", r".*\.layers\..*", None, [m.name for m in TINY.modules]])
def test_modules_are_named_as_peft_takes_it(tmp_path: Path, targets: object) -> None:
    assert load_adapter(folder(tmp_path, floats(), GOOD_CONFIG | {"target_modules": targets})).problems == ()


def test_a_header_of_any_length_is_read_as_the_reference_library_reads_it(tmp_path: Path) -> None:
    data = safetensors.numpy.save(floats())
    size = int.from_bytes(data[:8], "little")
    for more in range(1, 9):
        text = b"\n" * (more % 3) + data[8 : 8 + size] + b" " * more
        odd = len(text).to_bytes(8, "little") + text + data[8 + size :]
        adapter, wanted = load_adapter(folder(tmp_path, odd)), safetensors.numpy.load(odd)
        assert adapter.problems == ()
        assert all(np.array_equal(x, wanted[n]) and x.flags.aligned for n, x in adapter.tensors.items())
