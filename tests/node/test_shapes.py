"""The shapes that people bring rows in: read as what they say, or refused by file, line and name."""

import json
from pathlib import Path

import pytest

from commonweal_node.rows.json_objects import MAX_LINE_BYTES
from commonweal_node.rows.row import Body, Example, Message, Pair, Row, format_row, parse_row, read_rows
from commonweal_node.rows.shapes import Columns
from commonweal_node.rows.sources import read_source
from commonweal_protocols.base.errors import ConfigError

ASKED, ANSWERED = "when does the boat leave?", "at seven"
USER, ASSISTANT = {"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}
CHAT = Example((Message("user", ASKED), Message("assistant", ANSWERED)), ASKED)
PAIR = Pair(ASKED, ANSWERED, "no idea", ASKED)
BAD = {"role": "assistant", "content": "no idea"}


def with_system(system: str) -> Example:
    return Example((Message("system", system), *CHAT.messages), ASKED)


def row(**value: object) -> Row:
    return parse_row(json.dumps(value).encode(), "r.jsonl, line 7")


SHAPES: list[tuple[str, dict[str, object], Body]] = [
    ("ShareGPT", {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWERED}]}, CHAT),
    ("ShareGPT with a system", {"conversations": [USER, ASSISTANT], "system": "be brief"}, with_system("be brief")),
    ("Alpaca", {"instruction": ASKED, "input": "", "output": ANSWERED}, CHAT),
    ("Alpaca with a system", {"instruction": ASKED, "output": ANSWERED, "system": "be brief"}, with_system("be brief")),
    (
        "Alpaca with an input",
        {"instruction": "translate", "input": "boat", "output": "Boot"},
        Example((Message("user", "translate\n\nboat"), Message("assistant", "Boot")), "translate\n\nboat"),
    ),
    ("prompt and completion", {"prompt": ASKED, "completion": ANSWERED}, CHAT),
    ("both as messages", {"prompt": [USER], "completion": [ASSISTANT]}, CHAT),
    ("columns of a table", {"user": ASKED, "assistant": ANSWERED}, CHAT),
    ("parts of text", {"messages": [USER | {"content": [{"type": "text", "text": ASKED}]}, ASSISTANT]}, CHAT),
    ("preference as messages", {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [BAD]}, PAIR),
    ("the question in both answers", {"chosen": [USER, ASSISTANT], "rejected": [USER, BAD]}, PAIR),
    ("the question once more", {"prompt": ASKED, "chosen": [USER, ASSISTANT], "rejected": [USER, BAD]}, PAIR),
    ("nothing is nothing", {"messages": [USER | {"tool_calls": None}, ASSISTANT], "tools": [], "label": None}, CHAT),
]


@pytest.mark.parametrize(("why", "value", "body"), SHAPES, ids=[s[0] for s in SHAPES])
def test_a_well_known_shape_is_read_as_what_it_says(why: str, value: dict[str, object], body: Body) -> None:
    assert row(**value).body == body


def test_answers_in_a_prompt_are_read_and_not_learnt() -> None:
    body = row(prompt=[USER, BAD, USER], completion=[ASSISTANT]).body
    assert isinstance(body, Example)
    assert [m.is_learnt for m in body.messages if m.role == "assistant"] == [False, True]


def test_a_turn_of_weight_0_stays_one_through_the_store_and_others_are_written_as_before() -> None:
    kept = row(messages=[USER, BAD | {"weight": 0}, USER, ASSISTANT | {"weight": 1}])
    assert format_row(kept).count(b'"weight":0') == 1
    assert b'"weight":1' not in format_row(kept)
    assert parse_row(format_row(kept), "") == kept
    assert isinstance(kept.body, Example)
    assert [m.is_learnt for m in kept.body.messages] == [True, False, True, True]


@pytest.mark.parametrize("split", ["validation", "valid", "dev", "eval", "test", "heldout"])
def test_whatever_a_held_out_split_is_called_it_is_held_out(split: str) -> None:
    assert row(text="t", split=split).split == "heldout"


# -- groups


@pytest.mark.parametrize("name", ["7", 7, 7.0])
@pytest.mark.parametrize("group", [lambda g: {"group": g}, lambda g: {"meta": {"qid": g}}])
def test_a_number_is_a_groups_name_wherever_it_stands(name: object, group: object) -> None:
    assert callable(group)
    assert row(text="t", **group(name)).body.group == "7"


