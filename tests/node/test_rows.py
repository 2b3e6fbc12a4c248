"""Rows: what a line may say, how an error names it, and that each row has one encoding."""

import json
from pathlib import Path

import pytest
from hypothesis import given

from commonweal_node.rows.row import (
    Pair,
    Row,
    format_row,
    parse_row,
    read_examples,
    read_pairs,
    read_texts,
)
from commonweal_protocols.base.errors import ConfigError
from tests.kit.rows import ROWS, conversation

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_rows_are_read_by_split_and_grouped_by_question(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        {"messages": [USER, ASSISTANT], "license": "CC0-1.0", "meta": {"qid": "q-1", "votes": []}},
        {"messages": [USER, ASSISTANT], "split": "heldout"},
        "",
    )
    (train,), (heldout,) = read_examples(path, "train"), read_examples(path, "heldout")
    assert (train.group, heldout.group) == ("q-1", "q")
    assert [m.content for m in train.messages] == ["q", "a"]


def test_one_file_serves_every_kind_of_training(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"messages": [USER, ASSISTANT]}, {"text": "once"}, PAIR)
    assert [e.group for e in read_examples(path, "train")] == ["q"]
    assert [t.content for t in read_texts(path, "train")] == ["once"]
    assert read_pairs(path, "train") == (Pair("p", "good", "bad", group="p"),)


BAD_ROWS: list[tuple[str, object, str]] = [
    ("not JSON", "{", "one JSON object, got something else at character"),
    ("not UTF-8", '{"text": "\udcff"}', "one JSON object, got bytes that are not UTF-8"),
    ("too deep", "[" * 100_000, "one JSON object, got a value that is too deep"),
    ("not an object", [1], "one JSON object, got a list"),
    ("unknown split", {"text": "t", "split": "some"}, "split: wanted 'train' or 'heldout' .* got text of 4 characters"),
    ("no kind", {}, r"wanted one of messages, text and prompt \(with completion, or with .* got none of them"),
    ("two kinds", {"text": "t", "messages": []}, "got messages and text"),
    ("no messages", {"messages": []}, "messages: wanted a list of 1 to 200 messages, got 0"),
    ("message is text", {"messages": ["hi"]}, r"messages\[0\]: wanted an object .* got text of 2 characters"),
    ("unknown role", {"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\].role: .* text of 4 characters"),
    (
        "empty content",
        {"messages": [USER, {"role": "assistant", "content": " "}]},
        r"messages\[1\].content.* blank text",
    ),
    ("user speaks last", {"messages": [USER]}, "the assistant last"),
    ("two users in a row", {"messages": [USER, USER, ASSISTANT]}, "in turn"),
    ("system in the middle", {"messages": [USER, {"role": "system", "content": "s"}]}, "in turn"),
    ("no text", {"text": 3}, "text: wanted some text, got a number"),
    ("half a character", '{"text": "\\ud800"}', "text: wanted valid Unicode, got half of a surrogate pair"),
    ("no rejected answer", {"prompt": "p", "chosen": "c"}, "rejected: wanted some text, got nothing"),
    ("no preference", PAIR | {"rejected": "good"}, "got the same text twice"),
    ("a licence without end", {"text": "t", "license": "L" * 201}, "license: wanted at most 200 characters, got 201"),
    (
        "clauses are text",
        {"text": "t", "meta": {"synthetic": "1"}},
        "meta.synthetic: wanted a list of clauses, got text",
    ),
    ("a line without end", '{"x": "' + "y" * (1 << 20) + '"}', "wanted at most 1048576 bytes"),
]


@pytest.mark.parametrize(("why", "row", "message"), BAD_ROWS, ids=[r[0] for r in BAD_ROWS])
def test_a_bad_row_is_refused_by_file_and_line(tmp_path: Path, why: str, row: object, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    line = row if isinstance(row, str) else json.dumps(row)
    path.write_bytes(json.dumps({"text": "good"}).encode() + b"\n" + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(ConfigError, match=rf"rows\.jsonl, line 2: .*{message}"):
        read_examples(path, "train")


CANARY = "canary-7d1f"
PLANTED: list[object] = [
    f'{{"text": "{CANARY}" {CANARY}',
    [CANARY],
    {"text": "t", "split": CANARY},
    {"messages": CANARY},
    {"messages": [CANARY]},
    {"messages": [{"role": CANARY, "content": CANARY}]},
    {"messages": [{"role": "user", "content": CANARY}]},
    {"prompt": CANARY, "chosen": CANARY, "rejected": CANARY},
    {"text": "t", "license": CANARY * 100},
    {"text": CANARY + "\ud800"},
    f'{{"{CANARY}": "{"y" * (1 << 20)}"}}',
]


@pytest.mark.parametrize("row", PLANTED)
def test_no_error_repeats_a_word_of_the_row(tmp_path: Path, row: object) -> None:
    with pytest.raises(ConfigError) as e:
        read_examples(write(tmp_path / "rows.jsonl", row), "train")
    said: BaseException | None = e.value
    while said is not None:
        # Neither what is printed nor what a crash reporter would find in the exceptions.
        assert CANARY not in f"{said} {said.args} {vars(said)}"
        said = said.__cause__ or (None if said.__suppress_context__ else said.__context__)


def test_a_file_without_rows_of_the_split_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"messages": [USER, ASSISTANT]})
    with pytest.raises(ConfigError, match="at least one row of split 'heldout' that is a conversation, got none"):
        read_examples(path, "heldout")
    with pytest.raises(ConfigError, match="at least one row of split 'train' that is a text, got none"):
        read_texts(path, "train")
    with pytest.raises(ConfigError, match=r"missing\.jsonl: wanted a readable file, got: No such file"):
        read_examples(tmp_path / "missing.jsonl", "train")


@given(ROWS)
def test_what_is_written_is_read_as_the_same_row_and_is_one_line(row: Row) -> None:
    line = format_row(row)
    assert line.count(b"\n") == 1
    assert parse_row(line, "there") == row
    assert format_row(parse_row(line, "there")) == line


def test_a_group_that_follows_from_the_body_is_not_written_a_second_time() -> None:
    assert b"qid" not in format_row(Row(conversation([("who?", "me")], None, None)))
    assert b"qid" in format_row(Row(conversation([("who?", "me")], None, "q-1")))
