"""CSV (RFC 4180) in UTF-8, strictly and within bounds: one record in memory at a time. No I/O; no field in an error.

Between fields stands what the header shows: a comma, or where they are written otherwise a semicolon, a tab or a bar.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

Bad = Callable[[int, str], Exception]
"""Makes the error of a line: its number, and what was wanted there."""


_DELIMITERS = ",;\t|"
_HEADER_BYTES = 1 << 16
_SEPARATOR = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""Spreadsheets write it as a line in front, with the delimiter."""


def delimiter_of(line: bytes) -> str:
    """Return what stands between a table's fields, by its first line: what divides it most, of equals the comma."""
    header = line[:_HEADER_BYTES].decode("utf-8-sig", errors="replace").rstrip("\r\n")
    if given := _SEPARATOR.fullmatch(header):
        return given[1]
    return max(_DELIMITERS, key=lambda d: len(next(csv.reader([header], delimiter=d), [])))


def read_records(lines: Iterable[bytes], max_bytes: int, bad: Bad) -> Iterator[tuple[int, list[str]]]:
    """Yield the records with the numbers of their first lines, the header first; each has as many fields as that.

    Args:
        lines: With their ends. Blank ones between records, and the mark that spreadsheets write in front, do not count.
        max_bytes: Of one record.
        bad: Makes what is raised where there is no header, or a record is too long or no CSV.
    """
    number, size, width = 0, 0, 0

    def decoded(lines: Iterable[bytes]) -> Iterator[str]:
        nonlocal number, size
        for line in lines:
            number += 1
            size += len(line)
            if size > max_bytes:
                raise bad(number, f"wanted at most {max_bytes} bytes in a record, got more (an open quote?)")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise bad(number, "wanted UTF-8, got other bytes; save the table as UTF-8") from None
            yield "\n" if number == 1 and _SEPARATOR.fullmatch(text) else text

    lines, begun = iter(lines), list[bytes]()
    while not begun or not begun[-1].strip():
        if (line := next(lines, None)) is None:
            raise bad(1, "wanted a header, got nothing")
        begun.append(line)
    # The module's own bound is global, and lower.
    csv.field_size_limit(max_bytes)
    reader = csv.reader(decoded(chain(begun, lines)), strict=True, delimiter=delimiter_of(begun[-1]))
    while True:
        first, size = number + 1, 0
        try:
            record = next(reader, None)
        except csv.Error as e:
            raise bad(number, f"wanted CSV (RFC 4180), got {e}") from None
        if record is None:
            break
        if not record:
            continue
        width = width or len(record)
        if len(record) != width:
            raise bad(first, f"wanted {width} fields, got {len(record)}")
        yield first, record
    if not width:
        raise bad(1, "wanted a header, got nothing")