@pytest.mark.parametrize("name", [True, [7], {"n": 7}, 7.5])
def test_a_groups_name_of_another_type_is_an_error(name: object) -> None:
    for value, where in (({"group": name}, "group"), ({"meta": {"qid": name}}, "meta.qid")):
        with pytest.raises(ConfigError, match=f"r.jsonl, line 7: {where}: wanted"):
            row(text="t", **value)


def test_two_names_of_one_rows_group_are_refused() -> None:
    assert row(text="t", group="a", meta={"qid": "a"}).body.group == "a"
    with pytest.raises(ConfigError, match=r"line 7: wanted one group, got another one as meta\.qid"):
        row(text="t", group="a", meta={"qid": "b"})


# -- what may change what a row means

TURNS: list[tuple[dict[str, object], str]] = [
    ({"tool_calls": [{"id": "x"}]}, "'tool_calls', which may change what the turn means"),
    ({"reasoning_content": "hm"}, "'reasoning_content', which may"),
    ({"name": "ann"}, "'name', which may"),
    ({"train": False}, "'train', which may"),
    ({"weight": 0.5}, r"weight: wanted 0 or 1 .* got a number"),
    ({"weight": True}, r"weight: wanted 0 or 1 .* got a yes or no"),
]


@pytest.mark.parametrize(("more", "message"), TURNS, ids=[str(t[0]) for t in TURNS])
def test_a_key_of_a_turn_that_may_mean_something_is_refused_by_name(more: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"r\.jsonl, line 7: messages\[1\].*{message}"):
        row(messages=[USER, ASSISTANT | more])


@pytest.mark.parametrize("name", ["tools", "functions", "images", "label", "weight", "patient_id", "thread"])
def test_a_key_of_a_row_that_may_mean_something_is_refused_by_name_until_somebody_says_what_it_is(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"text": "t", name: "said"}))
    with pytest.raises(
        ConfigError, match=rf"r\.jsonl, line 1: wanted fields of a row, got '{name}'.*--ignore '{name}'"
    ):
        list(read_rows(path))
    assert [r.body.content for r in read_source(path, Columns(ignored=frozenset([name])))] == ["t"]  # type: ignore[union-attr]
    assert [r.body.group for r in read_source(path, Columns({"group": name}))] == ["said"]
    with pytest.raises(ConfigError, match=r"r\.jsonl, line 1: wanted the key 'else' \(see --map\), got none"):
        list(read_source(path, Columns({"group": "else"})))


def test_what_only_says_where_a_row_is_from_is_harmless() -> None:
    assert row(text="t", id=3, source="letters", url="https://example.org", timestamp=1).body == row(text="t").body


ODD: list[tuple[str, dict[str, object], str]] = [
    ("weights of 0 alone", {"messages": [USER, ASSISTANT | {"weight": 0}]}, "wanted an answer that is to be learnt"),
    ("a weight on a user", {"messages": [USER | {"weight": 1}, ASSISTANT]}, r"messages\[0\]\.weight"),
    ("a picture", {"messages": [USER | {"content": [{"type": "image", "url": "x"}]}, ASSISTANT]}, "part of type text"),
    ("something beside", {"text": "t", "output": "o"}, "wanted text with nothing but itself, got output"),
    ("both ends", {"prompt": "p", "completion": "c", "chosen": "a", "rejected": "b"}, "got both"),
    ("a longer preference", {"prompt": [USER, BAD, USER], "chosen": [ASSISTANT], "rejected": [BAD]}, "over one turn"),
    ("two questions", {"chosen": [USER, ASSISTANT], "rejected": [USER | {"content": "?"}, BAD]}, "over one turn"),
    ("no notes", {"text": "t", "meta": "m"}, "meta: wanted an object, got text"),
    ("NUL", {"text": "a\0b"}, "got some with a NUL character"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "value", "message"), ODD, ids=[o[0] for o in ODD])
def test_what_cannot_be_trained_on_is_refused_by_line(why: str, value: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"r\.jsonl, line 7.*{message}"):
        row(**value)


# -- files


def texts(path: Path) -> list[str]:
    return [format_row(r).decode() for r in read_source(path)]


