"""What a node makes of its rows: labels, order, halves."""

from typing import Any, ClassVar

import pytest

from commonweal_node.model.tokens import (
    split_heldout,
    step_indices,
    tokenise,
)
from commonweal_node.rows.row import Example
from commonweal_protocols.base.errors import BaseModelError, ConfigError
from tests.kit.tiny_model import EXAMPLES, example, tiny_tokenizer


def test_labels_cover_exactly_the_assistants_tokens() -> None:
    tokenizer = tiny_tokenizer()
    (one,) = tokenise([EXAMPLES[2]], tokenizer, 500).examples
    runs, current = [], []
    for token, supervised in zip((*one.ids, 0), (*one.supervised, False), strict=True):
        if supervised:
            current.append(token)
        elif current:
            runs.append(tokenizer.decode(current))
            current = []
    assert runs == ["b<|im_end|>", "c, of course<|im_end|>"]
    assert tokenizer.decode(one.ids).startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\na<|im_end|>")


def test_an_answer_beyond_max_tokens_is_cut_and_one_without_any_is_dropped_and_counted() -> None:
    tokenizer = tiny_tokenizer()
    (whole,) = tokenise([EXAMPLES[0]], tokenizer, 500).examples
    begins = whole.supervised.index(True)
    cut = tokenise([EXAMPLES[0]], tokenizer, begins + 1)
    assert (cut.num_examples, cut.dropped, cut.truncated) == (1, 0, 1)
    assert cut.examples[0].ids == whole.ids[: begins + 1]
    gone = tokenise([EXAMPLES[0]], tokenizer, begins)
    assert (gone.num_examples, gone.dropped, gone.truncated) == (0, 1, 0)


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    rewriting = "{% for m in messages %}{{ '#' if not loop.last }}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    with pytest.raises(BaseModelError, match="chat template"):
        tokenise([EXAMPLES[2]], tiny_tokenizer(rewriting), 500)


def test_a_token_across_the_border_of_a_turn_is_made_apart_as_where_a_model_answers() -> None:
    class Greedy:
        """One token for whatever it is given."""

        added_tokens_decoder: ClassVar[dict[int, Any]] = {}

        def get_chat_template(self) -> str:
            return ""

        def apply_chat_template(self, conversation: list[dict[str, str]], **_: object) -> str:
            return "".join(f"{m['role']}:{m['content']};" for m in conversation)

        def __call__(self, text: str, **_: bool) -> dict[str, Any]:
            return {"input_ids": [len(text)], "offset_mapping": [(0, len(text))]}

    (one,) = tokenise([EXAMPLES[0]], Greedy(), 500).examples
    assert one.ids == (len("user:hello?;"), len("assistant:good day;"))
    assert one.supervised == (False, True)


def test_no_question_is_in_both_halves_and_none_ever_changes_its_half() -> None:
    rows = [Example(example(f"q{i % 20}", f"a{i}").messages, f"q{i % 20}") for i in range(60)]
    halves = split_heldout(rows, 1000)
    tune, report = {e.group for e in halves.tune}, {e.group for e in halves.report}
    assert not tune & report
    assert tune | report == {r.group for r in rows}
    fewer = split_heldout(rows[5:50], 1000)
    assert {e.group for e in fewer.tune} <= tune
    assert {e.group for e in fewer.report} <= report


def test_the_cap_keeps_a_fixed_choice_of_rows() -> None:
    rows = [example(f"q{i}", "a") for i in range(60)]
    capped = split_heldout(rows, 16)
    assert (len(capped.tune), len(capped.report)) == (8, 8)
    assert split_heldout(rows[::-1], 16) == capped


def test_rows_of_one_question_cannot_be_split() -> None:
    with pytest.raises(ConfigError, match="more distinct held-out questions"):
        split_heldout([example("q", "a"), example("q", "b")], 10)


def test_each_epoch_takes_every_example_once_and_a_step_none_twice() -> None:
    steps = list(step_indices(10, 4, 5, seed=3))
    assert sorted(i for step in steps[:5] for i in step) == sorted([*range(10)] * 2)
    assert all(len(set(step)) == 4 for step in steps)
    assert list(step_indices(10, 4, 5, seed=3)) == steps
    assert list(step_indices(10, 4, 5, seed=4)) != steps


def test_a_batch_larger_than_the_set_takes_the_whole_set() -> None:
    assert [sorted(s) for s in step_indices(3, 8, 2, seed=0)] == [[0, 1, 2], [0, 1, 2]]
