"""A deliberation's export: statements, and who voted how on them. Read a line at a time, strictly and within bounds.

Two forms are taken: a folder as Polis exports it (``…comments.csv`` with ``…participant-votes.csv``, once called
``…participants-votes.csv``, or ``…votes.csv``), and a file ``NAME.votes.csv`` (participant, group, statement, vote)
beside ``NAME.statements.jsonl``. 1 is agree, -1 is disagree, 0 is pass. Polis stores the opposite sign and turns it in
its exports; a file that was not turned would say the contrary of what people said, so votes are held against the counts
that stand with the statements.

Polis's exports may leave out statements that the moderators rejected, and keep their votes: those are left out and
counted. Its ``is-meta`` statements are about who somebody is, not what they hold.

Participants' names are forgotten here: rows of the matrix are sorted by what is in them, so neither a name nor a place
in the file is in anything that is computed from it.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from commonweal_node.csv_records import read_records
from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import digest_of, parse_decimal
from commonweal_protocols.base.errors import ConfigError, MalformedError
from commonweal_protocols.base.settings import describe
from commonweal_protocols.statements.values import Digest, Natural

Votes = npt.NDArray[np.int8]
"""(participants, statements): 1 agree, -1 disagree, 0 pass, :data:`UNSEEN`."""
UNSEEN = 2
MAX_FILE_BYTES = 1 << 28
MAX_LINE_BYTES = 1 << 18
MAX_STATEMENTS = 5000
MAX_CELLS = 1 << 25
_VOTES = {"1": 1, "-1": -1, "0": 0}
_TRUTH = {"true": True, "false": False, "t": True, "f": False, "1": True, "0": False, "": False}
_COMMENTS = ("comment-id", "agrees", "disagrees", "moderated", "comment-body")
_TOTALS = ("participant", "group-id", "n-comments", "n-votes", "n-agree", "n-disagree")


class Statement(BaseModel):
    """One statement, as the export has it. Fields that are not wanted here are not kept."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    statement: Natural
    text: Annotated[str, StringConstraints(max_length=2000)]
    moderated: Annotated[Literal[-1, 0, 1], Field()]
    """1 accepted, 0 not looked at, -1 rejected by the moderators."""
    is_meta: bool = False
    """About the voter: no opinion."""
    agree: Natural
    disagree: Natural


@dataclass(frozen=True, slots=True)
class Conversation:
    """A deliberation. ``digest`` is of the names and the digests of the files that it was read from."""

    statements: tuple[Statement, ...]
    """In the order of their numbers; one for each column of ``votes``."""
    votes: Votes
    digest: Digest
    unlisted: frozenset[int] = frozenset()
    """Statements that have votes and are not in the export; these votes are left out."""


class _Cell(NamedTuple):
    line: int
    participant: str
    statement: int
    vote: int
    at: int


def load_export(path: Path) -> Conversation:
    """Read an export.

    Raises:
        ConfigError: There is none at ``path``, or it cannot be read.
        MalformedError: A file is not as it must be; says which, and the line.
    """
    try:
        statements_path, votes_path = _files(path)
        digests: dict[str, Digest] = {}
        lines = _lines(statements_path, digests)
        statements = (
            _comments(statements_path, lines) if statements_path.suffix == ".csv" else _jsonl(statements_path, lines)
        )
        listed = {s.statement for s in statements}
        unlisted: set[int] = set()

        def known() -> Iterator[_Cell]:
            for cell in _cells(votes_path, _lines(votes_path, digests)):
                if cell.statement in listed:
                    yield cell
                elif statements_path.suffix == ".csv":
                    unlisted.add(cell.statement)
                else:
                    raise _bad(
                        votes_path,
                        cell.line,
                        f"statement {cell.statement}: wanted one that the export has, got another",
                    )

        votes = _matrix(votes_path, known(), statements)
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from e
    _check_signs(votes_path, statements, votes)
    return Conversation(statements, votes, digest_of(canonical.encode({**digests})), frozenset(unlisted))


