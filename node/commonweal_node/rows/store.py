"""A node's own data, below ``HOME/data``. Nothing here leaves the host, and its owner alone may read it.

::

    lock                      held by the one command that is changing things
    sources.json              what was added: names, kinds, digests
    sources/SHA256.jsonl      the rows of one source, in one encoding (see ``row``)
    answers.sqlite            what a model answered to the stage ``revise``
    curations/ID/             a whole curation: rows, signed manifest, report (see ``curate``)
    curated -> curations/ID   the newest; training takes ``data/curated/rows.jsonl``

A source is named by the SHA-256 of its rows, so adding the same rows again changes nothing. What is written has the
name ``.open`` until it is whole. Rows that nothing names any more, for whatever reason, go with the next command.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from commonweal_node.home import NodeHome
from commonweal_node.rows.json_objects import MAX_LINE_BYTES
from commonweal_node.rows.row import Example, Row, Split, Text, format_row, parse_row
from commonweal_node.rows.shapes import Columns
from commonweal_node.rows.sources import read_source
from commonweal_protocols.base.errors import ConfigError, StorageError
from commonweal_protocols.base.files import locked, read_if_there, sync_directory, write_atomic
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.values import Digest, Natural

_MAX_INDEX_BYTES = 1 << 26
_OPEN = ".open"
_TELL_ROWS = 64
Tell = Callable[[int], None]
Kinds = dict[str, Natural]
"""How many rows of each kind there are: conversation, text, preference."""


class Source(Closed):
    """What was added at one time. ``name`` is the file's own, for people on this host; the digest is of its rows."""

    sha256: Digest
    name: str
    kinds: Kinds

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(self.kinds.values())


class _Index(Closed):
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Added:
    """A source, and whether it is new here."""

    source: Source
    new: bool


def kind_of(row: Row) -> str:
    """Return which of the kinds a row is."""
    return "conversation" if isinstance(row.body, Example) else "text" if isinstance(row.body, Text) else "preference"


