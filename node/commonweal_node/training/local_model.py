"""The reviser of this node: its base model, with an adapter if one is given. The only module here that needs torch.

Greedy, in float32: the same messages get the same answer on one machine with one number of threads.
"""

import hashlib
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from commonweal_node.model.base_model import folder_digest, load_base
from commonweal_node.model.chat import ChatWriter
from commonweal_node.rows.row import Message
from commonweal_protocols.base.errors import BaseModelError


class LocalModel:
    """A base model's folder, as ``fetch_base`` leaves it, and at most one PEFT adapter's."""

    def __init__(self, base: Path, adapter: Path | None, threads: int | None) -> None:
        """Load it; ``threads`` for all of torch in this process, None leaves torch's own choice.

        Raises:
            BaseModelError: A folder is not there, or holds no model, or no adapter of it.
        """
        if not base.is_dir():
            raise BaseModelError(f"{base}: wanted a base model's folder, got none; see commonweal node fetch-base")
        if threads is not None:
            torch.set_num_threads(threads)
        loaded = load_base(base, torch.float32)
        self._tokenizer, self._model = loaded.tokenizer, loaded.model
        self._writer = ChatWriter(loaded.tokenizer)
        self._name = f"base {folder_digest(base)}"
        if adapter is not None:
            weights = adapter / "adapter_model.safetensors"
            try:
                with weights.open("rb") as f:
                    self._name += f", adapter {hashlib.file_digest(f, 'sha256').hexdigest()}"
                peft = import_module("peft")
                with warnings.catch_warnings():
                    # Of names that peft asks transformers for; nobody here can do anything about them.
                    warnings.simplefilter("ignore", FutureWarning)
                    self._model = peft.PeftModel.from_pretrained(self._model, str(adapter)).eval()
            except (OSError, ValueError, RuntimeError) as e:
                raise BaseModelError(f"{adapter}: wanted a PEFT adapter of {base}, got {type(e).__name__}") from e

    @property
    def name(self) -> str:
        """The digests of base and adapter."""
        return self._name

    @torch.inference_mode()
    def answer(self, messages: Sequence[Message], max_new_tokens: int) -> str:
        """Return the model's next turn; empty where conversation and answer would not fit into its window.

        Raises:
            ConfigError: The chat template refuses the conversation.
        """
        text = self._writer.write(messages, "the question", prompt=True)
        ids = torch.tensor([self._writer.encode(text).ids])
        length = ids.shape[1]
        if length + max_new_tokens > self._model.config.max_position_embeddings:
            return ""
        tokens = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        return str(self._tokenizer.decode(tokens[0, length:], skip_special_tokens=True)).strip()