def _files(path: Path) -> tuple[Path, Path]:
    if path.is_file() and path.name.endswith(".votes.csv"):
        return path.with_name(path.name.removesuffix(".votes.csv") + ".statements.jsonl"), path
    comments = sorted(path.glob("*comments.csv"))
    # The table has each participant's last word; the other file is a history of votes.
    tables = ("*participant-votes.csv", "*participants-votes.csv", "*votes.csv")
    votes = next((found for name in tables if (found := sorted(path.glob(name)))), [])
    if len(comments) != 1 or len(votes) != 1:
        raise ConfigError(
            f"{path}: wanted a folder with one comments.csv and one participant-votes.csv or votes.csv, or a file "
            f"NAME.votes.csv beside NAME.statements.jsonl; got {len(comments)} and {len(votes)}"
        )
    return comments[0], votes[0]


def _lines(path: Path, digests: dict[str, Digest]) -> Iterator[bytes]:
    """Yield the lines of a file, and note its digest at the end."""
    seen, size = hashlib.sha256(), 0
    with path.open("rb") as f:
        number = 0
        while line := f.readline(MAX_LINE_BYTES + 1):
            number += 1
            size += len(line)
            if len(line) > MAX_LINE_BYTES or size > MAX_FILE_BYTES:
                raise _bad(path, number, f"wanted lines of at most {MAX_LINE_BYTES} bytes, {MAX_FILE_BYTES} in all")
            seen.update(line)
            yield line
    digests[path.name] = seen.hexdigest()


def _bad(path: Path, line: int, what: str) -> MalformedError:
    return MalformedError(f"{path}: line {line}: {what}")


def _records(path: Path, lines: Iterable[bytes]) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Return a table's header, and its other records with their lines."""
    records = read_records(lines, MAX_LINE_BYTES, partial(_bad, path))
    return next(records)[1], records


def _places(path: Path, header: list[str], wanted: Iterable[str]) -> dict[str, int]:
    """Return where each column is; the wanted ones are there once."""
    if missing := [name for name in wanted if header.count(name) != 1]:
        raise _bad(path, 1, f"wanted one column {missing[0]}, got {', '.join(header)[:200]}")
    return {name: n for n, name in enumerate(header)}


def _number(path: Path, line: int, name: str, text: str) -> int:
    try:
        return parse_decimal(text)
    except MalformedError as e:
        raise _bad(path, line, f"{name}: {e}") from e


def _statements(path: Path, found: Iterable[tuple[int, bytes | dict[str, object]]]) -> tuple[Statement, ...]:
    statements: dict[int, Statement] = {}
    for line, said in found:
        try:
            s = Statement.model_validate(said) if isinstance(said, dict) else Statement.model_validate_json(said)
        except ValidationError as e:
            raise _bad(path, line, describe(e)) from e
        if s.statement in statements:
            raise _bad(path, line, f"statement {s.statement} is there already")
        if len(statements) == MAX_STATEMENTS:
            raise _bad(path, line, f"wanted at most {MAX_STATEMENTS} statements, got more")
        statements[s.statement] = s
    return tuple(statements[n] for n in sorted(statements))


def _jsonl(path: Path, lines: Iterable[bytes]) -> tuple[Statement, ...]:
    return _statements(path, enumerate(lines, start=1))


def _comments(path: Path, lines: Iterable[bytes]) -> tuple[Statement, ...]:
    header, rows = _records(path, lines)
    at = _places(path, header, _COMMENTS)

    def said() -> Iterator[tuple[int, dict[str, object]]]:
        for line, row in rows:
            number = {n: _number(path, line, n, row[at[n]]) for n in ("comment-id", "agrees", "disagrees")}
            yield (
                line,
                {
                    "statement": number["comment-id"],
                    "text": row[at["comment-body"]],
                    "moderated": _VOTES.get(row[at["moderated"]], row[at["moderated"]]),
                    "is_meta": _yes_or_no(path, line, "is-meta", row[at["is-meta"]]) if "is-meta" in at else False,
                    "agree": number["agrees"],
                    "disagree": number["disagrees"],
                },
            )

    return _statements(path, said())