class Store:
    """The folder. Its commands that change things hold the lock."""

    def __init__(self, home: Path) -> None:
        self.root = NodeHome(home).data
        self.folder = self.root / "sources"
        self.answers = self.root / "answers.sqlite"
        self.curations = self.root / "curations"
        self.curated = self.root / "curated"
        self._index = self.root / "sources.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, make the folders, and leave no row that nothing names.

        Raises:
            StorageError: Another command holds it, or the folders cannot be made or may be read by others.
        """
        for folder in (self.root, self.folder, self.curations):
            make_private(folder)
        with locked(self.root / "lock", "the data store"):
            # Of a command that was killed.
            self._sweep()
            try:
                yield
            finally:
                self._sweep()

    def sources(self) -> tuple[Source, ...]:
        """Return all sources by their digests: the order in which they were added changes nothing.

        Raises:
            ConfigError: There is none.
            StorageError: The index cannot be read.
        """
        if found := self._read_index():
            return found
        raise ConfigError(f"{self.root}: wanted at least one source, got none; run: commonweal node data add FILE")

    def rows(self, source: Source) -> Iterator[Row]:
        """Yield a source's rows.

        Raises:
            StorageError: They cannot be read, or are others than were added; only the end can tell, so what was made
                of them is kept only after it.
        """
        path = self._path(source)
        digest, number = hashlib.sha256(), 0
        try:
            with path.open("rb") as f:
                while line := f.readline(MAX_LINE_BYTES + 1):
                    digest.update(line)
                    number += 1
                    yield parse_row(line, f"{path}, line {number}")
        except OSError as e:
            raise StorageError(f"{path}: cannot be read: {e.strerror}; add {source.name} again") from e
        if digest.hexdigest() != source.sha256:
            raise StorageError(f"{path}: wanted the rows of its name, got others; add {source.name} again")

    def add(self, path: Path, columns: Columns, split: Split | None, tell: Tell) -> Added:
        """Copy a source's rows into the store. The caller holds the lock.

        Args:
            path: A file, or a folder that ``datasets`` has saved.
            columns: What is said of keys or columns that are no fields.
            split: Where rows go whose source does not say.
            tell: Told now and then how many bytes of rows there are so far.

        Raises:
            ConfigError: The source cannot be read, or has no row.
            StorageError: The store cannot be written.
        """
        kinds: Counter[str] = Counter()
        work = self.folder / _OPEN
        sha256 = write_lines(work, _lines(path, columns, split, kinds, tell))
        source = Source(sha256=sha256, name=path.name, kinds=_some(path, kinds))
        try:
            work.rename(self._path(source))
            sync_directory(self.folder)
        except OSError as e:
            raise StorageError(f"{self.folder}: a source cannot be written: {e.strerror}") from e
        before = self._read_index()
        if new := all(s.sha256 != sha256 for s in before):
            self._write_index((*before, source))
        return Added(source, new)

    def check(self, path: Path, columns: Columns, split: Split | None, tell: Tell) -> Kinds:
        """Read a source as :meth:`add` does, and write nothing.

        Raises:
            ConfigError: See :meth:`add`.
        """
        kinds: Counter[str] = Counter()
        for _ in _lines(path, columns, split, kinds, tell):
            pass
        return _some(path, kinds)

    def remove(self, name: str) -> int:
        """Take out every source of a name. The caller holds the lock, and lets it go.

        Returns how many rows are gone. A curation that was made from them goes with the next one, or
        with the lock if no source is left to make one from.

        Raises:
            ConfigError: There is no such source.
            StorageError: The store cannot be written.
        """
        sources = self.sources()
        left = tuple(s for s in sources if s.name != name)
        if len(left) == len(sources):
            raise ConfigError(f"{name}: wanted one of {', '.join(sorted({s.name for s in sources}))}, got another name")
        self._write_index(left)
        return sum(s.rows for s in sources if s.name == name)

    def new_curation(self) -> Path:
        """Make an empty folder for a curation. The caller holds the lock until it is published."""
        make_private(folder := self.curations / _OPEN)
        return folder

    def publish(self, folder: Path, name: Digest) -> Path:
        """Give a whole curation its name, make it the newest, and return where it is.

        Raises:
            StorageError: The disk is full.
        """
        named, link = self.curations / name, self.root / ".curated"
        try:
            if not (named / "rows.jsonl").is_file():
                # An earlier curation's: its rows are gone, and what else is in it is the same.
                shutil.rmtree(named, ignore_errors=True)
                # The commit point: a curation's folder is whole from its first moment on.
                folder.rename(named)
                sync_directory(self.curations)
            link.unlink(missing_ok=True)
            link.symlink_to(named.relative_to(self.root))
            link.replace(self.curated)
            sync_directory(self.root)
        except OSError as e:
            raise StorageError(f"{named}: the curation cannot be written: {e.strerror}") from e
        return named

    def _sweep(self) -> None:
        """Remove rows of no source, and of no curation but the newest; earlier manifests and reports stay."""
        named = {self._path(s) for s in self._read_index()}
        try:
            if not named:
                # Without sources there will be no next curation to take the place of the newest.
                self.curated.unlink(missing_ok=True)
                self.answers.unlink(missing_ok=True)
            newest = self.curated.resolve()
            for path in self.folder.iterdir():
                if path not in named:
                    path.unlink()
            shutil.rmtree(self.curations / _OPEN, ignore_errors=True)
            for folder in self.curations.iterdir():
                if folder.resolve() != newest:
                    (folder / "rows.jsonl").unlink(missing_ok=True)
        except OSError as e:
            raise StorageError(f"{self.root}: old rows cannot be removed: {e.strerror}") from e

    def _path(self, source: Source) -> Path:
        return self.folder / f"{source.sha256}.jsonl"

    def _read_index(self) -> tuple[Source, ...]:
        data = read_if_there(self._index, _MAX_INDEX_BYTES, "the index of the sources")
        try:
            return _Index.model_validate_json(data).sources if data else ()
        except ValidationError as e:
            raise StorageError(
                f"{self._index}: wanted the index of the sources, got another file; remove it and add all sources again"
            ) from e

    def _write_index(self, sources: Iterable[Source]) -> None:
        index = _Index(sources=tuple(sorted(sources, key=lambda s: s.sha256)))
        # The commit point of every change: what it does not name is no source.
        write_atomic(self._index, index.to_canonical(), mode=0o600)


def make_private(folder: Path) -> None:
    """Create a folder that its owner alone may enter.

    Raises:
        StorageError: It cannot be created, or others may enter it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode & 0o777
    except OSError as e:
        raise StorageError(f"{folder}: cannot be created: {e.strerror}") from e
    if mode & 0o077:
        raise StorageError(f"{folder}: wanted mode 0700, got {mode:04o}; run: chmod 700 {folder}")


def write_lines(path: Path, lines: Iterable[bytes]) -> Digest:
    """Write lines to a file that its owner alone may read, and return its SHA-256; one line is in memory at a time.

    Raises:
        StorageError: The disk is full, or the folder cannot be written.
    """
    digest = hashlib.sha256()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
            for line in lines:
                f.write(line)
                digest.update(line)
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise StorageError(f"{path}: rows cannot be written: {e.strerror}") from e
    return digest.hexdigest()


def _lines(path: Path, columns: Columns, split: Split | None, kinds: Counter[str], tell: Tell) -> Iterator[bytes]:
    size = 0
    for n, row in enumerate(read_source(path, columns)):
        kinds[kind_of(row)] += 1
        line = format_row(row if row.split or split is None else replace(row, split=split))
        size += len(line)
        if n % _TELL_ROWS == 0:
            tell(size)
        yield line


def _some(path: Path, kinds: Counter[str]) -> Kinds:
    if not kinds:
        raise ConfigError(f"{path}: wanted at least one row, got none")
    return dict(sorted(kinds.items()))
