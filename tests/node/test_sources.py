"""Sources: every format gives the same rows, and what is malformed is named by file and place, without a word of it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commonweal_node.rows.row import Example, Message, Pair, Row, Text
from commonweal_node.rows.shapes import Columns
from commonweal_node.rows.sources import MAX_TEXT_CHARACTERS, format_of, parse_mapping, read_source
from commonweal_protocols.base.errors import ConfigError

CANARY = "canary-5e0c"
CHAT = Example((Message("user", 'Who brews "tea"?'), Message("assistant", "My neighbour,\nfrom leaves.")), "q-1")
ROW = Row(CHAT, "heldout", "CC0-1.0")
TABLE: dict[str, list[Any]] = {
    "user": ['Who brews "tea"?'],
    "assistant": ["My neighbour,\nfrom leaves."],
    "group": ["q-1"],
    "split": ["heldout"],
    "license": ["CC0-1.0"],
    "votes": [3],
}


def jsonl(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    value = {
        "messages": [{"role": m.role, "content": m.content} for m in CHAT.messages],
        "meta": {"qid": "q-1"},
        "split": "heldout",
        "license": "CC0-1.0",
    }
    path.write_text(json.dumps(value) + "\n")
    return path


def csv_file(folder: Path) -> Path:
    path = folder / "rows.csv"
    quoted = ['"Who brews ""tea""?"', '"My neighbour,\nfrom leaves."', "q-1", "heldout", "CC0-1.0", "3"]
    path.write_bytes(("\ufeff" + ",".join(TABLE) + "\r\n" + ",".join(quoted) + "\r\n").encode())
    return path


def parquet(folder: Path, table: dict[str, list[Any]] = TABLE) -> Path:
    path = folder / "rows.parquet"
    pq.write_table(pa.table(table), path)
    return path


def saved_dataset(folder: Path, table: dict[str, list[Any]] = TABLE) -> Path:
    """As ``Dataset.save_to_disk`` lays it out: two Arrow streams, and the JSON that names them."""
    root = folder / "dataset"
    root.mkdir()
    whole = pa.table(table)
    names = [f"data-{i:05}-of-00002.arrow" for i in range(2)]
    half = whole.num_rows // 2
    for name, part in zip(names, (whole.slice(0, half), whole.slice(half)), strict=True):
        with pa.ipc.new_stream(root / name, whole.schema) as writer:
            writer.write_table(part)
    (root / "dataset_info.json").write_text("{}")
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names]}))
    return root


@pytest.mark.parametrize("make", [jsonl, csv_file, parquet, saved_dataset])
def test_every_format_gives_the_same_row(tmp_path: Path, make: Any) -> None:  # noqa: ANN401 (one of four functions)
    assert list(read_source(make(tmp_path))) == [ROW]


def test_a_mapping_names_the_columns_of_a_table(tmp_path: Path) -> None:
    table: dict[str, list[Any]] = {"question": ["who?"], "answer": ["me"], "thread": [7], "text": ["not asked for"]}
    mapping = parse_mapping(["user=question", "assistant=answer", "group=thread"])
    with pytest.raises(ConfigError, match="got text and user"):
        list(read_source(parquet(tmp_path, table), Columns(mapping)))
    del table["text"]
    (row,) = read_source(parquet(tmp_path, table), Columns(mapping))
    assert row == Row(Example((Message("user", "who?"), Message("assistant", "me")), "7"))


def test_preferences_and_messages_are_read_from_tables(tmp_path: Path) -> None:
    pairs = {"prompt": ["p"], "chosen": ["good"], "rejected": ["bad"]}
    assert [r.body for r in read_source(parquet(tmp_path, pairs))] == [Pair("p", "good", "bad", "p")]
    turns = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "me"}]
    for messages in ([turns], [json.dumps(turns)]):
        (row,) = read_source(parquet(tmp_path, {"messages": messages}))
        assert row.body == Example((Message("user", "who?"), Message("assistant", "me")), "who?")


def test_a_dictionary_of_splits_is_read_whole(tmp_path: Path) -> None:
    for name, text in (("train", "a"), ("test", "b")):
        (tmp_path / name).mkdir()
        saved_dataset(tmp_path / name, {"text": [text, text + text]}).rename(tmp_path / f"{name}-moved")
        (tmp_path / name).rmdir()
        (tmp_path / f"{name}-moved").rename(tmp_path / name)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    read = [(r.body.content, r.split) for r in read_source(tmp_path) if isinstance(r.body, Text)]
    assert read == [("a", "train"), ("aa", "train"), ("b", "heldout"), ("bb", "heldout")]


def test_a_document_is_cut_at_blank_lines_into_texts_of_one_group_and_loses_nothing(tmp_path: Path) -> None:
    paragraphs = ["".join(f"sentence {i} of paragraph {p}.\n" for i in range(60)) for p in range(20)]
    path = tmp_path / "book.txt"
    path.write_text("\n".join(paragraphs))
    rows = list(read_source(path))
    texts = [r.body for r in rows if isinstance(r.body, Text)]
    assert len(texts) == len(rows) > 1
    assert len({t.group for t in texts}) == 1
    assert all(len(t.content) <= MAX_TEXT_CHARACTERS for t in texts)
    assert "\n".join(t.content for t in texts).split() == path.read_text().split()
    # Every text begins where a paragraph does.
    assert all(t.content.startswith("sentence 0 of") for t in texts)


def test_a_paragraph_without_end_is_cut_between_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "long.md"
    path.write_text("one line of it\n" * 2000)
    texts = [r.body.content for r in read_source(path) if isinstance(r.body, Text)]
    assert len(texts) > 1
    assert {line for t in texts for line in t.splitlines()} == {"one line of it"}
    assert sum(len(t.splitlines()) for t in texts) == 2000


def test_rows_after_blank_records_are_counted_by_their_own_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('text,split\n"a\nb",train\n\nc,elsewhere\n')
    with pytest.raises(ConfigError, match=r"t\.csv, line 5: split: wanted 'train' or 'heldout'"):
        list(read_source(path))


MALFORMED: list[tuple[str, str, bytes, str]] = [
    ("not JSON", "r.jsonl", f'{{"text": "t"}}\n{CANARY}\n'.encode(), "r.jsonl, line 2: wanted one JSON object"),
    (
        "another key",
        "r.jsonl",
        f'{{"txt": "{CANARY}"}}\n'.encode(),
        "r.jsonl, line 1: wanted fields of a row, got 'txt'",
    ),
    ("no text", "r.csv", b"text\nt\n  \n", "r.csv, line 3: text: wanted some text, got blank text"),
    ("too few columns", "r.csv", f"text,split\n{CANARY}\n".encode(), "r.csv, line 2: wanted 2 fields, got 1"),
    ("an open quote", "r.csv", f'text\n"{CANARY}\n'.encode(), "r.csv, line 2: wanted CSV .RFC 4180., got"),
    (
        "text after a quote",
        "r.csv",
        f'text\n"{CANARY}"{CANARY}\n'.encode(),
        "r.csv, line 2: wanted CSV .RFC 4180., got",
    ),
    ("a record without end", "r.csv", b'text\n"' + b"x\n" * (1 << 19), "in a record, got more"),
    ("a field without end", "r.csv", b"text\n" + b"x" * ((1 << 20) + 1), "r.csv, line 2: wanted at most 1048576 bytes"),
    ("not UTF-8", "r.csv", b"text\n\xff\xfe\n", "r.csv, line 2: wanted UTF-8"),
    ("no columns", "r.csv", b"", "r.csv, line 1: wanted a header, got nothing"),
    ("unknown columns", "r.csv", b"body\nt\n", "r.csv: wanted fields of a row, got 'body', which may change"),
    ("longer as JSON", "r.csv", b"text\n" + b"\x01" * 200_000, "r.csv, line 2: wanted at most 1048576 bytes as a line"),
    (
        "an answer is missing",
        "r.csv",
        b"user,assistant\nq,\n",
        r"r.csv, line 2: messages\[1\].content: wanted some text",
    ),
    ("not UTF-8", "r.txt", b"fine\n\xff\n", "r.txt, line 2: wanted UTF-8"),
    ("no Parquet", "r.parquet", CANARY.encode(), r"r.parquet: wanted a Parquet file, .* \(ArrowInvalid\)"),
    ("another format", "r.docx", b"", "r.docx: wanted one of .csv, .json, .jsonl, .* got another"),
]


@pytest.mark.parametrize(("why", "name", "data", "message"), MALFORMED, ids=[f"{m[1]}: {m[0]}" for m in MALFORMED])
def test_what_is_malformed_is_named_by_file_and_line(
    tmp_path: Path, why: str, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message) as e:
        list(read_source(tmp_path / name))
    said: BaseException | None = e.value
    while said is not None:
        assert CANARY not in f"{said} {said.args}"
        said = said.__cause__ or (None if said.__suppress_context__ else said.__context__)


BAD_TABLES: list[tuple[str, dict[str, list[Any]], str]] = [
    ("a number for a text", {"text": [1]}, "row 1: text: wanted some text, got a number"),
    ("nothing for a text", {"text": ["a", None]}, "row 2: wanted one of messages, text and prompt"),
    ("no list of messages", {"messages": [CANARY]}, "row 1: messages: wanted a list of messages, got text that is no"),
    ("one answer twice", {"prompt": ["p"], "chosen": ["a"], "rejected": ["a"]}, "row 1: wanted a rejected answer"),
]


@pytest.mark.parametrize(("why", "table", "message"), BAD_TABLES, ids=[b[0] for b in BAD_TABLES])
@pytest.mark.parametrize("make", [parquet, saved_dataset])
def test_a_bad_row_of_a_binary_table_is_named_by_its_number(
    tmp_path: Path,
    make: Any,  # noqa: ANN401 (one of two functions)
    why: str,
    table: dict[str, list[Any]],
    message: str,
) -> None:
    if make is saved_dataset:
        # Two files: each counts its own rows.
        message = re.sub(r"row \d", r"row \\d", message)
    with pytest.raises(ConfigError, match=message) as e:
        list(read_source(make(tmp_path, table)))
    assert CANARY not in str(e.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("state.json", '{"_data_files": [{"filename": "../../etc/passwd"}]}', "wanted names of files in this folder"),
        ("state.json", '{"_data_files": []}', "wanted names of files in this folder"),
        ("state.json", "[", "wanted JSON with a list '_data_files'"),
        ("data-00000-of-00002.arrow", "x", r"wanted an Arrow file, got one that cannot be read \(Arrow"),
    ],
)
def test_a_saved_folder_stays_within_itself(tmp_path: Path, name: str, text: str, message: str) -> None:
    root = saved_dataset(tmp_path)
    (root / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        list(read_source(root))


def test_a_source_that_is_not_there_or_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wanted a file, got none"):
        format_of(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match=r"wanted a folder with dataset_info\.json"):
        format_of(tmp_path)


@pytest.mark.parametrize("pair", ["user", "user=", "nobody=x", "user=a"])
def test_a_mapping_is_field_equals_column_once(pair: str) -> None:
    with pytest.raises(ConfigError, match=f"--map {pair}: wanted FIELD=COLUMN"):
        parse_mapping(["user=q", pair])


def test_a_mapping_to_a_column_that_is_missing_and_one_for_a_document_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wanted a column 'body'"):
        list(read_source(csv_file(tmp_path), Columns({"text": "body"})))
    (tmp_path / "letter.txt").write_text("dear all")
    with pytest.raises(ConfigError, match="wanted --map and --ignore with fields or columns"):
        list(read_source(tmp_path / "letter.txt", Columns({"text": "body"})))


@pytest.mark.parametrize("package", ["pyarrow", "py3langid"])
def test_without_the_extra_a_command_says_what_to_install(tmp_path: Path, package: str) -> None:
    policy = '[data]\n[[data.stages]]\nstage = "language"\nlanguages = ["en"]\n[[data.stages]]\nstage = "scrub"\n'
    charter = tmp_path / "charter.toml"
    head = 'community = "x"\nversion = 1\nprinciples = ["p"]\ndata_policy = "p"\n'
    charter.write_text(f'{head}{policy}[[data.stages]]\nstage = "split"\n')
    rows = jsonl(tmp_path)
    home = tmp_path / "home"
    parquet(tmp_path)
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Block())
from commonweal_protocols.cli import run
home = {str(home)!r}
assert run(["node", "init", "--institution", "x", "--data", {str(rows)!r}, "--charter", {str(charter)!r},
            "--home", home]) == 0
assert run(["node", "data", "add", {str(rows)!r}, "--home", home]) == 0
last = ["add", {str(tmp_path / "rows.parquet")!r}] if {package!r} == "pyarrow" else ["curate"]
sys.exit(run(["node", "data", *last, "--home", home]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "pip install 'commonweal[node,data]'" in done.stderr
