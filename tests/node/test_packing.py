"""Packing: every example whole, seen by nobody else, and pairs never parted."""

import numpy as np

from commonweal_node.model.packing import PADDING, PREFIX, attention_allowed, pack, pack_pairs
from commonweal_node.model.tokens import Tokenised, tokenise
from tests.kit.tiny_model import EXAMPLES, tiny_tokenizer


def test_packing_keeps_every_example_with_its_positions_and_targets() -> None:
    examples = tokenise(EXAMPLES, tiny_tokenizer(), 500).examples
    batches = pack(examples, 150, 300)
    seen = []
    for batch in batches:
        predicted = dict(zip(batch.predictors.tolist(), batch.targets.tolist(), strict=True))
        for r, row in enumerate(batch.segments):
            prefix = [int(t) for t in batch.ids[r][row == PREFIX]]
            for s in range(1, row.max() + 1):
                at = np.flatnonzero(row == s)
                ids = prefix + [int(t) for t in batch.ids[r, at]]
                assert [*range(len(prefix)), *batch.positions[r, at].tolist()] == [*range(len(ids))]
                (match,) = (e for e in examples if e.ids == tuple(ids))
                seen.append(match)
                for k, supervised in enumerate(match.supervised[len(prefix) :]):
                    if supervised and k > 0:
                        assert predicted[r * row.size + at[k] - 1] == ids[len(prefix) + k]
    assert sorted(e.ids for e in seen) == sorted(e.ids for e in examples)
    assert sum(len(b.targets) for b in batches) == sum(sum(e.supervised) for e in examples)


def test_a_token_sees_its_own_example_and_the_prefix_and_nothing_later() -> None:
    a, b = Tokenised((1, 2, 3, 4), (False, False, True, True)), Tokenised((1, 2, 5), (False, False, True))
    (batch,) = pack([a, b], 16, 16)
    assert batch.segments.tolist() == [[0, 0, 1, 1, 2]]
    assert attention_allowed(batch).astype(int).tolist() == [
        [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 0, 0, 1],
        ]
    ]
    # The prefix's last token predicts the first own token of both.
    assert batch.predictors.tolist() == [1, 2, 1]
    assert batch.targets.tolist() == [3, 4, 5]


def test_padding_is_seen_by_nobody_but_itself() -> None:
    long, short = Tokenised((1,) * 6, (False,) + (True,) * 5), Tokenised((2, 3), (False, True))
    (batch,) = pack([long, short], 6, 12)
    padding = batch.segments[1] == PADDING
    allowed = attention_allowed(batch)[1]
    assert padding.tolist() == [False, False, True, True, True, True]
    assert not allowed[~padding][:, padding].any()
    assert not allowed[padding][:, ~padding].any()
    assert allowed.diagonal().all()
    assert batch.tokens == 8


def test_owners_say_whose_target_it_is() -> None:
    examples = tokenise(EXAMPLES, tiny_tokenizer(), 500).examples
    for batches in (pack(examples, 150, 300), pack_pairs(examples[:4], 300)):
        found: dict[int, list[int]] = {}
        for batch in batches:
            for owner, target in zip(batch.owners.tolist(), batch.targets.tolist(), strict=True):
                found.setdefault(owner, []).append(target)
        assert found == {
            i: [t for t, s in zip(examples[i].ids, examples[i].supervised, strict=True) if s] for i in sorted(found)
        }


def test_a_pair_shares_its_question_and_stands_in_one_row() -> None:
    chosen = Tokenised((1, 2, 3, 4), (False, False, False, True))
    rejected = Tokenised((1, 2, 3, 5, 6), (False, False, False, True, True))
    other = (Tokenised((7, 8), (False, True)), Tokenised((7, 9), (False, True)))
    (batch,) = pack_pairs([*other, chosen, rejected], 64)
    assert batch.segments.tolist() == [[0, 0, 0, 1, 2, 2], [0, 1, 2, PADDING, PADDING, PADDING]]
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 3, 4], [0, 1, 1, 0, 0, 0]]
    assert batch.owners.tolist() == [2, 3, 3, 0, 1]
    assert batch.predictors.tolist() == [2, 2, 4, 6, 6]
    assert [len(b.ids) for b in pack_pairs([*other, chosen, rejected], 6)] == [1, 1]
