"""A tiny random Llama with a byte-level tokenizer, made in a second: real code paths at a size that any machine has."""

import importlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from commonweal_node.model.base_model import LoadedBase, detect_adapter_spec, folder_digest
from commonweal_node.model.tensors import slots
from commonweal_node.rows.row import Example, Message
from commonweal_protocols.statements.compact import AdapterSpec

TEMPLATE = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nbe kind<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token for each byte, and two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=template, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )


def tiny_base(seed: int = 0) -> LoadedBase:
    """Two blocks, hidden size 32, grouped-query attention, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    model.requires_grad_(False)
    return LoadedBase(model, tiny_tokenizer())


def save_tiny_base(directory: Path) -> None:
    """The tiny base as a folder in transformers' layout."""
    base = tiny_base()
    base.model.save_pretrained(directory)
    base.tokenizer.save_pretrained(directory)


def random_adapter(spec: AdapterSpec, seed: int, b_size: float = 0.1) -> dict[str, NDArray[np.float32]]:
    """Normal values; ``b_size`` = 0 is a start, whose product is zero."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for slot in slots(spec):
        tensors[slot.name_a] = rng.normal(size=(spec.rank, slot.in_features)).astype(np.float32) * np.float32(0.2)
        tensors[slot.name_b] = rng.normal(size=(slot.out_features, spec.rank)).astype(np.float32) * np.float32(b_size)
    return tensors


def peft_model(spec: AdapterSpec, adapter: dict[str, NDArray[np.float32]]) -> torch.nn.Module:
    """The second implementation: a fresh tiny base under PEFT with these values."""
    peft = importlib.import_module("peft")
    targets = [slot.path for slot in slots(spec)]
    config = peft.LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=targets, lora_dropout=0.0)
    model: torch.nn.Module = peft.get_peft_model(tiny_base().model, config)
    named = dict(model.named_parameters())
    for name, value in adapter.items():
        named[name.replace(".weight", ".default.weight")].data = torch.tensor(value)
    return model


def example(user: str, assistant: str, *more: str) -> Example:
    """A conversation: user, assistant, and further turns in the same order."""
    roles = ("user", "assistant")
    turns = (user, assistant, *more)
    return Example(tuple(Message(roles[i % 2], t) for i, t in enumerate(turns)), group=user)


EXAMPLES = (
    example("hello?", "good day"),
    example("who brews tea?", "my neighbour does."),
    example("a", "b", "and then?", "c, of course"),
    example("what is a common snack in our village?", "roasted gram"),
    example("hello?", "welcome"),
)


def base_and_adapter(home: Path) -> str:
    """Save the tiny base below a folder; return the tables base and adapter of terms (TOML) for it."""
    base = home / "base"
    save_tiny_base(base)
    spec = detect_adapter_spec(tiny_base(), rank=2, alpha=4)
    modules = ", ".join(
        f'{{name = "{m.name}", in_features = {m.in_features}, out_features = {m.out_features}}}' for m in spec.modules
    )
    return (
        f'[base]\nreference = "path:{base}"\nsha256 = "{folder_digest(base)}"\n'
        f'[adapter]\nrank = 2\nalpha = 4\nprefix = "{spec.prefix}"\nlayers = {spec.layers}\nmodules = [{modules}]\n'
    )
