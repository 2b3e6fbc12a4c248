"""What a probe measures of a model: no judge, no sampling, one number between 0 and 1 for the whole of its questions.

An option's score s is its mean log-probability for each of its own tokens after the question, as the chat template
writes it; the mean, or the shorter option would win. With p = softmax(s) over the options of an item:

    accuracy   the share of items in which the right option's score is above every other's; a tie is not right
    distance   the mean over items of √JS(p, q), q how people answer; JS in bits (Lin, IEEE Trans. Inf. Theory 37(1))

Deterministic for the same machine, threads and batches. Logits only at the options' tokens; what the options of an
item have in common is computed once. It reads no file and decides nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from commonweal_node.model.chat import ChatTokenizer, ChatWriter
from commonweal_node.model.heldout import BATCH_TOKENS
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.packing import Batch, pack_together
from commonweal_node.model.tensors import AdapterTensors
from commonweal_node.model.tokens import Tokenised
from commonweal_node.probes.probe import Item, Probe
from commonweal_protocols.base.errors import ConfigError, LocalError
from commonweal_protocols.statements.adoption import Measure

MAX_ITEM_TOKENS = 4096
"""Of a question and all of its options: attention over a row takes memory by its square."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedProbe:
    """A probe's questions in batches, for any number of models."""

    measure: Measure
    batches: list[Batch]
    wanted: tuple[tuple[float, ...], ...]
    """For each item the probability of each of its options."""


def pack_probe(probe: Probe, tokenizer: ChatTokenizer) -> PackedProbe:
    """Write each item's question with each of its options, and pack them, an item's options in one row.

    Raises:
        ConfigError: An item is too long, or the chat template refuses it.
    """
    examples: list[Tokenised] = []
    writer = ChatWriter(tokenizer)
    for item in probe.items:
        written = _write(item, writer)
        if (tokens := sum(len(e.ids) for e in written)) > MAX_ITEM_TOKENS:
            raise ConfigError(
                f"{item.where}: wanted at most {MAX_ITEM_TOKENS} tokens for a question with each option, got {tokens}"
            )
        examples += written
    sizes = [len(item.options) for item in probe.items]
    return PackedProbe(
        probe.measure, pack_together(examples, sizes, BATCH_TOKENS), tuple(item.wanted for item in probe.items)
    )


def _write(item: Item, writer: ChatWriter) -> list[Tokenised]:
    question = writer.write(item.messages, item.where, prompt=True)
    written = []
    for option in item.options:
        encoded = writer.encode(question + writer.guard(option), [len(question)])
        written.append(Tokenised(encoded.ids, tuple(len(question) <= a < b for a, b in encoded.spans)))
    return written


@torch.inference_mode()
def measure_probe(
    model: AdaptedModel, adapter: AdapterTensors | None, packed: PackedProbe, on_batch: Callable[[], None]
) -> float:
    """Return what a probe measures under an adapter, or (None) the base alone; from 0 to 1.

    Args:
        model: The base, whose tokenizer the probe was packed with.
        adapter: Of the model's spec, or a blend of twice its rank.
        packed: The questions.
        on_batch: Called before each batch; what it raises ends the measuring.

    Raises:
        BlobError: The adapter breaks the model's spec.
        LocalError: A score is not finite.
    """
    count = sum(map(len, packed.wanted))
    nats, tokens = np.zeros(count), np.zeros(count)
    with model.adapter(adapter):
        for batch in packed.batches:
            on_batch()
            found = model.log_probabilities(batch).cpu().double().numpy()
            nats += np.bincount(batch.owners, found, count)
            tokens += np.bincount(batch.owners, minlength=count)
    scores = nats / tokens
    if not np.isfinite(scores).all():
        raise LocalError("probe: wanted finite log-probabilities, got others (the adapter's values are too large)")
    return result(packed.measure, packed.wanted, scores)


def result(measure: Measure, wanted: Sequence[Sequence[float]], scores: NDArray[np.float64]) -> float:
    """Return what scores come to.

    Args:
        measure: Which of the two.
        wanted: For each item the probability of each of its options.
        scores: float64, one for each option of the first item, then of the second, and so on.
    """
    ends = np.cumsum([len(w) for w in wanted])
    found = []
    for q, s in zip(map(np.asarray, wanted), np.split(scores, ends[:-1]), strict=True):
        if measure == "accuracy":
            right = int(q.argmax())
            found.append(float(s[right] > np.delete(s, right).max()))
        else:
            found.append(_distance(np.exp(s - s.max()) / np.exp(s - s.max()).sum(), q))
    return sum(found) / len(found)


def _distance(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    m = (p + q) / 2

    def bits(x: NDArray[np.float64]) -> float:
        some = x > 0
        return float((x[some] * np.log2(x[some] / m[some])).sum())

    # Rounding can leave a hair below 0 or above 1.
    return float(np.sqrt(np.clip((bits(p) + bits(q)) / 2, 0, 1)))