LINES = '{"text": "a"}\n{"text": "b"}\n'


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("r.jsonl", LINES.encode()),
        ("r.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("r.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("r.json", LINES.encode()),
        ("r.json", b'[{"text": "a"}, {"text": "b"}]'),
        ("r.jsonl", b'\xef\xbb\xbf [\n {"text":\r\n "a"},\n {"text": "b"}\n]\n'),
        ("r.csv", b"text\na\nb\n"),
        ("r.csv", b"sep=;\r\ntext;id\r\na;1\r\nb;2\r\n"),
        ("r.csv", b"\xef\xbb\xbftext;id\r\na;1\r\nb;2\r\n"),
        ("r.csv", b",text\n0,a\n1,b\n"),
        ("r.tsv", b"text\tid\na\t1\nb\t2\n"),
        ("r.csv", b'"text"|"id"\n"a"|1\n\n"b"|2\n'),
    ],
)  # fmt: skip
def test_a_file_is_read_whatever_it_marks_its_beginning_its_lines_and_its_fields_with(
    tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    assert texts(tmp_path / name) == ['{"text":"a"}\n', '{"text":"b"}\n']


def test_a_long_list_is_read_an_object_at_a_time_and_counts_lines(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("[" + ",\n".join(json.dumps({"text": f"é{i}" * 2000}) for i in range(300)) + ',\n{"texte": 1}]')
    read = read_rows(path)
    assert [next(read).body.where for _ in range(300)] == [f"{path}, line {i + 1}" for i in range(300)]
    with pytest.raises(ConfigError, match=r"r\.json, line 301: wanted fields of a row, got 'texte'"):
        next(read)


REFUSED: list[tuple[str, str, bytes, str]] = [
    ("a key twice", "r.jsonl", b'{"text": "a", "text": "b"}', "line 1: wanted .* got the key 'text' twice"),
    ("a key twice within", "r.jsonl", b'{"text": "a", "meta": {"qid": 1, "qid": 2}}', "the key 'qid' twice"),
    ("NaN", "r.jsonl", b'{"text": "a", "votes": NaN}', "line 1: .* got NaN, which JSON does not have"),
    ("infinity", "r.jsonl", b'{"text": "a", "votes": -Infinity}', "line 1: .* got -Infinity"),
    ("a key that is no text", "r.jsonl", b'{"text": "a", "\\ud800": 1}', r"line 1: .* got '\\ud800'"),
    ("UTF-16", "r.jsonl", '{"text": "a"}'.encode("utf-16"), "line 1: .* bytes that are not UTF-8"),
    ("a list without end", "r.json", b'[{"text": "a"}\n', "line 2: wanted a comma or the end of the list"),
    ("a list with more", "r.json", b'[{"text": "a"}]\n{}', "line 2: wanted nothing after the list"),
    ("no object", "r.json", b'[\n"a"]', "line 2: wanted one JSON object, got text"),
    ("no JSON", "r.json", b'[{"text": "a"},\n{text: 1}]', "line 2: wanted one JSON object of at most"),
    ("a key twice in a list", "r.json", b'[{"text": "a", "text": "b"}]', "line 1: .* the key 'text' twice"),
    ("other bytes", "r.json", b'[{"text": "\xff"}]', "line 1: wanted UTF-8"),
    ("a huge one", "r.json", b'[{"text": "' + b"x" * (2 * MAX_LINE_BYTES) + b'"}]', "line 1: wanted one JSON object"),
    ("a column twice", "r.csv", b"text,text\na,b\n", "wanted each column once, got 'text' twice"),
    ("a column of another meaning", "r.csv", b"text,patient\na,b\n", "wanted fields of a row, got 'patient'"),
    ("Latin-1", "r.csv", "text;id\né;1\n".encode("latin-1"), "line 2: wanted UTF-8, got other bytes; save the table"),
    ("NUL in a table", "r.csv", b"text\na\0b\n", "line 2: text: wanted text, got some with a NUL"),
    ("NUL in a document", "r.txt", b"a\nb\0\n", "line 2: wanted text, got some with a NUL"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "name", "data", "message"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_could_be_read_in_two_ways_or_in_none_is_refused_by_file_and_line(
    tmp_path: Path, why: str, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message) as e:
        texts(tmp_path / name)
    assert str(e.value).startswith(str(tmp_path / name))
    assert str(e.value).isprintable()


def test_a_document_is_the_same_text_whichever_system_wrote_its_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\nthree\n")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n")
    one, two = ([r.body for r in read_source(tmp_path / n)] for n in ("a.txt", "b.txt"))
    assert [b.content for b in one] == [b.content for b in two]  # type: ignore[union-attr]
