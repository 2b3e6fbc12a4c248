"""Held-out loss: mean nats for each supervised token, lower is better. A proxy for fit, not for flourishing.

Guarantees: token-weighted, so a long answer counts by its length; logits only where a token is supervised;
deterministic for the same machine, thread count and batches. It reads no file and decides nothing.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.packing import ROW_TOKENS, Batch, pack
from commonweal_node.model.row_losses import RowLosses
from commonweal_node.model.tensors import AdapterTensors
from commonweal_node.model.tokens import Tokenised
from commonweal_protocols.base.errors import LocalError

BATCH_TOKENS = 1536


def heldout_batches(examples: Sequence[Tokenised]) -> list[Batch]:
    """Pack held-out examples once, for any number of evaluations."""
    return pack(examples, ROW_TOKENS, BATCH_TOKENS)


@torch.inference_mode()
def row_losses(model: AdaptedModel, adapter: AdapterTensors | None, batches: Sequence[Batch]) -> RowLosses:
    """What each row that was packed into ``batches`` costs, under an adapter or (None) the base alone.

    Raises:
        BlobError: The adapter breaks the model's spec.
        LocalError: A loss is not finite.
    """
    rows = 1 + max(int(batch.owners.max()) for batch in batches)
    nats, tokens = np.zeros(rows), np.zeros(rows, np.int64)
    with model.adapter(adapter):
        for batch in batches:
            found = model.log_probabilities(batch).cpu().double().numpy()
            nats -= np.bincount(batch.owners, found, rows)
            tokens += np.bincount(batch.owners, minlength=rows)
    losses = RowLosses(nats, tokens)
    if not math.isfinite(losses.mean):
        raise LocalError(
            f"held-out loss: wanted a finite number, got {losses.mean} (the adapter's values are too large)"
        )
    return losses


def example_losses(model: AdaptedModel, adapter: AdapterTensors | None, examples: Sequence[Tokenised]) -> list[float]:
    """Mean nats for each supervised token of each example by itself, under an adapter or (None) the base alone.

    Raises:
        BlobError: The adapter breaks the model's spec.
        LocalError: A loss is not finite.
    """
    found = row_losses(model, adapter, heldout_batches(examples))
    losses: list[float] = (found.nats / found.tokens).tolist()
    return losses
