"""From an institution's own rows to tokens. Nothing of them ever leaves the node.

Guarantees: labels cover the assistant's tokens and no other, which is verified against the chat template and not
assumed; the order of examples and the halves of the held-out rows follow from hashes and a seed alone. No torch, no
I/O, no clock, no random state.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


class ChatTokenizer(Protocol):
    """The part of a Hugging Face fast tokenizer that is used here."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> Any:  # noqa: ANN401 (text, with tokenize=False)
        """Write a conversation as one text."""

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> Any:  # noqa: ANN401 (a BatchEncoding)
        """Token ids and their character spans."""


def tokenise(examples: Sequence[Example], tokenizer: ChatTokenizer, max_tokens: int) -> TokenisedSet:
    """Write each example with the tokenizer's own chat template and mark the assistant's tokens.

    Supervised are every assistant turn's content and its end-of-turn token; the white space that a template puts after
    the turn is not. Each example is cut at ``max_tokens``; one with no supervised token left is dropped and counted.

    Raises:
        BaseModelError: The template does not write a conversation turn by turn, or a token spans the border of a turn,
            so that no exact labels exist.
    """
    kept, dropped, truncated = [], 0, 0
    for example in examples:
        whole = _tokenise_one(example, tokenizer)
        cut = Tokenised(whole.ids[:max_tokens], whole.supervised[:max_tokens])
        # The first token has no predecessor that could predict it.
        if any(cut.supervised[1:]):
            kept.append(cut)
            truncated += len(whole.ids) > max_tokens
        else:
            dropped += 1
    return TokenisedSet(tuple(kept), dropped, truncated)


def _tokenise_one(example: Example, tokenizer: ChatTokenizer) -> Tokenised:
    turns = [{"role": m.role, "content": m.content} for m in example.messages]

    def render(count: int, prompt: bool) -> str:
        return str(tokenizer.apply_chat_template(turns[:count], tokenize=False, add_generation_prompt=prompt))

    text = render(len(turns), False)
    spans = []
    for i, message in enumerate(example.messages):
        if message.role != "assistant":
            continue
        before, after = render(i, True), render(i + 1, False)
        # A template may rewrite earlier turns (some drop old reasoning); then its spans would be somewhere else.
        if not after.startswith(before) or not text.startswith(after):
            raise BaseModelError(
                f"chat template: wanted turn {i + 1} to extend the text before it, got a different text "
                "(this base model's template cannot be trained on)"
            )
        spans.append((len(before), len(after.rstrip())))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    supervised = [False] * len(encoded["input_ids"])
    for start, end in spans:
        for k, (a, b) in enumerate(encoded["offset_mapping"]):
            if a < start < b:
                raise BaseModelError(
                    f"tokenizer: wanted a token border where the assistant begins, got {text[a:b]!r} across it"
                )
            if start <= a < end and a < b:
                supervised[k] = True
    return Tokenised(tuple(encoded["input_ids"]), tuple(supervised))


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
