"""The memory estimate: what it says where there is too little, and how near it comes to a real process's peak."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from commonweal_node.model.base_model import LoadedBase, detect_adapter_spec
from commonweal_node.training.memory_estimate import MARGIN, Demand, ModelShape, check_memory, load_shape
from commonweal_protocols.base.errors import BaseModelError, ConfigError
from tests.kit.tiny_model import tiny_tokenizer

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
"""Large enough that activations and not the interpreter decide, small enough for a second."""


def shaped() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation="eager")).eval()


def demand(checkpointing: bool, element_bytes: int = 4) -> Demand:
    spec = detect_adapter_spec(LoadedBase(shaped(), tiny_tokenizer()), rank=4, alpha=8)
    return Demand(ModelShape.model_validate(SHAPE), spec, element_bytes, 256, checkpointing)


WORKER = """
import json, sys
import torch
torch.set_num_threads(1)
from commonweal_node.model.base_model import LoadedBase, detect_adapter_spec
from commonweal_node.model.tokens import Tokenised
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.training.memory_estimate import peak_bytes
from commonweal_node.training.objectives import TokenObjective
from commonweal_node.training.train import train_adapter
from commonweal_protocols.statements.compact import Recipe
from tests.node.test_memory_estimate import shaped
from tests.kit.tiny_model import random_adapter, tiny_tokenizer

base = LoadedBase(shaped().requires_grad_(False), tiny_tokenizer())
spec = detect_adapter_spec(base, rank=4, alpha=8)
model = AdaptedModel(base, spec, checkpointing=sys.argv[1] == "True")
rows = [Tokenised(tuple((k * 7 + i) % 8192 for i in range(256)), (False,) * 128 + (True,) * 128) for k in range(8)]
recipe = Recipe(steps=2, batch_size=8, learning_rate_micros=100, max_tokens=256)
objective = TokenObjective("supervised", 1.0, rows)
train_adapter(model, random_adapter(spec, 0), [objective], recipe, 0, lambda _: None, batch_tokens=2048)
print(json.dumps(peak_bytes()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_real_trainings_peak_is_within_the_stated_margin(checkpointing: bool) -> None:
    command = [sys.executable, "-c", WORKER, str(checkpointing)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], timeout=250
    )
    measured, estimated = json.loads(done.stdout), demand(checkpointing).total_bytes(2048)
    assert abs(measured - estimated) <= MARGIN * estimated, f"{measured >> 20} MiB, estimated {estimated >> 20} MiB"


def test_too_little_memory_says_what_would_fit() -> None:
    plain, lean = demand(False), demand(True)
    needed = plain.total_bytes(4096)
    assert check_memory(plain, 4096, needed) == needed
    with pytest.raises(ConfigError, match=r"wanted .* GB of memory, got .* GB free: lower batch_tokens to 2048 in"):
        check_memory(plain, 4096, plain.total_bytes(2048))
    with pytest.raises(ConfigError, match="set gradient_checkpointing = true"):
        check_memory(plain, 4096, plain.total_bytes(100))
    with pytest.raises(
        ConfigError, match=r"GB of memory for each of 4 processes, got .* lower batch_tokens to 2048 in"
    ):
        check_memory(plain, 4096, plain.total_bytes(2048), processes=4)
    with pytest.raises(ConfigError, match="a smaller base model or a larger machine"):
        check_memory(lean, 4096, lean.fixed_bytes())
    assert lean.total_bytes(4096) < needed / 2


def test_a_shape_that_is_not_known_is_none_and_one_that_is_nested_is_found(tmp_path: Path) -> None:
    for said in (SHAPE | {"another": 1}, {"text_config": SHAPE, "vision_config": {}}):
        (tmp_path / "config.json").write_text(json.dumps(said))
        shape = load_shape(tmp_path)
        assert shape is not None
        assert shape.hidden_size == 384
    for text in ("{}", "[]", '{"n_embd": 32}'):
        (tmp_path / "config.json").write_text(text)
        assert load_shape(tmp_path) is None
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(BaseModelError, match=r"config.json: wanted JSON"):
        load_shape(tmp_path)