def _yes_or_no(path: Path, line: int, name: str, text: str) -> bool:
    if (found := _TRUTH.get(text.lower())) is None:
        raise _bad(path, line, f"{name}: wanted true or false, got {text[:20]!r}")
    return found


def _cells(path: Path, lines: Iterable[bytes]) -> Iterator[_Cell]:
    """Yield who said what, whichever of the three forms the file has."""
    header, rows = _records(path, lines)
    if tuple(header[: len(_TOTALS)]) == _TOTALS:
        yield from _wide(path, header, rows)
        return
    names = ("participant", "statement") if header[:1] == ["participant"] else ("voter-id", "comment-id")
    at = _places(path, header, (*names, "vote"))
    for line, row in rows:
        statement = _number(path, line, names[1], row[at[names[1]]])
        when = _number(path, line, "timestamp", row[at["timestamp"]]) if "timestamp" in at else 0
        yield _Cell(line, row[at[names[0]]], statement, _vote(path, line, row[at["vote"]]), when)


def _wide(path: Path, header: list[str], rows: Iterable[tuple[int, list[str]]]) -> Iterator[_Cell]:
    first = len(_TOTALS)
    numbers = [_number(path, 1, "a statement's column", name) for name in header[first:]]
    for line, row in rows:
        for statement, text in zip(numbers, row[first:], strict=True):
            if text:
                yield _Cell(line, row[0], statement, _vote(path, line, text), 0)


def _vote(path: Path, line: int, text: str) -> int:
    if (vote := _VOTES.get(text)) is None:
        raise _bad(path, line, f"vote: wanted 1 (agree), -1 (disagree) or 0 (pass), got {text[:20]!r}")
    return vote


def _matrix(path: Path, cells: Iterable[_Cell], statements: tuple[Statement, ...]) -> Votes:
    columns = {s.statement: n for n, s in enumerate(statements)}
    rows: dict[str, int] = {}
    places, votes, times, at = array("q"), array("b"), array("q"), array("q")
    for cell in cells:
        column = columns[cell.statement]
        row = rows.setdefault(cell.participant, len(rows))
        if (row + 1) * len(columns) > MAX_CELLS:
            raise _bad(path, cell.line, f"wanted at most {MAX_CELLS} participants times statements, got more")
        places.append(row * len(columns) + column)
        votes.append(cell.vote)
        times.append(cell.at)
        at.append(cell.line)
    where, when = np.frombuffer(places, np.int64), np.frombuffer(times, np.int64)
    # By place, of one place by time, and of one time by line: the last one is what somebody said last.
    order = np.lexsort((np.arange(len(where)), when, where))
    twice = order[1:][(where[order][1:] == where[order][:-1]) & (when[order][1:] == when[order][:-1])]
    if len(twice) and not when.any():
        raise _bad(path, at[int(twice.min())], "wanted one vote of a participant on a statement, got another")
    matrix = np.full((len(rows), len(columns)), UNSEEN, np.int8)
    # Index by index in this order, so that a later one stands.
    last = np.append(where[order][1:] != where[order][:-1], True) if len(order) else np.zeros(0, bool)
    matrix.reshape(-1)[where[order][last]] = np.frombuffer(votes, np.int8)[order][last]
    return matrix[np.lexsort(matrix.T[::-1])] if matrix.size else matrix


def _check_signs(path: Path, statements: tuple[Statement, ...], votes: Votes) -> None:
    """Compare with the counts in the export: they need not agree, as Polis's own do not always, but not be swapped."""
    counted = (votes == 1).sum(axis=0)
    agree = np.array([s.agree for s in statements], np.int64)
    disagree = np.array([s.disagree for s in statements], np.int64)
    if np.abs(counted - disagree).sum() < np.abs(counted - agree).sum():
        raise MalformedError(
            f"{path}: wanted 1 for agree and -1 for disagree; got votes that fit the statements' counts only the other "
            "way round, as Polis stores them before an export; multiply them by -1"
        )
