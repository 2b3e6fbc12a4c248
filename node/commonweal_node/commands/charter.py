"""``commonweal charter``: a community writes, compares, imports and publishes its charter. No logic here."""

import json
import secrets
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from commonweal_node.charter.charter import Charter, load_charter
from commonweal_node.charter.edit import Kind, add_clause, load_text, new_charter, next_version, parse_charter
from commonweal_node.commands.voices import draft, voices
from commonweal_node.config import load_config
from commonweal_node.home import DEFAULT_HOME, NodeHome
from commonweal_protocols.base import canonical
from commonweal_protocols.base.errors import ConfigError, MalformedError, PeerError, StorageError
from commonweal_protocols.base.files import read_bounded, write_atomic
from commonweal_protocols.base.keys import read_private, write_private
from commonweal_protocols.base.options import AsJson, Ca, Home, PassphraseFile, Place
from commonweal_protocols.base.report import Report, print_report
from commonweal_protocols.base.text import printable
from commonweal_protocols.fold.charters import MAX_OPENING_BYTES, SECRET_BYTES, open_part, parse_opening, publish
from commonweal_protocols.fold.state import LoggedCharter, State
from commonweal_protocols.records.replay import replay
from commonweal_protocols.records.source import is_address, open_source
from commonweal_protocols.statements.charter import TERMS, Addendum, Change, Clause, Imported, describe, diff
from commonweal_protocols.statements.governance import Charter as PublishedCharter
from commonweal_protocols.statements.values import Digest, Name

app = typer.Typer(no_args_is_help=True, help="Write a community's charter, compare and publish it, and hear voices.")
app.command()(voices)
app.command()(draft)

File = Annotated[Path, typer.Argument(help="A charter (TOML).")]
FileOrPlace = Annotated[
    str,
    typer.Argument(
        metavar="FILE|PLACE", help="A charter (TOML); or public records, an address or a folder: a published one."
    ),
]
Institution = Annotated[str | None, typer.Option(help="Of public records: whose charter.")]


class CharterReport(Report):
    """What a charter has, and which probes show whether its clauses are kept."""

    digest: Digest
    community: str
    version: int
    clauses: int
    safety_items: int
    public: tuple[str, ...]
    without_provenance: tuple[Name, ...] = Field(title="clauses without provenance")
    without_probe: tuple[Name, ...] = Field(title="clauses without a probe")
    probes: dict[Name, tuple[Name, ...]] = Field(title="probes of clauses")


def _is_place(given: str) -> bool:
    return is_address(given) or Path(given).is_dir()


def _published(state: State, institution: str | None) -> tuple[LoggedCharter, ...]:
    known = state.charters.get(institution or "", ())
    if not known:
        raise ConfigError(
            f"--institution: wanted one that has published a charter ({', '.join(sorted(state.charters)) or 'none'}), "
            f"got {institution}"
        )
    return known


def _parts(logged: LoggedCharter) -> dict[str, canonical.Json]:
    """The public parts of a published charter, under their names; and how many others there are."""
    c = logged.charter
    terms: dict[str, canonical.Json] = {
        name: c.model_dump(mode="json")[name.replace("-", "_")]
        for name in TERMS
        if getattr(c, name.replace("-", "_")) is not None
    }
    clauses = {x.id: x.model_dump(mode="json") for x in (*c.principles, *c.safety, *c.addenda)}
    return {**terms, **clauses, "sealed": list(c.sealed)}


def _print(change: Change) -> None:
    for line in describe(change):
        typer.echo(printable(line))


@app.command()
def new(
    file: Annotated[Path, typer.Argument(help="Where to write it.")],
    community: Annotated[str | None, typer.Option(help="The community's name: a first version is begun.")] = None,
    after: Annotated[Path | None, typer.Option(help="The version before: its text is taken over.")] = None,
) -> None:
    """Begin a charter, or its next version, which names the one before by its digest."""
    if (community is None) == (after is None):
        raise ConfigError("charter new: wanted one of --community and --after")
    if file.exists():
        raise ConfigError(f"{file}: wanted a name that is not taken")
    text = next_version(load_text(after), str(after)) if after else new_charter(community or "")
    write_atomic(file, text.encode())
    typer.echo(f"{file}: version {parse_charter(text, str(file)).version}; next: commonweal charter check {file}")


@app.command()
def check(file: File, as_json: AsJson = False) -> None:
    """Say whether a file is a charter, what it has, and which evaluations it asks for."""
    charter = load_charter(file)
    clauses = list(charter.clauses())
    found = CharterReport(
        digest=charter.digest(),
        community=charter.community,
        version=charter.version,
        clauses=len(clauses),
        safety_items=len(charter.safety),
        public=charter.public,
        without_provenance=tuple(c.id for c in clauses if not c.provenance),
        without_probe=tuple(c.id for c in clauses if not c.probes),
        probes={probe: tuple(ids) for probe, ids in charter.probed_by().items()},
    )
    print_report(found, as_json)


@app.command()
def show(
    given: FileOrPlace,
    ca: Ca = None,
    institution: Institution = None,
    as_json: AsJson = False,
) -> None:
    """Print a charter in its canonical form; of a published one, every version and what each changed."""
    if not _is_place(given):
        record = load_charter(Path(given)).record()
        said = canonical.encode(record.model_dump(mode="json")).decode()
        typer.echo(said if as_json else f"version {record.version}, digest {record.digest()}")
        if not as_json:
            for change in diff({}, record.parts()):
                _print(change)
        return
    versions = _published(replay(open_source(given, ca)).state, institution)
    if as_json:
        listed = [{"entry": v.index, "charter": v.charter.model_dump(mode="json")} for v in versions]
        typer.echo(canonical.encode(listed).decode())  # type: ignore[arg-type]  # a model's JSON
        return
    before: dict[str, canonical.Json] = {}
    for v in versions:
        typer.echo(f"version {v.charter.version}, entry {v.index}, digest {v.charter.digest()}")
        after = _parts(v)
        for change in diff(before, after):
            _print(change)
        before = after


