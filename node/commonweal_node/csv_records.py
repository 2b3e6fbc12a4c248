"""CSV (RFC 4180) in UTF-8, strictly and within bounds: one record in memory at a time. No I/O; no field in an error."""

import csv
from collections.abc import Callable, Iterable, Iterator

Bad = Callable[[int, str], Exception]
"""Makes the error of a line: its number, and what was wanted there."""


def read_records(lines: Iterable[bytes], max_bytes: int, bad: Bad) -> Iterator[tuple[int, list[str]]]:
    """Yield the records with the numbers of their first lines, the header first; each has as many fields as that.

    Args:
        lines: With their ends. Blank ones between records, and the mark that spreadsheets write in front, do not count.
        max_bytes: Of one record.
        bad: Makes what is raised where there is no header, or a record is too long or no CSV.
    """
    number, size, width = 0, 0, 0

    def decoded() -> Iterator[str]:
        nonlocal number, size
        for line in lines:
            number += 1
            size += len(line)
            if size > max_bytes:
                raise bad(number, f"wanted at most {max_bytes} bytes in a record, got more (an open quote?)")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise bad(number, "wanted UTF-8, got other bytes") from None

    # The module's own bound is global, and lower.
    csv.field_size_limit(max_bytes)
    reader = csv.reader(decoded(), strict=True)
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
