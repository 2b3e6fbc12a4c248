"""``commonweal node data``: a community's rows on this host. No logic here; the modules of ``curation`` do the work."""

import functools
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from commonweal_node.charter.charter import Charter, load_charter
from commonweal_node.charter.data_policy import Revise
from commonweal_node.config import load_config
from commonweal_node.connection.keyring import KeyRing
from commonweal_node.home import DEFAULT_HOME, NodeHome
from commonweal_node.rows.language import load_identifier
from commonweal_node.rows.manifest import load_curation_key
from commonweal_node.rows.row import Row, Split
from commonweal_node.rows.shapes import Columns
from commonweal_node.rows.sources import format_of, parse_mapping
from commonweal_node.rows.store import Store
from commonweal_node.rows.tables import csv_delimiter
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.keys import load_passphrase
from commonweal_protocols.base.options import AsJson, DryRun, Home, PassphraseFile
from commonweal_protocols.base.progress import Tell, progress
from commonweal_protocols.base.report import Report, print_report
from commonweal_protocols.statements.data_manifest import DataManifest

if TYPE_CHECKING:
    from commonweal_node.rows.revise import Reviser

data_app = typer.Typer(
    no_args_is_help=True, help="This community's rows: add, inspect, curate, report. They never leave."
)
Base = Annotated[Path | None, typer.Option(help="A base model's folder, as fetch-base prints it.")]


class SourceReport(Report):
    """A source of rows, as it was added, or could be."""

    source: str
    new: bool
    """Whether it was added now; False of one that is here already, and of a dry run."""
    rows: int
    kinds: dict[str, int]
    delimiter: str | None = None
    """Of a CSV, what was taken for it."""


class PlannedStage(Report):
    """A stage of a curation, and whether the newest one has it."""

    stage: str
    done: bool


class StageReport(Report):
    """What a stage of a curation left."""

    stage: str
    rows_in: int = Field(title="rows before")
    rows_out: int = Field(title="rows after")


@data_app.command()
def add(
    sources: Annotated[list[Path], typer.Argument(help="JSON, JSONL, text, CSV, Parquet, or a saved datasets folder.")],
    home: Home = DEFAULT_HOME,
    columns: Annotated[
        list[str] | None, typer.Option("--map", help="FIELD=COLUMN (or key), like group=patient; may be repeated.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A column (or key) that means nothing for a row; may be repeated.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="train or heldout, for rows whose source does not say.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Copy rows into the node's own store, in one encoding. A row that breaks the schema is named by file and line.

    Conversations are read as messages, ShareGPT, Alpaca, prompt and completion, or user and assistant; preferences as
    texts or messages. A key that is not known to be harmless is an error, unless --map or --ignore says what it is.
    """
    store, said = Store(home), Columns(parse_mapping(columns or []), frozenset(ignore or []))
    side = _split(split)
    for path in sources:
        with progress(quiet=as_json) as report:
            # What is compressed has no size to compare with.
            total = path.stat().st_size if format_of(path) in ("jsonl", "text", "csv") else None
            tell = functools.partial(_tell, report, path.name, total)
            if dry_run:
                kinds, new = store.check(path, said, side, tell), False
            else:
                with store.locked():
                    added = store.add(path, said, side, tell)
                kinds, new = added.source.kinds, added.new
        print_report(
            SourceReport(
                source=path.name, new=new, rows=sum(kinds.values()), kinds={**kinds}, delimiter=_delimiter(path)
            ),
            as_json,
        )


def _delimiter(path: Path) -> str | None:
    return csv_delimiter(path).replace("\t", "tab") if format_of(path) == "csv" else None


def _tell(report: Tell, name: str, total: int | None, size: int) -> None:
    report(name, size if total is None else min(size, total), total)


def _split(given: str | None) -> Split | None:
    match given:
        case None | "train" | "heldout":
            return given
        case _:
            raise ConfigError(f"--split: wanted train or heldout, got {given!r}")


@data_app.command()
def remove(
    name: Annotated[str, typer.Argument(help="A source's name, as it was added; without its folder.")],
    home: Home = DEFAULT_HOME,
) -> None:
    """Take a source out of the store: its people want their rows back. Then curate, so that no curation has them."""
    store = Store(home)
    with store.locked():
        rows = store.remove(name)
    typer.echo(f"{name}: {rows:,} rows removed; next: commonweal node data curate --home {home}")


@data_app.command()
def inspect(home: Home = DEFAULT_HOME, base: Base = None, as_json: AsJson = False) -> None:
    """Say what the rows are made of: kinds, splits, groups, lengths, languages, copies.

    Lengths are in tokens of --base, and in characters without it. Languages need the extra: pip install
    'commonweal[node,data]'.
    """
    from commonweal_node.rows.survey import load_token_counter, survey

    store = Store(home)
    sources = store.sources()
    total = sum(s.rows for s in sources)
    with progress(quiet=as_json) as report:

        def told() -> Iterator[Row]:
            for n, row in enumerate(chain.from_iterable(map(store.rows, sources)), start=1):
                report("inspect", n, total)
                yield row

        found = survey(
            told(),
            load_token_counter(base) if base else None,
            load_identifier() if find_spec("py3langid") else None,
        )
    print_report(found, as_json)


@data_app.command()
def curate(
    home: Home = DEFAULT_HOME,
    base: Base = None,
    adapter: Annotated[Path | None, typer.Option(help="A PEFT folder to revise with, like HOME/adopted.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Curate all sources by the charter's data policy, and sign what was done. Killed, it leaves nothing half done."""
    from commonweal_node.rows.curate import Signer, is_current, plan, write_reports
    from commonweal_node.rows.curate import curate as run_curation

    config = load_config(NodeHome(home).settings)
    charter, store = load_charter(config.charter), Store(home)
    reviser = _load_reviser(charter, base, adapter, config.threads)
    if dry_run:
        steps = plan(charter, reviser)
        done = is_current(store, charter, steps, home)
        print_report([PlannedStage(stage=s.stage.stage, done=done) for s in steps], as_json)
        return
    signer = Signer(
        config.institution,
        KeyRing(home, load_passphrase(passphrase_file)).present,
        load_curation_key(home),
    )
    with store.locked(), progress(quiet=as_json) as report:
        folder = run_curation(store, charter, reviser, signer, report)
    manifest = write_reports(folder)
    _print(manifest, folder, as_json)
    if not as_json:
        typer.echo('train on it: data = "data/curated/rows.jsonl" in node.toml')


def _load_reviser(charter: Charter, base: Path | None, adapter: Path | None, threads: int) -> "Reviser | None":
    if base is None or charter.data is None or not any(isinstance(s, Revise) for s in charter.data.stages):
        return None
    from commonweal_node.training.local_model import LocalModel

    return LocalModel(base, adapter, threads or None)


@data_app.command()
def report(home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Write the newest curation's report anew from its signed manifest: report.html and report.json beside the rows."""
    from commonweal_node.rows.curate import write_reports

    folder = Store(home).curated
    _print(write_reports(folder), folder, as_json)


def _print(manifest: DataManifest, folder: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(manifest.to_bytes())
        return
    print_report([StageReport(stage=s.stage, rows_in=s.rows_in, rows_out=s.rows_out) for s in manifest.stages], False)
    left = manifest.left
    typer.echo(f"{left.train_rows:,} rows for training, {left.heldout_rows:,} held out; see {folder}/report.html")
