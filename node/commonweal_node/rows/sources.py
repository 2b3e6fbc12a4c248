"""Sources: whatever an institution has its data in, as a stream of rows. Reads files, and nothing else.

    .jsonl .ndjson     one row on each line, in any of the shapes of ``shapes``
    .json              the same, or one list of rows
    .txt .md           one document, cut at blank lines into texts; all of a document is one group
    .csv .tsv          a table; its first line names the columns (see ``tables``)
    .parquet           a table
    a folder           what Hugging Face ``datasets`` has saved to disk

Every error reads ``FILE, line N: wanted X, got Y`` (``row N`` in a file without lines), and never repeats a value.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from commonweal_node.rows.json_objects import read_lines
from commonweal_node.rows.row import Row, Text, check_fits, read_rows
from commonweal_node.rows.shapes import AS_NAMED, FIELDS, Columns
from commonweal_node.rows.tables import read_csv, read_parquet, read_saved_dataset
from commonweal_protocols.base.errors import ConfigError

Format = Literal["jsonl", "text", "csv", "parquet", "datasets"]
MAX_TEXT_CHARACTERS = 8192
"""Of one row from a plain text; about two thousand tokens."""
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".md": "text",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


def format_of(path: Path) -> Format:
    """Tell a source's format by its name, or by what is in the folder.

    Raises:
        ConfigError: It is of none of the formats that can be read, or is not there.
    """
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
            return "datasets"
        raise ConfigError(f"{path}: wanted a folder with dataset_info.json or dataset_dict.json, got another")
    if not path.is_file():
        raise ConfigError(f"{path}: wanted a file, got none")
    found = _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise ConfigError(f"{path}: wanted one of {', '.join(sorted(_SUFFIXES))}, or a datasets folder, got another")
    return found


def parse_mapping(pairs: list[str]) -> dict[str, str]:
    """Read ``FIELD=COLUMN`` pairs.

    Raises:
        ConfigError: A pair has no ``=``, or a field is unknown or named twice.
    """
    mapping: dict[str, str] = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not equals or not column or field not in FIELDS or field in mapping:
            raise ConfigError(f"--map {pair}: wanted FIELD=COLUMN, each field once, of: {', '.join(FIELDS)}")
        mapping[field] = column
    return mapping


def read_source(path: Path, columns: Columns = AS_NAMED) -> Iterator[Row]:
    """Yield the rows of a source, one at a time.

    Raises:
        ConfigError: It cannot be read, or a row breaks the schema.
        ModuleNotFoundError: A Parquet file or a datasets folder, and the extra ``data`` is not installed.
    """
    match format_of(path):
        case "csv":
            return read_csv(path, columns)
        case "parquet":
            return read_parquet(path, columns)
        case "datasets":
            return read_saved_dataset(path, columns)
        case "jsonl":
            return (check_fits(row, row.body.where) for row in read_rows(path, columns))
        case "text":
            if columns != AS_NAMED:
                raise ConfigError(f"{path}: wanted --map and --ignore with fields or columns, got them with a document")
            return _read_document(path)


def _read_document(path: Path) -> Iterator[Row]:
    """Yield a document as texts of whole paragraphs; one that is too long is cut between lines, a line never."""
    group = _file_digest(path)
    piece: list[str] = []
    length = 0
    paragraph: list[str] = []
    number, began = 0, 1

    def text() -> Row:
        return check_fits(
            Row(Text("".join(piece).strip(), group, f"{path}, line {began}")),
            f"{path}, a text that ends before line {number + 1}",
        )

    for number, line in read_lines(path):
        try:
            written = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{path}, line {number}: wanted UTF-8, got other bytes; save it as UTF-8") from None
        if "\0" in written:
            raise ConfigError(f"{path}, line {number}: wanted text, got some with a NUL character (U+0000)")
        # A line's end is one thing, whichever system wrote it.
        paragraph.append(written.replace("\r\n", "\n"))
        size = sum(map(len, paragraph))
        if written.strip() and size < MAX_TEXT_CHARACTERS:
            continue
        if length + size > MAX_TEXT_CHARACTERS and "".join(piece).strip():
            yield text()
            piece, length, began = [], 0, number
        piece += paragraph
        length += size
        paragraph = []
    piece += paragraph
    if "".join(piece).strip():
        yield text()


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise ConfigError(f"{path}: wanted a readable file, got: {e.strerror}") from e
