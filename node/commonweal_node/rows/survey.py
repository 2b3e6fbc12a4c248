"""What a node's rows are made of, in counts: kinds, splits, groups, lengths, languages, copies. Not a word of them.

Rows are read once and one at a time; what has to be remembered lies in a file that is gone afterwards.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Literal

from commonweal_node.charter.data_policy import NearDuplicates
from commonweal_node.rows.language import Identify
from commonweal_node.rows.memory import open_memory
from commonweal_node.rows.row import Row
from commonweal_node.rows.stages import by_exact_copy, by_near_copy, whole_text
from commonweal_node.rows.store import kind_of
from commonweal_protocols.base.errors import BaseModelError
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.values import Natural

Measure = Callable[[str], int]


class Lengths(Closed):
    """Of all texts of a row together, by nearest rank."""

    unit: Literal["tokens", "characters"]
    total: Natural
    least: Natural
    median: Natural
    p90: Natural
    most: Natural


class Survey(Closed):
    """All counts. ``languages`` is None where nothing tells languages apart (the extra ``data`` is not installed)."""

    rows: Natural
    kinds: dict[str, Natural]
    splits: dict[str, Natural]
    """By what the source says: train, heldout, not stated."""
    groups: Natural
    synthetic: Natural
    lengths: Lengths
    languages: dict[str, Natural] | None
    exact_copies: Natural
    near_copies: Natural
    """Beyond the exact ones, at a similarity of 0.85."""


def survey(rows: Iterable[Row], tokens: Measure | None, identify: Identify | None) -> Survey:
    """Count rows; there must be at least one.

    Args:
        rows: Any number.
        tokens: How many tokens a text has; None: lengths are in characters.
        identify: Tells a text's language; None: no languages.

    Raises:
        StorageError: The index cannot be written: the disk is full.
    """
    counts, kinds, splits, languages = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    lengths = Counter[int]()
    with open_memory() as copies, open_memory() as groups:
        for row in rows:
            text = whole_text(row.body)
            kinds[kind_of(row)] += 1
            splits[row.split or "not stated"] += 1
            lengths[tokens(text) if tokens else len(text)] += 1
            counts["synthetic"] += bool(row.synthetic)
            counts["groups"] += groups.add(hashlib.sha256(row.body.group.encode()).digest())
            if identify:
                languages[identify(text)[0]] += 1
            if not by_exact_copy(row, copies).rows:
                counts["exact"] += 1
            elif not by_near_copy(row, NearDuplicates(stage="near-duplicates"), copies).rows:
                counts["near"] += 1
    return Survey(
        rows=kinds.total(),
        kinds=dict(sorted(kinds.items())),
        splits=dict(sorted(splits.items())),
        groups=counts["groups"],
        synthetic=counts["synthetic"],
        lengths=_lengths(lengths, "tokens" if tokens else "characters"),
        languages=dict(languages.most_common()) if identify else None,
        exact_copies=counts["exact"],
        near_copies=counts["near"],
    )


def _lengths(lengths: Counter[int], unit: Literal["tokens", "characters"]) -> Lengths:
    ordered, n = Counter(dict(sorted(lengths.items()))), lengths.total()

    def at(rank: int) -> int:
        return next(islice(ordered.elements(), rank - 1, None))

    return Lengths(
        unit=unit,
        total=sum(length * count for length, count in ordered.items()),
        least=at(1),
        median=at(-(-n // 2)),
        p90=at(-(-n * 9 // 10)),
        most=at(n),
    )


def load_token_counter(base: Path) -> Measure:
    """Return what counts a text's tokens, from a base model's folder. Needs no torch.

    Raises:
        BaseModelError: There is no tokenizer.json in it that can be read.
    """
    from tokenizers import Tokenizer

    path = base / "tokenizer.json"
    if not path.is_file():
        raise BaseModelError(f"{path}: wanted a tokenizer, got none")
    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
