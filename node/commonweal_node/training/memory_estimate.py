"""How much memory a training will take, from the base's shapes alone: asked before anything large is loaded.

Held for the whole run: the base's weights once, the adapter with its gradient and two moments (four float32 each), and
what Python and torch take by themselves. Held from forward to backward, for each token of a batch: what autograd keeps
of a block, and the block's largest temporaries once. With gradient checkpointing, a block's input is kept for every
block, and the rest for one block at a time. ``MARGIN`` is how far off the sum may be; a test holds it to that.
"""

import json
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from commonweal_node.model.tensors import slots
from commonweal_protocols.base.errors import BaseModelError, ConfigError
from commonweal_protocols.base.files import read_bounded
from commonweal_protocols.statements.compact import AdapterSpec

MARGIN = 0.35
"""As a part of the estimate."""
_MAX_CONFIG_BYTES = 1 << 20
_PROCESS_BYTES = 620 << 20
"""The interpreter with torch and transformers, before a model is loaded."""
_LOGITS_BYTES = 4 * 24 << 20
"""Logits of one chunk in float32, their exponentials, and what the products need."""
_LEAST_BATCH_TOKENS = 128


class ModelShape(BaseModel):
    """What is read of a base's ``config.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    tie_word_embeddings: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """What a training holds. ``element_bytes`` is 2 for bfloat16."""

    shape: ModelShape
    spec: AdapterSpec
    element_bytes: int
    row_tokens: int
    checkpointing: bool
    early_stop: bool = False

    def fixed_bytes(self) -> int:
        """Whatever the batch."""
        shape, factors = self.shape, 0
        for slot in slots(self.spec):
            factors += (slot.in_features + slot.out_features) * self.spec.rank
        embeddings = (1 if shape.tie_word_embeddings else 2) * shape.vocab_size * shape.hidden_size
        # Every large matrix of a block is adapted or not; attention's and the MLP's are the same either way.
        block = 4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.intermediate_size
        weights = embeddings + shape.num_hidden_layers * block
        copies = 5 if self.early_stop else 4
        return _PROCESS_BYTES + _LOGITS_BYTES + weights * self.element_bytes + copies * 4 * factors

    def token_bytes(self) -> int:
        """For each token that goes forward and backward together."""
        shape, e = self.shape, self.element_bytes
        # Inputs of seven linear layers and of two norms, their float32 copies in the norms, q, k and v turned, the
        # MLP's three, and the scores and probabilities of each head against a row.
        kept = e * (14 * shape.hidden_size + 4 * shape.intermediate_size) + 4 * 4 * shape.hidden_size
        kept += shape.num_attention_heads * self.row_tokens * (4 + 2 * e)
        blocks = shape.num_hidden_layers
        if self.checkpointing:
            return blocks * e * shape.hidden_size + 2 * kept
        return blocks * kept

    def total_bytes(self, batch_tokens: int) -> int:
        """The estimate."""
        return self.fixed_bytes() + batch_tokens * self.token_bytes()


def load_shape(folder: Path) -> ModelShape | None:
    """Read a base's shape; None where ``config.json`` does not say it in the words that most families use.

    Raises:
        BaseModelError: There is no ``config.json``, or it is not JSON.
    """
    data = read_bounded(folder / "config.json", _MAX_CONFIG_BYTES, "a model's shape", error=BaseModelError)
    try:
        said = json.loads(data)
    except ValueError as e:
        raise BaseModelError(f"{folder}/config.json: wanted JSON, got {e}") from e
    try:
        # A model of several kinds of input has its text model's shape one level deeper.
        return ModelShape.model_validate(said.get("text_config", said) if isinstance(said, dict) else said)
    except ValidationError:
        return None


def check_memory(demand: Demand, batch_tokens: int, available_bytes: int, processes: int = 1) -> int:
    """Return the estimate in bytes, for one process.

    Args:
        demand: What a training holds.
        batch_tokens: See ``train_adapter``.
        available_bytes: What there is for each process.
        processes: How many share what the host has, for the message.

    Raises:
        ConfigError: It is more than there is; the message says what would fit.
    """
    needed = demand.total_bytes(batch_tokens)
    if needed <= available_bytes:
        return needed
    fits = (available_bytes - demand.fixed_bytes()) // demand.token_bytes()
    if fits >= _LEAST_BATCH_TOKENS:
        fix = f"lower batch_tokens to {fits // 64 * 64} in node.toml"
    elif not demand.checkpointing:
        fix = "set gradient_checkpointing = true in node.toml"
    else:
        fix = "take a smaller base model or a larger machine"
    each = f" for each of {processes} processes" if processes > 1 else ""
    raise ConfigError(
        f"training: wanted {needed / 1e9:.1f} GB of memory{each}, got {available_bytes / 1e9:.1f} GB free: {fix}"
    )


def peak_bytes() -> int:
    """The greatest resident set that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
