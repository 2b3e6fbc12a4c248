"""Rows: what an institution's own data is made of, and its one encoding. Nothing that is read here leaves the node.

A row is one line of JSON, of one of three kinds, told apart by its keys:

    {"messages": [{"role", "content"}, ...]}        a conversation that ends with the assistant
    {"text"}                                        a text, for continued pre-training
    {"prompt", "chosen", "rejected"}                a preference between two answers

Each may have ``split`` ("train" or "heldout"), ``license``, and ``meta`` with ``qid`` (the group that the row belongs
to: rows of one group are never on both sides of a split) and ``synthetic`` (the clauses by which a model wrote it).
Every other key is ignored, and :func:`format_row` does not write it.

An error names file and line, and what kind of thing stands there; never the value, because errors end up in logs.
No clock, no random state; the only I/O is to read a file.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from commonweal_protocols.base.errors import ConfigError

Split = Literal["train", "heldout"]
MAX_LINE_BYTES = 1 << 20
MAX_MESSAGES = 200
MAX_LABEL_CHARACTERS = 200
"""Of a licence, and of a clause's name."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation that ends with the assistant; ``group`` names the question it answers."""

    messages: tuple[Message, ...]
    group: str


@dataclass(frozen=True, slots=True)
class Text:
    """A text to go on pre-training with; ``group`` names the document it is from."""

    content: str
    group: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, of which people preferred the first."""

    prompt: str
    chosen: str
    rejected: str
    group: str


Body = Example | Text | Pair
B = TypeVar("B", Example, Text, Pair)


@dataclass(frozen=True, slots=True)
class Row:
    """A body and what is known about it. ``split`` is None where the source does not say."""

    body: Body
    split: Split | None = None
    license: str = ""
    synthetic: tuple[str, ...] = ()


def read_examples(path: Path, split: Split) -> tuple[Example, ...]:
    """Read the conversations of one split; rows of the other kinds are passed over.

    Raises:
        ConfigError: The file cannot be read, a line breaks the schema, or no such row is there.
    """
    return _read(path, split, Example)


def read_texts(path: Path, split: Split) -> tuple[Text, ...]:
    """Read the texts of one split; rows of the other kinds are passed over.

    Raises:
        ConfigError: See :func:`read_examples`.
    """
    return _read(path, split, Text)


def read_pairs(path: Path, split: Split) -> tuple[Pair, ...]:
    """Read the preferences of one split; rows of the other kinds are passed over.

    Raises:
        ConfigError: See :func:`read_examples`.
    """
    return _read(path, split, Pair)


def _read(path: Path, split: Split, kind: type[B]) -> tuple[B, ...]:
    # A row whose source does not say is for training.
    rows = (row for row in read_rows(path) if (row.split or "train") == split)
    bodies = tuple(row.body for row in rows if isinstance(row.body, kind))
    if not bodies:
        raise ConfigError(f"{path}: wanted at least one row of split {split!r} that is {_KINDS[kind]}, got none")
    return bodies


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a JSONL file, one in memory at a time.

    Raises:
        ConfigError: The file cannot be read, or a line breaks the schema.
    """
    for number, line in read_lines(path):
        if line.strip():
            yield parse_row(line, f"{path}, line {number}")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers, from 1; none is longer than ``MAX_LINE_BYTES``.

    Raises:
        ConfigError: The file cannot be read, or a line is longer.
    """
    try:
        with path.open("rb") as file:
            number = 0
            # readline with a limit, so that a file without line ends is never read whole.
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ConfigError(f"{path}, line {number}: wanted at most {MAX_LINE_BYTES} bytes, got more")
                yield number, line
    except OSError as e:
        raise ConfigError(f"{path}: wanted a readable file, got: {e.strerror}") from e


def parse_row(line: bytes, where: str) -> Row:
    """Parse one line; ``where`` is file and line, for errors.

    Raises:
        ConfigError: It is no JSON object, or breaks the schema of its kind.
    """
    return make_row(parse_object(line, where), where)


def parse_object(line: bytes, where: str) -> dict[str, object]:
    """Parse one line as a JSON object.

    Raises:
        ConfigError: It is none.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:
        # What json says has places in it, and no text; from None, because the exception itself holds the line.
        raise ConfigError(f"{where}: wanted one JSON object, got {_why_no_json(e)}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: wanted one JSON object, got {kind_of(value)}")
    return value


def make_row(value: dict[str, object], where: str) -> Row:
    """Return what a JSON object, or a table's row, stands for.

    Raises:
        ConfigError: It breaks the schema of its kind.
    """
    split, meta = value.get("split"), value.get("meta")
    if split not in (None, "train", "heldout"):
        raise ConfigError(f"{where}: split: wanted 'train' or 'heldout', got {kind_of(split)}")
    group = meta.get("qid") if isinstance(meta, dict) else None
    synthetic = meta.get("synthetic", []) if isinstance(meta, dict) else []
    if not isinstance(synthetic, list):
        raise ConfigError(f"{where}: meta.synthetic: wanted a list of clauses, got {kind_of(synthetic)}")
    body = _body(value, group if isinstance(group, str) and group else None, where)
    return Row(
        body,
        split,
        _label(value.get("license", ""), f"{where}: license"),
        tuple(_label(s, f"{where}: meta.synthetic[{i}]") for i, s in enumerate(synthetic)),
    )


