"""From an institution's own rows to tokens. Nothing of them ever leaves the node.

Guarantees: labels cover the assistant's tokens and no other, which is verified against the chat template and not
assumed; the order of examples and the halves of the held-out rows follow from hashes and a seed alone. No torch, no
I/O, no clock, no random state.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from commonweal_node.model.chat import ChatTokenizer, ChatWriter
from commonweal_node.rows.row import Example
from commonweal_protocols.base.errors import BaseModelError, ConfigError


@dataclass(frozen=True, slots=True)
class Tokenised:
    """One example's token ids, and for each whether it is supervised. Same length."""

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class TokenisedSet:
    """Examples ready for batches; ``dropped`` had no supervised token left, ``truncated`` lost some tokens."""

    examples: tuple[Tokenised, ...]
    dropped: int
    truncated: int

    @property
    def num_examples(self) -> int:
        """How many examples can be trained on."""
        return len(self.examples)


@dataclass(frozen=True, slots=True)
class HeldoutHalves:
    """Held-out examples in two halves that share no group: blends are chosen on one, results told from the other."""

    tune: tuple[Example, ...]
    report: tuple[Example, ...]


def tokenise(examples: Sequence[Example], tokenizer: ChatTokenizer, max_tokens: int) -> TokenisedSet:
    """Write each example with the tokenizer's own chat template and mark the assistant's tokens.

    Supervised are the content and the end-of-turn token of every assistant turn that is to be learnt; the white space
    that a template puts after the turn is not. A template may write a turn otherwise once others follow it (some drop
    old reasoning): then each of the turns is an example of its own, as the template writes it when it is the last. Each
    example is cut at ``max_tokens``; one with no supervised token left is dropped and counted.

    Raises:
        ConfigError: The template refuses an example; says which.
        BaseModelError: The template writes a turn otherwise than where it asks for it, so that no labels exist.
    """
    writer = ChatWriter(tokenizer)
    kept, dropped, truncated = [], 0, 0
    for example in examples:
        for whole in _tokenise_one(example, writer):
            cut = Tokenised(whole.ids[:max_tokens], whole.supervised[:max_tokens])
            # The first token has no predecessor that could predict it.
            if any(cut.supervised[1:]):
                kept.append(cut)
                truncated += len(whole.ids) > max_tokens
            else:
                dropped += 1
    return TokenisedSet(tuple(kept), dropped, truncated)


def _tokenise_one(example: Example, writer: ChatWriter) -> list[Tokenised]:
    learnt = [i for i, m in enumerate(example.messages) if m.role == "assistant" and m.is_learnt]
    if whole := _labelled(example, len(example.messages), learnt, writer):
        return [whole]
    alone = [_labelled(example, i + 1, [i], writer) for i in learnt]
    if None in alone:
        raise BaseModelError(
            f"{example.where}: chat template: wanted each turn to extend the text before it, got a different text "
            "(this base model's template cannot be trained on)"
        )
    return [one for one in alone if one is not None]


def _labelled(example: Example, count: int, learnt: Sequence[int], writer: ChatWriter) -> Tokenised | None:
    """The first ``count`` turns with labels on those that are learnt; None where they are no longer where they were."""
    where, turns = example.where or "a conversation", example.messages[:count]
    text = writer.write(turns, where, prompt=False)
    spans = []
    for i in learnt:
        before, after = writer.write(turns[:i], where, prompt=True), writer.write(turns[: i + 1], where, prompt=False)
        if not after.startswith(before) or not text.startswith(after):
            return None
        spans.append((len(before), len(after.rstrip())))
    encoded = writer.encode(text, [start for start, _ in spans])
    supervised = tuple(any(start <= a < end and a < b for start, end in spans) for a, b in encoded.spans)
    return Tokenised(encoded.ids, supervised)


def split_heldout(examples: Sequence[Example], max_heldout: int) -> HeldoutHalves:
    """Split held-out examples by the hash of their group, at most ``max_heldout`` / 2 in each half.

    A group stays in its half for ever, whatever rows come or go, so a blend never sees what results are told from.

    Raises:
        ConfigError: A half is empty: the rows hold too few distinct questions.
    """
    # The row's index breaks ties within a group, so the order is total.
    order = sorted((_digest("heldout", e.group), i) for i, e in enumerate(examples))
    half = max(1, max_heldout // 2)
    tune = tuple(examples[i] for digest, i in order if digest[0] & 1 == 0)[:half]
    report = tuple(examples[i] for digest, i in order if digest[0] & 1 == 1)[:half]
    if not tune or not report:
        raise ConfigError(
            f"held-out rows: wanted questions in both halves, got {len(tune)} and {len(report)} rows "
            "(give more distinct held-out questions)"
        )
    return HeldoutHalves(tune, report)


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def step_indices(count: int, batch_size: int, steps: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Which examples each training step takes: every example once in each epoch, in an order hashed from the seed.

    ``batch_size`` examples for each step (all ``count`` of them where there are fewer).
    """
    size = min(batch_size, count)
    queue: list[int] = []
    epoch = 0
    for _ in range(steps):
        while len(queue) < size:
            taken = set(queue)
            fresh = sorted(range(count), key=lambda i: _digest("order", seed, epoch, i))
            # Nothing may come twice in one step: what is still queued goes to the back of the new epoch.
            queue += [i for i in fresh if i not in taken] + [i for i in fresh if i in taken]
            epoch += 1
        yield tuple(queue[:size])
        del queue[:size]
