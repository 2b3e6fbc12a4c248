"""Model families: packed rows are what each row alone is through the stock model, or the base is refused by name.

Tiny random models of transformers' own configurations, with windows that are shorter than the texts.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PretrainedConfig

from commonweal_node.model.attention import Reach, reaches
from commonweal_node.model.base_model import LoadedBase, detect_adapter_spec
from commonweal_node.model.heldout import heldout_batches
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.packing import pack
from commonweal_node.model.tokens import Tokenised, tokenise
from commonweal_node.rows.row import Example, Message
from commonweal_protocols.base.errors import BaseModelError
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule
from tests.kit.tiny_model import tiny_tokenizer

SHAPE = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "pad_token_id": 257, "bos_token_id": 256,
    "eos_token_id": 257, "initializer_range": 0.2,
}  # fmt: skip
NARROW: dict[str, object] = {"sliding_window": 16, "head_dim": 8}
EXPERTS: dict[str, object] = {"num_experts_per_tok": 2, "num_local_experts": 4}
RIGHT: dict[str, dict[str, object]] = {
    "ExaoneMoe": {**NARROW, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "Exaone4": NARROW,
    "Gemma3Text": NARROW,
    "Glm4": {"head_dim": 8},
    "GPTNeoX": {},
    "GptOss": NARROW | EXPERTS,
    "Helium": {"head_dim": 8},
    "Llama": {},
    "Ministral": NARROW,
    "Mistral": NARROW,
    "Mixtral": EXPERTS,
    "Olmo2": {},
    "Olmo3": NARROW,
    "Phi3": {"sliding_window": 16},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    "Qwen3": {"head_dim": 8},
    "SeedOss": {"head_dim": 8},
    "SmolLM3": {},
    "Starcoder2": {"sliding_window": 16},
}
STATES: dict[str, object] = {"layer_types": ["linear_attention"] * 3 + ["full_attention"], "head_dim": 8}
LINEAR: dict[str, object] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA: dict[str, object] = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
}
ROW = "packed rows to be what each row alone is"
LOGITS = "scaled or capped logits"
REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "Cohere2": (NARROW, LOGITS),
    "FalconH1": ({**MAMBA, "mamba_chunk_size": 16}, ROW),
    "Gemma2": (NARROW, LOGITS),
    "GPT2": ({}, "gpt2: wanted linear layers in each block"),
    "Granite": ({"logits_scaling": 8.0}, LOGITS),
    "Lfm2": ({"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "conv", "full_attention", "conv"]}, ROW),
    "Mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512}, ROW),
    "Qwen3_5Text": (STATES | LINEAR, ROW),
}


def tiny(family: str, settings: dict[str, object]) -> LoadedBase:
    kind: Callable[..., PretrainedConfig] = getattr(transformers, f"{family}Config")
    config = kind(**({} if "n_heads" in settings else SHAPE), **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    model.requires_grad_(False)
    return LoadedBase(model, tiny_tokenizer())


def spec_of(base: LoadedBase) -> AdapterSpec:
    """The linear layers that all blocks have, as somebody would write them by hand for blocks that differ."""
    count = int(base.model.config.num_hidden_layers)
    stacks = [(n, m) for n, m in base.model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count]
    path, blocks = stacks[0]
    linear = [
        {n: (m.in_features, m.out_features) for n, m in b.named_modules() if isinstance(m, torch.nn.Linear)}
        for b in blocks
    ]
    common = functools.reduce(lambda a, b: {n: s for n, s in a.items() if b.get(n) == s}, linear)
    if not common:
        return detect_adapter_spec(base, 2, 4)
    return AdapterSpec(
        rank=2,
        alpha=4,
        prefix=f"base_model.model.{path}",
        layers=count,
        modules=tuple(LoraModule(name=n, in_features=i, out_features=o) for n, (i, o) in common.items()),
        grid_bits=20,
        seed=0,
    )


def texts(base: LoadedBase, answer: int) -> tuple[Tokenised, ...]:
    """Four conversations, with a beginning that they share."""
    rows = [
        Example(
            (Message("user", f"which river is {i}?"), Message("assistant", "abcdef"[i] * (answer * (i + 1)))), str(i)
        )
        for i in range(4)
    ]
    return tokenise(tuple(rows), base.tokenizer, 1000).examples


@pytest.mark.parametrize("family", RIGHT)
def test_packed_rows_are_what_each_row_alone_is(family: str) -> None:
    base = tiny(family, RIGHT[family])
    examples = [*texts(base, 5), *texts(base, 25)]
    alone: list[list[float]] = []
    for e in examples:
        with torch.inference_mode():
            logits = base.model(input_ids=torch.tensor([e.ids]), use_cache=False).logits[0].double()
        found = torch.log_softmax(logits, -1)
        alone.append([float(found[k - 1, e.ids[k]]) for k in range(1, len(e.ids)) if e.supervised[k]])
    model = AdaptedModel(base, spec_of(base))
    got: list[list[float]] = [[] for _ in examples]
    for batch in heldout_batches(examples):
        with torch.inference_mode():
            for owner, value in zip(batch.owners, model.log_probabilities(batch).tolist(), strict=True):
                got[int(owner)].append(value)
    for one, other in zip(got, alone, strict=True):
        assert one == pytest.approx(other, abs=2e-3)


@pytest.mark.parametrize("family", REFUSED)
def test_a_base_that_cannot_be_computed_rightly_is_refused_by_name(family: str) -> None:
    settings, why = REFUSED[family]
    base = tiny(family, settings)
    with pytest.raises(BaseModelError, match=why):
        AdaptedModel(base, spec_of(base))


def test_a_window_and_a_chunk_are_of_positions_in_the_example_not_of_places_in_the_row() -> None:
    a, b = Tokenised((1, 2, 3, 4), (False, True, True, True)), Tokenised((1, 5, 6, 7), (False, True, True, True))
    (batch,) = pack([a, b], 16, 16)
    assert batch.positions.tolist() == [[0, 1, 2, 3, 1, 2, 3]]
    last = Reach(window=3).allowed(batch)[0][6].tolist()
    assert last == [False, False, False, False, True, True, True], "the shared first token is three positions away"
    third = Reach(window=3).allowed(batch)[0][5].tolist()
    assert third == [True, False, False, False, True, True, False]
    assert Reach(chunk=2).allowed(batch)[0][6].tolist() == [False] * 5 + [True] * 2


def test_a_window_that_no_block_uses_is_none() -> None:
    config = transformers.Qwen3Config(**(SHAPE | {"sliding_window": 16, "use_sliding_window": False}))
    assert reaches(config) == Reach()


def test_the_guide_has_each_family_that_was_tried() -> None:
    text = (Path(__file__).parents[2] / "docs/guides/choose-a-base.md").read_text()
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")]
    told = {name: what.strip() for names, what in rows for name in names.strip().split(", ")}
    assert {f for f in told if told[f].startswith("right")} == set(RIGHT)
    assert {f for f in told if told[f].startswith("refused")} == set(REFUSED)
