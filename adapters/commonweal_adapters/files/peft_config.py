"""PEFT's ``adapter_config.json``, and the names of an adapter's tensors: whatever of them is not known to be harmless.

An adapter is read, merged and written by its factors, rank and alpha alone. Any other key could change what it does
(when it acts, on which weights, relative to which base), and PEFT has more of them with each version. So a key is
either one of :data:`HARMLESS`, or says nothing (null, false, nothing in it), or is a problem, by its name. Pure.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from commonweal_adapters.files.lora_file import PEFT_ROOT
from commonweal_protocols.base.errors import BlobError

Scaling = Literal["lora", "rslora"]
HARMLESS = frozenset(
    {
        # Read here.
        "peft_type", "r", "lora_alpha", "use_rslora", "base_model_name_or_path", "target_modules",
        # Of training alone, or of programs.
        "lora_dropout", "inference_mode", "task_type", "peft_version", "auto_mapping", "revision",
        # PEFT sets it anew by the kind of each layer.
        "fan_in_fan_out",
        # They need another key beside them, which is a problem then.
        "megatron_core", "qalora_group_size",
    }
)  # fmt: skip
"""Keys that change nothing of what an adapter does, whatever they say."""
_ONLY: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
    # Others take something from the base's weights, so that the adapter is one of another base.
    "init_lora_weights": (True, False, "gaussian"),
}
_NOTHING: dict[str, object] = {"rank_pattern": {}, "alpha_pattern": {}, "use_dora": False}
_WRAPPERS = ("module",)
_FACTOR = re.compile(r"(?P<path>.+)\.lora_[AB]\.weight")


class PeftConfig(BaseModel):
    """What of an ``adapter_config.json`` is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    peft_type: str
    r: Annotated[int, Field(ge=1)]
    lora_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    base_model_name_or_path: str | None = None
    use_rslora: bool = False
    target_modules: list[str] | str | None = None

    @property
    def scaling(self) -> Scaling:
        """The spec's word for it."""
        return "rslora" if self.use_rslora else "lora"


def parse_config(data: bytes) -> tuple[PeftConfig, tuple[str, ...]]:
    """Return what a configuration says, and what of it is a problem.

    Raises:
        BlobError: It is no JSON object with each key once, or not LoRA's.
    """
    try:
        said = json.loads(data, object_pairs_hook=_once)
        if not isinstance(said, dict):
            raise BlobError("wanted a JSON object, got another value")
        config = PeftConfig.model_validate(said)
    except ValidationError as e:
        first = e.errors()[0]
        raise BlobError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from e
    except (ValueError, RecursionError) as e:
        raise BlobError(f"wanted a JSON object, got {type(e).__name__}") from e
    if config.peft_type != "LORA":
        raise BlobError(f"wanted peft_type LORA, got {ascii(config.peft_type)[:80]}")
    return config, tuple(_odd_keys(said))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BlobError("wanted each key once, got one twice")
    return found


def _odd_keys(said: dict[str, Any]) -> Iterator[str]:
    for key, value in said.items():
        if key in HARMLESS or value is None:
            continue
        allowed = _ONLY.get(key)
        if value in allowed if allowed else (not value and not isinstance(value, int | float)) or value is False:
            continue
        wanted = repr(allowed[0] if allowed else _NOTHING[key]) if allowed or key in _NOTHING else "nothing"
        yield (
            f"{ascii(key)[1:-1][:80]}: wanted {wanted}, got {ascii(value)[:80]} "
            "(it may change what the adapter does; if you know that it does not, take the key out)"
        )


def odd_names(names: Iterable[str], config: PeftConfig | None) -> Iterator[str]:
    """Yield a problem for each kind of name that PEFT would load without a word and apply to nothing."""
    paths = sorted({found["path"] for name in names if (found := _FACTOR.fullmatch(name))})
    if bare := [p for p in paths if not p.startswith(PEFT_ROOT)]:
        yield f"tensor {ascii(bare[0])[:200]}: wanted {PEFT_ROOT} in front, or PEFT applies it to nothing"
    within = [p.removeprefix(PEFT_ROOT).split(".") for p in paths if p not in bare]
    if wrapped := [parts for parts in within if parts[0] in _WRAPPERS or any(x.startswith("_") for x in parts)]:
        yield (
            f"tensor {ascii('.'.join(wrapped[0]))[:200]}: wanted a path in the base model, got one with a wrapper's "
            "name in it, which PEFT applies to nothing; take it out of the names, and save again"
        )
    targets = config.target_modules if config else None
    if targets is None or targets == "all-linear":
        return
    if missed := [".".join(parts) for parts in within if not _is_target(".".join(parts), targets)]:
        yield f"target_modules: wanted all modules that have tensors, got none for {ascii(missed[0])[:200]}"


def _is_target(path: str, targets: list[str] | str) -> bool:
    if isinstance(targets, list):
        return any(path == t or path.endswith(f".{t}") for t in targets)
    try:
        return re.fullmatch(targets, path) is not None
    except re.error:
        return False
