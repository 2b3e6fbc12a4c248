"""JSON that people bring, strictly: one object on each line, or one list of objects. No value is in any error.

An object says each key once, and no number that JSON does not have. A list is read an object at a time, too.
"""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from commonweal_protocols.base.errors import ConfigError

MAX_LINE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16
_SHOWN = 60
_SPACE = " \t\r\n"
_MARK = codecs.BOM_UTF8


class _Bad(ValueError):
    """What JSON's own parser takes and this one does not."""


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


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield a file's objects, each with file and line; what its first character begins says which form it has.

    Raises:
        ConfigError: The file cannot be read, or is of neither form.
    """
    if _is_list(path):
        yield from _read_list(path)
        return
    for number, line in read_lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_object(line, where)


def parse_object(line: bytes, where: str) -> dict[str, object]:
    """Parse one line as a JSON object.

    Raises:
        ConfigError: It is none.
    """
    try:
        value = _DECODER.decode(line.removeprefix(_MARK).decode())
    except (ValueError, RecursionError) as e:
        # What json says has places in it, and no text; from None, because the exception itself holds the line.
        raise ConfigError(f"{where}: wanted one JSON object, got {_why_no_json(e)}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: wanted one JSON object, got {kind_of(value)}")
    return value


def _is_list(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(_CHUNK_BYTES).removeprefix(_MARK).lstrip()[:1] == b"["
    except OSError as e:
        raise ConfigError(f"{path}: wanted a readable file, got: {e.strerror}") from e


class _List:
    """A file with one list: what is read of it and not yet taken, and the line that this begins in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._line = "", 0, 1

    def close(self) -> None:
        self._file.close()

    def where(self) -> str:
        return f"{self._path}, line {self._line}"

    def next_character(self) -> str:
        """The next one that is no white space, which stays; empty at the end."""
        while True:
            rest = self._text[self._at :].lstrip(_SPACE)
            self._take(len(self._text) - len(rest))
            if rest or not self._more():
                return rest[:1]

    def skip(self) -> None:
        self._take(self._at + 1)

    def value(self) -> object:
        """The next value, whole."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as e:
                # What is not whole yet looks like what is wrong.
                if (
                    isinstance(e, json.JSONDecodeError)
                    and len(self._text) - self._at <= MAX_LINE_BYTES
                    and self._more()
                ):
                    continue
                got = e.msg if isinstance(e, json.JSONDecodeError) else _why_no_json(e)
                raise ConfigError(
                    f"{self.where()}: wanted one JSON object of at most {MAX_LINE_BYTES} characters, got {got}"
                ) from None
            self._take(end)
            return value

    def _take(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _more(self) -> bool:
        data = self._file.read(_CHUNK_BYTES)
        try:
            more = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError:
            raise ConfigError(f"{self.where()}: wanted UTF-8, got other bytes there or below") from None
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(data)


def _read_list(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    found = _List(path)
    try:
        found.next_character()
        found.skip()
        while found.next_character() != "]":
            where = found.where()
            value = found.value()
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: wanted one JSON object, got {kind_of(value)}")
            yield where, value
            if (after := found.next_character()) == ",":
                found.skip()
            elif after != "]":
                raise ConfigError(f"{found.where()}: wanted a comma or the end of the list, got something else")
        found.skip()
        if found.next_character():
            raise ConfigError(f"{found.where()}: wanted nothing after the list, got something")
    finally:
        found.close()


def kind_of(value: object) -> str:
    """Return what a value is, without a word of it."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"text of {len(value)} characters" if value.strip() else "blank text"
    return {dict: "an object", list: "a list", bool: "a yes or no"}.get(type(value), "a number")


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
    if "\0" in value:
        raise ConfigError(f"{where}: wanted text, got some with a NUL character (U+0000); take it out")
    return value


def shown(key: str) -> str:
    """Return the name of a key or a column as an error shows it: on one line, and short."""
    return ascii(key if len(key) <= _SHOWN else key[:_SHOWN] + "...")


def _why_no_json(e: Exception) -> str:
    if isinstance(e, json.JSONDecodeError):
        return f"something else at character {e.pos + 1}: {e.msg}"
    if isinstance(e, _Bad):
        return str(e)
    return "bytes that are not UTF-8" if isinstance(e, UnicodeDecodeError) else "a value that is too deep or too long"


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Bad(f"the key {shown(twice)} twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise _Bad(f"{name}, which JSON does not have")


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number)