@app.command(name="diff")
def diff_command(before: File, after: File, as_json: AsJson = False) -> None:
    """Print what differs between two charters, clause by clause."""
    changes = diff(load_charter(before).record().parts(), load_charter(after).record().parts())
    if as_json:
        typer.echo(canonical.encode([{**c._asdict()} for c in changes]).decode())
        return
    for change in changes:
        _print(change)


@app.command(name="import")
def import_clause(
    into: Annotated[Path, typer.Argument(help="The charter (TOML) that gets the clause.")],
    given: FileOrPlace,
    clause: Annotated[str, typer.Option(help="The clause's id there.")],
    name: Annotated[str | None, typer.Option("--as", help="The id that it gets here; the same if not given.")] = None,
    ca: Ca = None,
    institution: Institution = None,
) -> None:
    """Add a clause of another charter, with where it comes from, and with the dissent that stands beside it there."""
    if not _is_place(given):
        charter = load_charter(Path(given))
        kinds = _kinds(charter.principles, charter.safety, charter.addenda)
        origin = Imported(kind="import", charter=charter.digest(), clause=clause)
    else:
        state = replay(open_source(given, ca)).state
        logged = _published(state, institution)[-1].charter
        kinds = _kinds(logged.principles, logged.safety, logged.addenda)
        origin = Imported(
            kind="import",
            charter=logged.digest(),
            clause=clause,
            consortium=state.consortium,
            institution=logged.institution,
        )
    if clause not in kinds:
        raise ConfigError(f"--clause: wanted one of {', '.join(kinds) or 'none'}, got {clause}")
    kind, found = kinds[clause]
    changed = {**found.model_dump(), "id": name or clause, "provenance": (*found.provenance, origin)}
    imported = Addendum.model_validate(changed) if isinstance(found, Addendum) else Clause.model_validate(changed)
    write_atomic(into, add_clause(load_text(into), kind, imported, str(into)).encode())
    typer.echo(f"{into}: {imported.id}, from {clause} of {origin.charter}")


def _kinds(
    principles: tuple[Clause, ...], safety: tuple[Clause, ...], addenda: tuple[Addendum, ...]
) -> dict[Name, tuple[Kind, Clause]]:
    return {
        **{c.id: ("principles", c) for c in principles},
        **{c.id: ("safety", c) for c in safety},
        **{c.id: ("addenda", c) for c in addenda},
    }


def _own(home: Path) -> tuple[Charter, Name, Path]:
    files = NodeHome(home)
    config = load_config(files.settings)
    if config.charter is None:
        raise ConfigError(f'{files.settings}: wanted a charter, got none; add the line: charter = "FILE"')
    return load_charter(config.charter), config.institution, files.charter_secret


def _secret(path: Path) -> bytes:
    secret = read_private(path, SECRET_BYTES, "what seals this institution's charters")
    if len(secret) != SECRET_BYTES:
        raise StorageError(f"{path}: wanted {SECRET_BYTES} bytes, got {len(secret)}")
    return secret


@app.command(name="publish")
def publish_command(
    home: Home = DEFAULT_HOME,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Have the node's charter logged: its public parts in clear, and a salted digest of every other part.

    What seals the others is made once and kept in HOME/keys/charter.secret: without it nothing can be opened.
    """
    from commonweal_node.institution.opened_home import OpenedHome

    charter, institution, secret = _own(home)
    if not secret.exists():
        write_private(secret, secrets.token_bytes(SECRET_BYTES))

    def make(state: State) -> PublishedCharter:
        before = state.charters.get(institution, ())
        return publish(charter.record(), institution, before[-1].charter.digest() if before else None, _secret(secret))

    leaf = OpenedHome(home, passphrase_file).submit(make)
    typer.echo(f"version {charter.version} of the charter of {institution} is logged: entry {leaf}")


@app.command()
def reveal(part: Annotated[str, typer.Argument(help="A clause's id, or a term.")], home: Home = DEFAULT_HOME) -> None:
    """Print what opens one sealed part of the published charter, to hand to whom the community likes."""
    charter, _, secret = _own(home)
    record = charter.record()
    if part not in record.parts():
        raise ConfigError(f"part: wanted one of {', '.join(record.parts())}, got {part}")
    typer.echo(open_part(record, part, _secret(secret)).to_bytes().decode())


@app.command()
def verify(
    opening: Annotated[Path, typer.Argument(help="What was handed over.")],
    place: Place,
    institution: Institution = None,
    ca: Ca = None,
) -> None:
    """Say which published versions of an institution's charter an opening belongs to. Exit 1: to none."""
    data = read_bounded(
        opening, MAX_OPENING_BYTES, "a charter's opened part", error=ConfigError, too_large=MalformedError
    )
    said = parse_opening(data.rstrip(b"\n"))
    seal: Digest = said.seal()
    versions = _published(replay(open_source(place, ca)).state, institution)
    held = [v for v in versions if seal in v.charter.sealed]
    if not held:
        raise PeerError(f"{opening}: wanted a sealed part of a charter of {institution}, got one that none has")
    typer.echo(printable(f"{said.part}: {json.dumps(said.value, ensure_ascii=False, sort_keys=True)}"))
    typer.echo("in " + ", ".join(f"version {v.charter.version} (entry {v.index})" for v in held))
