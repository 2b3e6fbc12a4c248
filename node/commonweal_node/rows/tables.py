"""Rows from tables: CSV, Parquet, and a folder that Hugging Face ``datasets`` has saved to disk.

A table's columns become a row's fields by name or by a mapping, and other columns are those of ``shapes``: known to be
harmless, ignored because somebody says so, or an error. Tables are streamed: a batch of rows is in memory at a time.

Parquet and Arrow need the extra ``data`` (pyarrow), which is imported where it is used.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from commonweal_node.csv_records import delimiter_of, read_records
from commonweal_node.rows.json_objects import MAX_LINE_BYTES, read_lines
from commonweal_node.rows.row import Row, Split, check_fits, make_row
from commonweal_node.rows.shapes import Columns, of_fields
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.files import read_bounded

_BATCH_ROWS = 64
_MAX_META_BYTES = 1 << 20
_SAYING = ("messages", "conversations", "text", "prompt", "chosen", "instruction", "user")
"""A row says something in one of these."""


def read_csv(path: Path, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a CSV file (RFC 4180) in UTF-8 whose first line names the columns.

    Args:
        path: The file.
        columns: What is said of columns that are no fields, or of other names.

    Raises:
        ConfigError: The file cannot be read, a column of the mapping is missing, or a row breaks the schema.
    """
    records = read_records(
        (line for _, line in read_lines(path)),
        MAX_LINE_BYTES,
        lambda number, wanted: ConfigError(f"{path}, line {number}: {wanted}"),
    )
    _, header = next(records)
    at = {field: header.index(c) for field, c in _fields(path, header, columns).items()}
    for number, record in records:
        values = {field: record[i] for field, i in at.items() if record[i] != ""}
        yield _row(values, f"{path}, line {number}")


def csv_delimiter(path: Path) -> str:
    """Return what stands between a CSV file's fields.

    Raises:
        ConfigError: The file cannot be read.
    """
    return next((delimiter_of(line) for _, line in read_lines(path) if line.strip()), ",")


def read_parquet(path: Path, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a Parquet file.

    Raises:
        ConfigError: See :func:`read_csv`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            fields = _fields(path, file.schema_arrow.names, columns)
            batches = file.iter_batches(_BATCH_ROWS, columns=sorted(set(fields.values())), use_threads=False)
            yield from _batch_rows(path, batches, fields)
    except (pa.ArrowException, OSError) as e:
        # The library's own sentence may repeat a value.
        raise ConfigError(f"{path}: wanted a Parquet file, got one that cannot be read ({type(e).__name__})") from None


def read_saved_dataset(folder: Path, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a folder that ``datasets`` has written with ``save_to_disk``.

    Of a dictionary of splits, ``train`` is for training and every other split is held out.

    Raises:
        ConfigError: See :func:`read_csv`.
    """
    if (folder / "dataset_dict.json").exists():
        for name in _names(folder / "dataset_dict.json", "splits"):
            split: Split = "train" if name == "train" else "heldout"
            yield from _arrow_rows(folder / name, columns, split)
    else:
        yield from _arrow_rows(folder, columns, None)


def _arrow_rows(folder: Path, columns: Columns, split: Split | None) -> Iterator[Row]:
    import pyarrow as pa

    for name in _names(folder / "state.json", "_data_files", "filename"):
        path = folder / name
        try:
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as reader:
                fields = _fields(path, reader.schema.names, columns)
                pieces = (
                    batch.slice(at, _BATCH_ROWS) for batch in reader for at in range(0, batch.num_rows, _BATCH_ROWS)
                )
                for row in _batch_rows(path, pieces, fields):
                    yield row if split is None else Row(row.body, split, row.license, row.synthetic)
        except (pa.ArrowException, OSError) as e:
            raise ConfigError(
                f"{path}: wanted an Arrow file, got one that cannot be read ({type(e).__name__})"
            ) from None


def _names(path: Path, key: str, inner: str | None = None) -> list[str]:
    """A list of names in one of the folder's own JSON files; each stays inside of the folder."""
    data = read_bounded(path, _MAX_META_BYTES, "a folder's file that datasets has saved", error=ConfigError)
    try:
        names = [item[inner] if inner else item for item in json.loads(data)[key]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{path}: wanted JSON with a list {key!r}, got something else") from None
    if not names or any(not isinstance(n, str) or Path(n).name != n for n in names):
        raise ConfigError(f"{path}: {key}: wanted names of files in this folder, got others or none")
    return names


def _fields(path: Path, names: Sequence[str], columns: Columns) -> dict[str, str]:
    """Field to column."""
    if missing := [c for c in columns.mapping.values() if c not in names]:
        raise ConfigError(f"{path}: wanted a column {missing[0]!r} (see --map), got none of that name")
    found = columns.fields(names, str(path))
    if not found.keys() & _SAYING:
        raise ConfigError(f"{path}: wanted a column {', '.join(_SAYING)}, got none; say which is: --map user=QUESTION")
    return found


def _batch_rows(path: Path, batches: Iterator[Any], fields: Mapping[str, str]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for record in batch.to_pylist():
            number += 1
            where = f"{path}, row {number}"
            yield _row({f: record[c] for f, c in fields.items() if record[c] is not None}, where)


def _row(values: dict[str, Any], where: str) -> Row:
    lists = {k: _turns(values[k], f"{where}: {k}") for k in ("messages", "conversations") if k in values}
    return check_fits(make_row(of_fields(values | lists, where), where), where)


def _turns(value: object, where: str) -> object:
    """A list of messages; a table of text alone has it as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where}: wanted a list of messages, got text that is no JSON") from None
