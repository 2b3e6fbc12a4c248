"""A node's own data, below ``HOME/data``. Nothing here leaves the host, and its owner alone may read it.

::

    lock                      held by the one command that is changing things
    shards/SHA256.jsonl       the rows of every source, in one encoding (see ``rows``)
    sources/ID.json           what was added: which shards, in which order
    work/KEY/                 a stage of a curation: what it has done, and the rows that it left (see ``engine``)
    curations/ID/             a whole curation: rows, signed manifest, report
    curated -> curations/ID   the newest; training takes ``data/curated/rows.jsonl``

A source is named by the SHA-256 of its shards, so adding the same rows again changes nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from commonweal_node.home import NodeHome
from commonweal_node.rows.row import Example, Row, Split, Text, format_row
from commonweal_node.rows.shards import Shard, has_shard, make_private, write_shards
from commonweal_node.rows.sources import Format, format_of, read_source
from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import ConfigError, StorageError
from commonweal_protocols.base.files import locked, read_bounded, write_atomic
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.values import Digest, Natural

_MAX_RECORD_BYTES = 1 << 26
_TELL_ROWS = 64
Tell = Callable[[int], None]
KINDS = ("conversation", "text", "preference")


class Source(Closed):
    """What was added at one time. ``name`` is the file's own, for people on this host."""

    name: str
    format: Format
    kinds: dict[str, Natural]
    """How many rows of each kind there are."""
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(self.kinds.values())

    def id(self) -> Digest:
        """The SHA-256 of its shards' names, each 64 hex digits and a line end."""
        return digest_of("".join(f"{s.sha256}\n" for s in self.shards).encode())


@dataclass(frozen=True, slots=True)
class Added:
    """A source, and whether it is new here."""

    source: Source
    new: bool


def kind_of(row: Row) -> str:
    """Return which of ``KINDS`` a row is."""
    return "conversation" if isinstance(row.body, Example) else "text" if isinstance(row.body, Text) else "preference"


class Store:
    """The folder. Its commands that change things hold the lock."""

    def __init__(self, home: Path) -> None:
        self.root = NodeHome(home).data
        self.shards = self.root / "shards"
        self.work = self.root / "work"
        self.curations = self.root / "curations"
        self.curated = self.root / "curated"
        self._sources = self.root / "sources"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, and make the folders.

        Raises:
            StorageError: Another command holds it, or the folders cannot be made or may be read by others.
        """
        for folder in (self.root, self.shards, self._sources, self.work, self.curations):
            make_private(folder)
        with locked(self.root / "lock", "the data store"):
            yield

    def sources(self) -> list[Source]:
        """Return all sources, in the order of their ids: the order in which they were added changes nothing.

        Raises:
            ConfigError: There is none.
            StorageError: A record cannot be read, or a shard is missing.
        """
        found = self._records()
        for source in found:
            if missing := [s.sha256 for s in source.shards if not has_shard(self.shards, s)]:
                raise StorageError(
                    f"{self.shards}/{missing[0]}.jsonl: wanted a shard, got none; add {source.name} again"
                )
        return found

    def _records(self) -> list[Source]:
        found = [self._load(path) for path in sorted(self._sources.glob("*.json"))]
        if not found:
            raise ConfigError(f"{self.root}: wanted at least one source, got none; run: commonweal node data add FILE")
        return found

    def _load(self, path: Path) -> Source:
        data = read_bounded(path, _MAX_RECORD_BYTES, "the record of a source")
        try:
            source = Source.model_validate_json(data)
        except ValidationError as e:
            raise StorageError(f"{path}: wanted the record of a source, got another file; add the source again") from e
        if source.id() != path.stem:
            raise StorageError(f"{path}: wanted the source {path.stem}, got {source.id()}; add the source again")
        return source

    def add(self, path: Path, mapping: Mapping[str, str], split: Split | None, tell: Tell) -> Added:
        """Copy a source's rows into the store. The caller holds the lock.

        Args:
            path: A file, or a folder that ``datasets`` has saved.
            mapping: Field to column, for tables.
            split: Where rows go whose source does not say.
            tell: Told now and then how many bytes of rows there are so far.

        Raises:
            ConfigError: The source cannot be read, or has no row.
            StorageError: The store cannot be written.
        """
        kinds: Counter[str] = Counter()
        shards = tuple(write_shards(self.shards, _counted(path, mapping, split, kinds, tell)))
        source = _source(path, kinds, shards)
        record = self._sources / f"{source.id()}.json"
        if new := not record.exists():
            # The commit point: above it, a crash leaves shards that no source names, and they are written again.
            write_atomic(record, canonical.encode(source.model_dump(mode="json")), mode=0o600)
        return Added(source, new)

    def remove(self, name: str) -> int:
        """Take out every source of a name, and the shards that no other source has. The caller holds the lock.

        Returns how many rows are gone. A curation that was made from them goes with the next one.

        Raises:
            ConfigError: There is no such source.
            StorageError: A file cannot be read or removed; then the same call continues.
        """
        sources = self._records()
        gone = [s for s in sources if s.name == name]
        if not gone:
            raise ConfigError(f"{name}: wanted one of {', '.join(sorted({s.name for s in sources}))}, got another name")
        left = {shard.sha256 for s in sources if s.name != name for shard in s.shards}
        try:
            for source in gone:
                for shard in source.shards:
                    if shard.sha256 not in left:
                        (self.shards / f"{shard.sha256}.jsonl").unlink(missing_ok=True)
                # Last, so that what a crash leaves is a source with a missing shard, which is noticed.
                (self._sources / f"{source.id()}.json").unlink()
        except OSError as e:
            raise StorageError(f"{self.root}: a source cannot be removed: {e.strerror}") from e
        return sum(s.rows for s in gone)

    def check(self, path: Path, mapping: Mapping[str, str], split: Split | None, tell: Tell) -> Source:
        """Read a source as :meth:`add` does, and write nothing; what it returns has no shards.

        Raises:
            ConfigError: See :meth:`add`.
        """
        kinds: Counter[str] = Counter()
        for _ in _counted(path, mapping, split, kinds, tell):
            pass
        return _source(path, kinds, ())


def _counted(
    path: Path, mapping: Mapping[str, str], split: Split | None, kinds: Counter[str], tell: Tell
) -> Iterator[bytes]:
    size = 0
    for n, row in enumerate(read_source(path, mapping)):
        kinds[kind_of(row)] += 1
        line = format_row(row if row.split or split is None else replace(row, split=split))
        size += len(line)
        if n % _TELL_ROWS == 0:
            tell(size)
        yield line


def _source(path: Path, kinds: Counter[str], shards: tuple[Shard, ...]) -> Source:
    if not kinds:
        raise ConfigError(f"{path}: wanted at least one row, got none")
    return Source(name=path.name, format=format_of(path), kinds=dict(sorted(kinds.items())), shards=shards)