def _body(value: dict[str, object], group: str | None, where: str) -> Body:
    if group is not None:
        text_of(group, f"{where}: meta.qid")
    kinds = [k for k in ("messages", "text", "prompt") if k in value]
    if len(kinds) != 1:
        got = " and ".join(kinds) or "none of them"
        raise ConfigError(f"{where}: wanted one of messages, text and prompt (with chosen and rejected), got {got}")
    if kinds == ["text"]:
        text = text_of(value["text"], f"{where}: text")
        return _grouped(Text(text, ""), group)
    if kinds == ["prompt"]:
        prompt, chosen, rejected = (
            text_of(value.get(name), f"{where}: {name}") for name in ("prompt", "chosen", "rejected")
        )
        if chosen == rejected:
            raise ConfigError(f"{where}: wanted a rejected answer that is not the chosen one, got the same text twice")
        return _grouped(Pair(prompt, chosen, rejected, ""), group)
    return _grouped(Example(conversation(value["messages"], where), ""), group)


def conversation(value: object, where: str) -> tuple[Message, ...]:
    """Return the messages of a conversation that ends with the assistant.

    Raises:
        ConfigError: They are none, too many, or not in turn.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        got = str(len(value)) if isinstance(value, list) else kind_of(value)
        raise ConfigError(f"{where}: messages: wanted a list of 1 to {MAX_MESSAGES} messages, got {got}")
    messages = tuple(_message(m, f"{where}: messages[{i}]") for i, m in enumerate(value))
    _check_turns(messages, where)
    return messages


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: wanted an object with role and content, got {kind_of(value)}")
    role = value.get("role")
    if role not in ("system", "user", "assistant"):
        raise ConfigError(f"{where}.role: wanted 'system', 'user' or 'assistant', got {kind_of(role)}")
    return Message(role, text_of(value.get("content"), f"{where}.content"))


def text_of(value: object, where: str) -> str:
    """Return a value that is to be some text.

    Raises:
        ConfigError: It is not, or no file could hold it.
    """
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: wanted some text, got {kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair; no tokenizer and no file can.
        raise ConfigError(f"{where}: wanted valid Unicode, got half of a surrogate pair") from None
    return value


def _label(value: object, where: str) -> str:
    if value == "":
        return ""
    if len(label := text_of(value, where)) > MAX_LABEL_CHARACTERS:
        raise ConfigError(f"{where}: wanted at most {MAX_LABEL_CHARACTERS} characters, got {len(label)}")
    return label


def _check_turns(messages: tuple[Message, ...], where: str) -> None:
    spoken = [m.role for m in messages[1 if messages[0].role == "system" else 0 :]]
    wanted = ["user", "assistant"] * (len(spoken) // 2)
    if not spoken or spoken != wanted:
        raise ConfigError(
            f"{where}: messages: wanted an optional system message, then user and assistant in turn, "
            f"the assistant last, got {[m.role for m in messages]}"
        )


def implied_group(body: Body) -> str:
    """Return the group of a body whose source names none: its first question, or a text's SHA-256."""
    if isinstance(body, Example):
        return next(m.content for m in body.messages if m.role == "user")
    return hashlib.sha256(body.content.encode()).hexdigest() if isinstance(body, Text) else body.prompt


def _grouped(body: B, group: str | None) -> B:
    return replace(body, group=implied_group(body) if group is None else group)


def kind_of(value: object) -> str:
    """Return what a value is, without a word of it."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"text of {len(value)} characters" if value.strip() else "blank text"
    return {dict: "an object", list: "a list", bool: "a yes or no"}.get(type(value), "a number")


def _why_no_json(e: Exception) -> str:
    if isinstance(e, json.JSONDecodeError):
        return f"something else at character {e.pos + 1}: {e.msg}"
    return "bytes that are not UTF-8" if isinstance(e, UnicodeDecodeError) else "a value that is too deep or too long"


def format_row(row: Row) -> bytes:
    """Return a row's one encoding, with its line end; :func:`parse_row` gives the same row back."""
    body = row.body
    meta: dict[str, object] = {}
    if isinstance(body, Example):
        value: dict[str, object] = {"messages": [{"role": m.role, "content": m.content} for m in body.messages]}
    elif isinstance(body, Text):
        value = {"text": body.content}
    else:
        value = {"prompt": body.prompt, "chosen": body.chosen, "rejected": body.rejected}
    if body.group != implied_group(body):
        meta["qid"] = body.group
    if row.synthetic:
        meta["synthetic"] = list(row.synthetic)
    if meta:
        value["meta"] = meta
    if row.split:
        value["split"] = row.split
    if row.license:
        value["license"] = row.license
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def fits(row: Row) -> bool:
    """Whether a row's line is no longer than a line may be."""
    return len(format_row(row)) <= MAX_LINE_BYTES


def check_fits(row: Row, where: str) -> Row:
    """Return a row from something else than JSON, whose encoding here may be several times as long.

    Raises:
        ConfigError: Its line is too long.
    """
    if not fits(row):
        raise ConfigError(f"{where}: wanted at most {MAX_LINE_BYTES} bytes as a line of JSON, got more")
    return row


_KINDS: dict[type[Body], str] = {Example: "a conversation", Text: "a text", Pair: "a preference"}
