"""A community's rows as tokens, of the kinds that its objectives ask for. Nothing of the file leaves the node.

A text becomes pieces of at most ``max_tokens``, each trained on by itself, every token but a piece's first supervised.
A preference becomes two conversations with the same question; where cutting leaves no difference, it is dropped.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.model.chat import ChatWriter
from commonweal_node.model.tokens import Tokenised, tokenise
from commonweal_node.rows.row import Example, Message, Pair, Split, Text, read_examples, read_pairs, read_texts
from commonweal_node.training.objectives import TokenisedPair, TrainingRows
from commonweal_protocols.base.errors import ConfigError


def load_training_rows(
    path: Path,
    split: Split,
    weights: ObjectiveWeights,
    tokenizer: Any,  # noqa: ANN401 (a Hugging Face fast tokenizer)
    max_tokens: int,
) -> TrainingRows:
    """Read what ``weights`` trains on.

    Raises:
        ConfigError: A row is malformed, or an objective with a weight has no row with a supervised token.
        BaseModelError: The chat template cannot be trained on.
    """
    talks = weights.supervised_millis or weights.base_kl_millis
    pairs = weights.dpo_millis or weights.simpo_millis
    rows = TrainingRows(
        tokenise(read_examples(path, split), tokenizer, max_tokens).examples if talks else (),
        tokenise_texts(read_texts(path, split), tokenizer, max_tokens) if weights.text_millis else (),
        tokenise_pairs(read_pairs(path, split), tokenizer, max_tokens) if pairs else (),
    )
    for wanted, found, kind in (
        (talks, rows.conversations, "conversations"),
        (weights.text_millis, rows.texts, "texts"),
        (pairs, rows.pairs, "preferences"),
    ):
        if wanted and not found:
            raise ConfigError(f"{path}: wanted {kind} with a supervised token in {max_tokens} tokens, got none")
    return rows


def tokenise_texts(
    texts: Iterable[Text],
    tokenizer: Any,  # noqa: ANN401 (a Hugging Face fast tokenizer)
    max_tokens: int,
) -> tuple[Tokenised, ...]:
    """Cut texts into pieces of tokens; where the tokenizer has an end-of-text token, each text ends with it."""
    pieces, writer = [], ChatWriter(tokenizer)
    for text in texts:
        ids = list(writer.encode(writer.guard(text.content)).ids)
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        for at in range(0, len(ids), max_tokens):
            piece = tuple(ids[at : at + max_tokens])
            # One token alone has no predecessor that could predict it.
            if len(piece) > 1:
                pieces.append(Tokenised(piece, (False,) + (True,) * (len(piece) - 1)))
    return tuple(pieces)


def tokenise_pairs(
    pairs: Iterable[Pair],
    tokenizer: Any,  # noqa: ANN401 (a Hugging Face fast tokenizer)
    max_tokens: int,
) -> tuple[TokenisedPair, ...]:
    """Write both answers of each preference with the chat template, labels on the answers alone."""
    made = []
    for pair in pairs:
        both = [
            Example((Message("user", pair.prompt), Message("assistant", answer)), pair.group, pair.where)
            for answer in (pair.chosen, pair.rejected)
        ]
        cut = tokenise(both, tokenizer, max_tokens).examples
        if len(cut) == 2 and cut[0].ids != cut[1].ids:
            made.append(TokenisedPair(*cut))
    return tuple(made)
