"""Blends: exact products, the choice among them, and the same model under PEFT."""

import importlib
import json
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray

from commonweal_node.institution.choice import BLENDS
from commonweal_node.model.base_model import detect_adapter_spec
from commonweal_node.model.blend import BlendWeights, blend, export_peft
from commonweal_node.model.heldout import row_losses
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.packing import pack
from commonweal_node.model.tensors import AdapterTensors, slots
from commonweal_node.model.tokens import tokenise
from commonweal_protocols.base.errors import BlobError, StorageError
from tests.kit.tiny_model import EXAMPLES, random_adapter, tiny_base

SPEC = detect_adapter_spec(tiny_base(), rank=4, alpha=8)
SHARED, OWN = random_adapter(SPEC, 1), random_adapter(SPEC, 2)
SOME = BlendWeights(700, 300)


def products(adapter: AdapterTensors, scale: float) -> list[NDArray[np.float64]]:
    """The second implementation: scale · B A of each layer, in float64."""
    return [scale * adapter[s.name_b].astype(np.float64) @ adapter[s.name_a].astype(np.float64) for s in slots(SPEC)]


@pytest.mark.parametrize("weights", [*BLENDS, SOME, BlendWeights(2000, 1), BlendWeights(333, 0)])
def test_a_blends_product_is_the_weighted_sum_of_both_products(weights: BlendWeights) -> None:
    s = SPEC.alpha / SPEC.rank
    got = products(blend(SPEC, SHARED, OWN, weights), s)
    a, b = weights.shared_millis / 1000, weights.own_millis / 1000
    for layer, shared, own in zip(got, products(SHARED, a * s), products(OWN, b * s), strict=True):
        # The weights and the scaled B are rounded to float32 once each; nothing else is lost.
        np.testing.assert_allclose(layer, shared + own, rtol=0, atol=float(4 * np.finfo(np.float32).eps))
        assert np.abs(layer).max() > 0.01 or weights == BlendWeights(0, 0)


def test_averaging_the_factors_instead_would_be_another_model() -> None:
    half = {n: np.float32(0.5) * (SHARED[n] + OWN[n]) for n in SHARED}
    exact = products(blend(SPEC, SHARED, OWN, BlendWeights(500, 500)), 1)
    assert max(np.abs(x - y).max() for x, y in zip(exact, products(half, 1), strict=True)) > 0.01


def test_a_blend_has_twice_the_rank_and_leaves_its_parts_alone() -> None:
    before = {n: v.copy() for n, v in SHARED.items()}
    made = blend(SPEC, SHARED, OWN, SOME)
    for s in slots(SPEC):
        assert made[s.name_a].shape == (2 * SPEC.rank, s.in_features)
        assert made[s.name_b].shape == (s.out_features, 2 * SPEC.rank)
    assert {v.dtype for v in made.values()} == {np.dtype(np.float32)}
    assert all((before[n] == SHARED[n]).all() for n in before)


@pytest.mark.parametrize("bent", ["shared", "own"])
def test_an_adapter_that_breaks_the_spec_is_not_blended(bent: str) -> None:
    odd = blend(SPEC, SHARED, OWN, SOME)  # twice the rank
    with pytest.raises(BlobError, match="adapter"):
        blend(SPEC, odd if bent == "shared" else SHARED, odd if bent == "own" else OWN, SOME)


# -- the export


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return out


@pytest.mark.parametrize("what", ["a blend", "a release alone"])
def test_peft_loads_what_is_exported_and_computes_the_same_model(tmp_path: Path, what: str) -> None:
    adapter = blend(SPEC, SHARED, OWN, SOME) if what == "a blend" else SHARED
    export_peft(tmp_path / "adopted", SPEC, adapter, "path:/models/tiny")
    peft = importlib.import_module("peft")
    theirs = peft.PeftModel.from_pretrained(tiny_base().model, tmp_path / "adopted")
    base = tiny_base()
    ours = AdaptedModel(base, SPEC)
    ids = torch.arange(5, 25)[None]
    with ours.adapter(adapter):
        mine = logits(base.model, ids)
    torch.testing.assert_close(mine, logits(theirs, ids), rtol=1e-4, atol=1e-4)
    # Were the adapter ignored by both, the above would hold as well.
    assert (mine - logits(tiny_base().model, ids)).abs().max() > 0.01
    examples = tokenise(EXAMPLES, base.tokenizer, 500).examples
    losses = [row_losses(ours, a, pack(examples, 500, 5000)).mean for a in (adapter, None)]
    assert abs(losses[0] - losses[1]) > 0.01


def test_an_export_names_every_layer_in_full_and_keeps_the_scaling(tmp_path: Path) -> None:
    export_peft(tmp_path, SPEC, blend(SPEC, SHARED, OWN, SOME), "path:/models/tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["lora_alpha"] / config["r"] == SPEC.alpha / SPEC.rank
    assert config["r"] == 2 * SPEC.rank
    assert config["base_model_name_or_path"] == "path:/models/tiny"
    names = {f"model.layers.{i}.{m.name}" for i in range(SPEC.layers) for m in SPEC.modules}
    assert set(config["target_modules"]) == names
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    assert set(tensors) == {f"base_model.model.{n}.lora_{x}.weight" for n in names for x in "AB"}


def test_a_new_export_replaces_the_old_one(tmp_path: Path) -> None:
    export_peft(tmp_path, SPEC, blend(SPEC, SHARED, OWN, SOME), "path:/models/tiny")
    export_peft(tmp_path, SPEC, OWN, "path:/models/tiny")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == SPEC.rank
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o644}
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    assert all((tensors[n] == OWN[n]).all() for n in OWN)


def test_an_export_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "adopted").write_text("a file")
    with pytest.raises(StorageError, match=r"adopted: wanted to write a PEFT folder, got "):
        export_peft(tmp_path / "adopted", SPEC, OWN, "path:/models/tiny")
    odd = {n: v[:-1] for n, v in OWN.items()}
    with pytest.raises(BlobError, match="adapter"):
        export_peft(tmp_path / "other", SPEC, odd, "path:/models/tiny")
    assert not (tmp_path / "other").exists()
