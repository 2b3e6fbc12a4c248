"""Rows from tables: CSV, Parquet, and a folder that Hugging Face ``datasets`` has saved to disk.

A table's columns become a row's fields by name (``messages``, ``text``, ``prompt``, ``chosen``, ``rejected``, and for a
conversation of one turn ``system``, ``user``, ``assistant``; ``group``, ``license``, ``split``), or by a mapping from
field to column. Columns that are no field are ignored. Tables are streamed: a batch of rows is in memory at a time.

Parquet and Arrow need the extra ``data`` (pyarrow), which is imported where it is used.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from commonweal_node.csv_records import read_records
from commonweal_node.rows.row import MAX_LINE_BYTES, Row, Split, check_fits, make_row, read_lines
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.files import read_bounded

FIELDS = (
    "messages",
    "text",
    "prompt",
    "chosen",
    "rejected",
    "system",
    "user",
    "assistant",
    "group",
    "license",
    "split",
)
_BATCH_ROWS = 64
_MAX_META_BYTES = 1 << 20


def read_csv(path: Path, mapping: Mapping[str, str]) -> Iterator[Row]:
    """Yield the rows of a CSV file (RFC 4180) in UTF-8 whose first line names the columns.

    Args:
        path: The file.
        mapping: Field to column, where they differ.

    Raises:
        ConfigError: The file cannot be read, a column of the mapping is missing, or a row breaks the schema.
    """
    records = read_records(
        (line for _, line in read_lines(path)),
        MAX_LINE_BYTES,
        lambda number, wanted: ConfigError(f"{path}, line {number}: {wanted}"),
    )
    _, header = next(records)
    at = {name: i for i, name in enumerate(header)}
    columns = {field: at[c] for field, c in _columns(path, tuple(header), mapping).items()}
    for number, record in records:
        values = {field: record[i] for field, i in columns.items() if record[i] != ""}
        yield _row(values, f"{path}, line {number}")


def read_parquet(path: Path, mapping: Mapping[str, str]) -> Iterator[Row]:
    """Yield the rows of a Parquet file.

    Raises:
        ConfigError: See :func:`read_csv`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            columns = _columns(path, tuple(file.schema_arrow.names), mapping)
            batches = file.iter_batches(_BATCH_ROWS, columns=sorted(set(columns.values())), use_threads=False)
            yield from _batch_rows(path, batches, columns)
    except (pa.ArrowException, OSError) as e:
        # The library's own sentence may repeat a value.
        raise ConfigError(f"{path}: wanted a Parquet file, got one that cannot be read ({type(e).__name__})") from None


def read_saved_dataset(folder: Path, mapping: Mapping[str, str]) -> Iterator[Row]:
    """Yield the rows of a folder that ``datasets`` has written with ``save_to_disk``.

    Of a dictionary of splits, ``train`` is for training and every other split is held out.

    Raises:
        ConfigError: See :func:`read_csv`.
    """
    if (folder / "dataset_dict.json").exists():
        for name in _names(folder / "dataset_dict.json", "splits"):
            split: Split = "train" if name == "train" else "heldout"
            yield from _arrow_rows(folder / name, mapping, split)
    else:
        yield from _arrow_rows(folder, mapping, None)


def _arrow_rows(folder: Path, mapping: Mapping[str, str], split: Split | None) -> Iterator[Row]:
    import pyarrow as pa

    for name in _names(folder / "state.json", "_data_files", "filename"):
        path = folder / name
        try:
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as reader:
                columns = _columns(path, tuple(reader.schema.names), mapping)
                pieces = (
                    batch.slice(at, _BATCH_ROWS) for batch in reader for at in range(0, batch.num_rows, _BATCH_ROWS)
                )
                for row in _batch_rows(path, pieces, columns):
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


def _columns(path: Path, names: tuple[str, ...], mapping: Mapping[str, str]) -> dict[str, str]:
    """Field to column: what the mapping says, and of the other fields those that are columns."""
    if missing := [c for c in mapping.values() if c not in names]:
        raise ConfigError(f"{path}: wanted a column {missing[0]!r} (see --map), got none of that name")
    found = {f: mapping.get(f, f) for f in FIELDS if f in mapping or f in names}
    if not found.keys() & {"messages", "text", "prompt", "user"}:
        raise ConfigError(
            f"{path}: wanted a column messages, text, prompt or user, got none; say which is: --map user=QUESTION"
        )
    return found


def _batch_rows(path: Path, batches: Iterator[Any], columns: Mapping[str, str]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for record in batch.to_pylist():
            number += 1
            where = f"{path}, row {number}"
            values = {f: record[c] for f, c in columns.items() if record[c] is not None}
            yield _row(values, where)


def _row(values: dict[str, Any], where: str) -> Row:
    """A table's row as a row: one turn of a conversation is spelt out, and the group goes where rows have it."""
    value: dict[str, object] = {
        k: v for k, v in values.items() if k not in ("system", "user", "assistant", "group", "messages")
    }
    if "user" in values or "assistant" in values:
        value["messages"] = [
            {"role": role, "content": values.get(role)}
            for role in ("system", "user", "assistant")
            if role in values or role != "system"
        ]
    elif "messages" in values:
        value["messages"] = _messages(values["messages"], where)
    if "group" in values:
        # Identifiers are often numbers.
        value["meta"] = {"qid": str(values["group"])}
    return check_fits(make_row(value, where), where)


def _messages(value: object, where: str) -> object:
    """A list of messages; a table of text alone has it as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ConfigError(f"{where}: messages: wanted a list of messages, got text that is no JSON") from None
