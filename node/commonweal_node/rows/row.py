"""Rows: what an institution's own data is made of, and its one encoding. Nothing that is read here leaves the node.

A row is one line of JSON, of one of three kinds, told apart by its keys:

    {"messages": [{"role", "content"}, ...]}        a conversation that ends with the assistant
    {"text"}                                        a text, for continued pre-training
    {"prompt", "chosen", "rejected"}                a preference between two answers

An assistant's turn with ``"weight": 0`` is read and not learnt. Each row may have ``split`` ("train" or "heldout"),
``license``, and ``meta`` with ``qid`` (the group that the row belongs to: rows of one group are never on both sides of
a split) and ``synthetic`` (the clauses by which a model wrote it). What else of ``meta`` is there, :func:`format_row`
does not write. Other shapes, and other keys: see ``shapes``.

An error names file and line, and what kind of thing stands there; never the value, because errors end up in logs.
No clock, no random state; the only I/O is to read a file.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from commonweal_node.rows.json_objects import MAX_LINE_BYTES, kind_of, parse_object, read_objects, text_of
from commonweal_node.rows.shapes import AS_NAMED, Columns, read_turn, to_row
from commonweal_protocols.base.errors import ConfigError

Split = Literal["train", "heldout"]
MAX_MESSAGES = 200
MAX_LABEL_CHARACTERS = 200
"""Of a licence, and of a clause's name."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; ``role`` is system, user or assistant. Of these the assistant's may be learnt."""

    role: str
    content: str
    is_learnt: bool = True


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation that ends with the assistant; ``group`` names the question it answers."""

    messages: tuple[Message, ...]
    group: str
    where: str = field(default="", compare=False, repr=False)
    """File and line, for errors."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text to go on pre-training with; ``group`` names the document it is from."""

    content: str
    group: str
    where: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, of which people preferred the first."""

    prompt: str
    chosen: str
    rejected: str
    group: str
    where: str = field(default="", compare=False, repr=False)


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


def read_rows(path: Path, columns: Columns = AS_NAMED) -> Iterator[Row]:
    """Yield the rows of a file of JSON objects, one in memory at a time.

    Args:
        path: One object on each line, or one list of objects.
        columns: What is said of keys that are no fields.

    Raises:
        ConfigError: The file cannot be read, or a row breaks the schema.
    """
    for where, value in read_objects(path):
        yield make_row(to_row(value, columns, where), where)


def parse_row(line: bytes, where: str) -> Row:
    """Parse one line; ``where`` is file and line, for errors.

    Raises:
        ConfigError: It is no JSON object, or breaks the schema of its kind.
    """
    return make_row(to_row(parse_object(line, where), AS_NAMED, where), where)


def make_row(value: Mapping[str, object], where: str) -> Row:
    """Return what an object in this program's own keys stands for.

    Raises:
        ConfigError: It breaks the schema of its kind.
    """
    split, meta = value.get("split"), value.get("meta", {})
    if split not in (None, "train", "heldout") or not isinstance(meta, dict):
        raise ValueError(f"{where}: wanted what to_row returns")
    synthetic = meta.get("synthetic") or []
    if not isinstance(synthetic, list):
        raise ConfigError(f"{where}: meta.synthetic: wanted a list of clauses, got {kind_of(synthetic)}")
    return Row(
        _body(value, meta.get("qid"), where),
        split,
        _label(value.get("license", ""), f"{where}: license"),
        tuple(_label(s, f"{where}: meta.synthetic[{i}]") for i, s in enumerate(synthetic)),
    )


def _body(value: Mapping[str, object], group: str | None, where: str) -> Body:
    if "text" in value:
        return _grouped(Text(text_of(value["text"], f"{where}: text"), "", where), group)
    if "prompt" in value:
        prompt, chosen, rejected = (
            text_of(value.get(name), f"{where}: {name}") for name in ("prompt", "chosen", "rejected")
        )
        if chosen == rejected:
            raise ConfigError(f"{where}: wanted a rejected answer that is not the chosen one, got the same text twice")
        return _grouped(Pair(prompt, chosen, rejected, "", where), group)
    return _grouped(Example(conversation(value["messages"], where), "", where), group)


def conversation(value: object, where: str) -> tuple[Message, ...]:
    """Return the messages of a conversation that ends with the assistant.

    Raises:
        ConfigError: They are none, too many, or not in turn.
    """
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        got = str(len(value)) if isinstance(value, list) else kind_of(value)
        raise ConfigError(f"{where}: messages: wanted a list of 1 to {MAX_MESSAGES} messages, got {got}")
    messages = tuple(Message(*read_turn(m, f"{where}: messages[{i}]")) for i, m in enumerate(value))
    _check_turns(messages, where)
    return messages


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
    if not any(m.role == "assistant" and m.is_learnt for m in messages):
        raise ConfigError(f"{where}: messages: wanted an answer that is to be learnt, got weight 0 on each")


def implied_group(body: Body) -> str:
    """Return the group of a body whose source names none: its first question, or a text's SHA-256."""
    if isinstance(body, Example):
        return next(m.content for m in body.messages if m.role == "user")
    return hashlib.sha256(body.content.encode()).hexdigest() if isinstance(body, Text) else body.prompt


def _grouped(body: B, group: str | None) -> B:
    return replace(body, group=implied_group(body) if group is None else group)


def format_row(row: Row) -> bytes:
    """Return a row's one encoding, with its line end; :func:`parse_row` gives the same row back."""
    body = row.body
    meta: dict[str, object] = {}
    if isinstance(body, Example):
        value: dict[str, object] = {"messages": [_turn(m) for m in body.messages]}
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


def _turn(m: Message) -> dict[str, object]:
    return {"role": m.role, "content": m.content} | ({} if m.is_learnt else {"weight": 0})


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
