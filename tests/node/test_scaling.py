"""The two scalings of a spec, alpha / r and alpha / √r: what is trained, merged and written under each, as in PEFT."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from commonweal_adapters.commands.inspection import diff_files, inspect_file, module_norms
from commonweal_adapters.files.delta import GridTensors, to_grid
from commonweal_adapters.files.peft_files import load_adapter, save_adapter
from commonweal_adapters.files.source import Delta, Held
from commonweal_adapters.recompute import recompute_start
from commonweal_adapters.rules.merge_error import squared_error
from commonweal_adapters.rules.stack import exact_residual, stack
from commonweal_node.model.base_model import detect_adapter_spec
from commonweal_node.model.blend import BlendWeights, blend, export_peft
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.tensors import AdapterTensors, slots
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec
from tests.kit.tiny_model import random_adapter, tiny_base

# A rank that is no square: its root cannot be mistaken for a whole number.
SPEC = detect_adapter_spec(tiny_base(), rank=3, alpha=6)
ROOT = SPEC.model_copy(update={"scaling": "rslora"})
SHARED, OWN = random_adapter(SPEC, 1), random_adapter(SPEC, 2)
IDS = torch.arange(5, 25)[None]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return out


def ours(spec: AdapterSpec, adapter: AdapterTensors) -> torch.Tensor:
    base = tiny_base()
    with AdaptedModel(base, spec).adapter(adapter):
        return logits(base.model)


def pefts(adapter: AdapterTensors) -> torch.nn.Module:
    """The second implementation: a PEFT model that was told to use rsLoRA's scaling."""
    peft = importlib.import_module("peft")
    targets = [slot.path for slot in slots(SPEC)]
    config = peft.LoraConfig(r=3, lora_alpha=6, use_rslora=True, target_modules=targets, lora_dropout=0.0)
    model: torch.nn.Module = peft.get_peft_model(tiny_base().model, config)
    named = dict(model.named_parameters())
    for name, value in adapter.items():
        named[name.replace(".weight", ".default.weight")].data = torch.tensor(value)
    return model


def test_a_model_under_rslora_computes_what_pefts_does() -> None:
    wanted = logits(pefts(SHARED))
    torch.testing.assert_close(ours(ROOT, SHARED), wanted, rtol=1e-4, atol=1e-4)
    assert (ours(SPEC, SHARED) - wanted).abs().max() > 0.01, "under the other scaling it is another model"


@pytest.mark.parametrize("what", ["a blend", "a release alone"])
def test_peft_loads_what_is_exported_under_rslora_and_computes_the_same_model(tmp_path: Path, what: str) -> None:
    adapter = blend(ROOT, SHARED, OWN, BlendWeights(700, 300)) if what == "a blend" else SHARED
    export_peft(tmp_path, ROOT, adapter, "path:/models/tiny")
    peft = importlib.import_module("peft")
    theirs = logits(peft.PeftModel.from_pretrained(tiny_base().model, tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    # What a program computes that knows nothing of rsLoRA.
    assert config["use_rslora"] is False
    assert config["lora_alpha"] / config["r"] == pytest.approx(ROOT.scale)
    torch.testing.assert_close(ours(ROOT, adapter), theirs, rtol=1e-4, atol=1e-4)
    assert (ours(SPEC, adapter) - theirs).abs().max() > 0.01


def test_a_saved_adapter_keeps_its_scaling_for_peft_and_for_us(tmp_path: Path) -> None:
    save_adapter(tmp_path / "ours", ROOT, to_grid(SHARED, 20), "path:/models/tiny")
    found = load_adapter(tmp_path / "ours").spec(20)
    assert (found.rank, found.alpha, found.scaling, found.scale) == (3, 6, "rslora", 6 / 3**0.5)
    peft = importlib.import_module("peft")
    theirs = peft.PeftModel.from_pretrained(tiny_base().model, tmp_path / "ours")
    torch.testing.assert_close(ours(ROOT, SHARED), logits(theirs), rtol=1e-4, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    again = load_adapter(tmp_path / "theirs")
    assert again.problems == ()
    assert again.spec(20) == found
    assert inspect_file(tmp_path / "theirs", 20).scaling == "rslora"
    assert json.loads((tmp_path / "ours/adapter_config.json").read_text())["use_rslora"] is True


def test_norms_and_likeness_are_told_of_the_scaled_products(tmp_path: Path) -> None:
    plain, root = (module_norms(spec, SHARED) for spec in (SPEC, ROOT))
    for one, other in zip(plain, root, strict=True):
        assert one.norm_product is not None
        assert other.norm_product == pytest.approx(one.norm_product * 3**0.5, rel=1e-12)
        assert other.share == one.share
    for spec in (SPEC, ROOT):
        save_adapter(tmp_path / spec.scaling, spec, to_grid(SHARED, 20), "")
    whole = diff_files(tmp_path / "lora", tmp_path / "rslora")[0]
    assert whole.cosine_product == pytest.approx(1)
    assert whole.distance_product == pytest.approx((3**0.5 - 1) * whole.norm_first, rel=1e-9)


def test_a_starts_bytes_and_a_merges_error_are_the_same_under_both() -> None:
    assert recompute_start(SPEC) == recompute_start(ROOT)
    start = to_grid(SHARED, 20)
    deltas = [Delta("a", 1, Held(to_grid(OWN, 20))), Delta("b", 2, Held(to_grid(SHARED, 20)))]
    errors = {squared_error(spec, start, deltas, start) for spec in (SPEC, ROOT)}
    assert len(errors) == 1
    assert errors != {0}


def test_what_has_a_higher_rank_than_its_inputs_is_not_made_under_rslora() -> None:
    start = GridTensors({name: np.zeros(x.shape, np.int32) for name, x in SHARED.items()})
    deltas = [Delta("a", 1, Held(to_grid(OWN, 20))), Delta("b", 1, Held(to_grid(SHARED, 20)))]
    for make in (stack, exact_residual):
        make(SPEC, start, deltas)
        with pytest.raises(
            BlobError, match="stack: wanted the scaling lora, got rslora, which is not exact at 2 times"
        ):
            make(ROOT, start, deltas)
