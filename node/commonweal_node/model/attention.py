"""What a token of a packed row may see, by the rule of each kind of block; and the proof that packing changes nothing.

A block of "full" attention sees all earlier tokens of its example; of "sliding" attention the last ``window`` of them;
of "chunked" attention those in its own chunk. Distances are between positions in the example, so a prefix that several
examples share is as far away as it is for each of them alone. Source: transformers' ``masking_utils``.

Guarantees: a base for which packed rows are not what each row alone is, is found out before it trains anything,
whatever the reason: a state that runs through the row, distances by place in the row, a window that nothing declares.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from commonweal_node.model.packing import Batch, attention_allowed, pack
from commonweal_node.model.tokens import Tokenised
from commonweal_protocols.base.errors import BaseModelError

_SHARED = 8
_SHORT = (24, 40)
_LONG = 300
_BEYOND = 64
_LONGEST = 2112
"""Of the texts that a base is tried on: two that share a row, and one that is longer than its window. A window of more
than two thousand tokens is tried within it; its edge is the same comparison as a smaller one's."""
_MOST_OFF = {torch.float32: 2e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
"""By how much rounding alone may move a token's log-probability: what is wrong moves some by far more."""


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back a block sees. None: all the way."""

    window: int | None = None
    chunk: int | None = None

    def allowed(self, batch: Batch) -> NDArray[np.bool_]:
        """(R, T, T): whether token i of a row may see token j."""
        allowed = attention_allowed(batch)
        at, seen = batch.positions[:, :, None], batch.positions[:, None, :]
        if self.window is not None:
            allowed &= at - seen < self.window
        if self.chunk is not None:
            allowed &= at // self.chunk == seen // self.chunk
        return allowed


def reaches(config: PretrainedConfig) -> Reach | Mapping[str, Reach]:
    """Return how far each kind of block sees; one reach where the model has one kind and takes one mask."""
    text = config.get_text_config()
    window, chunk = getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None)
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds & {"sliding_attention", "chunked_attention"}:
        made = {"full_attention": Reach(), "sliding_attention": Reach(window), "chunked_attention": Reach(None, chunk)}
        return {kind: reach for kind, reach in made.items() if kind in kinds | {"full_attention"}}
    # Where blocks are listed and none has a window, one that is configured is not used.
    return Reach() if kinds else Reach(window)


def longest_text(config: PretrainedConfig) -> int:
    """Return how long a text must be to reach beyond every window, as far as the base can read and a trial can go."""
    found = reaches(config)
    edges = [e for r in ([found] if isinstance(found, Reach) else found.values()) for e in (r.window, r.chunk) if e]
    most = getattr(config.get_text_config(), "max_position_embeddings", None) or _LONG
    return min(max([_LONG, *(e + _BEYOND for e in edges)]), _LONGEST, most)


@torch.inference_mode()
def check_packing(
    name: str,
    vocabulary: int,
    longest: int,
    alone: Callable[[Sequence[int]], Tensor],
    packed: Callable[[Batch], Tensor],
    dtype: torch.dtype,
) -> None:
    """Try packed rows of random texts against each text alone through the model as it is.

    Args:
        name: The base's family, for the error.
        vocabulary: How many token IDs there are.
        longest: See :func:`longest_text`.
        alone: Gives (T, V) logits of one text.
        packed: Gives the (N,) log-probabilities of a batch's targets.
        dtype: In which the base computes.

    Raises:
        BaseModelError: They differ by more than rounding, or the model takes no packed rows.
    """
    rng = np.random.default_rng(0)
    shared = rng.integers(0, vocabulary, _SHARED).tolist()
    lengths = [n for n in (*_SHORT, longest) if n <= longest]
    texts = [tuple(shared + rng.integers(0, vocabulary, n - _SHARED).tolist()) for n in lengths]
    examples = [Tokenised(ids, tuple(k >= _SHARED for k in range(len(ids)))) for ids in texts]
    wanted = {}
    for i, ids in enumerate(texts):
        found = torch.log_softmax(alone(ids).float(), -1)
        wanted[i] = found[torch.arange(_SHARED - 1, len(ids) - 1), torch.tensor(ids[_SHARED:], device=found.device)]
    most = 0.0
    for batch in pack(examples, sum(lengths), sum(lengths)):
        try:
            got = packed(batch)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError) as e:
            # Whatever a family's own code says to a mask and positions that it does not know.
            raise BaseModelError(
                f"base model: {name}: wanted one that takes packed rows (position_ids and a 4-D attention mask), "
                f"got {type(e).__name__}: {e}; choose a base of another family"
            ) from e
        owners = torch.from_numpy(batch.owners)
        for i, alone_found in wanted.items():
            most = max(most, float((got.cpu()[owners == i] - alone_found.cpu()).abs().max()))
    if not most <= _MOST_OFF[dtype]:
        raise BaseModelError(
            f"base model: {name}: wanted packed rows to be what each row alone is, got a token's log-probability that "
            f"is off by {most:.3f}: its blocks carry a state through the row, or see by place in it; choose a base "
            "whose blocks have attention alone"
        )
