"""Run a curation: one stage after the other over shards of rows, so that it can be killed anywhere and continues.

A stage's folder is named by all that its rows follow from: the sources, every stage up to it with its parameters, and
the versions of what decides. So a stage that is finished is not done again, a stage whose parameters change is done
anew together with those behind it, and what was kept is never from other rows. Within a stage, a shard is done when
its ledger says so. What comes out is the same bytes, however often it was interrupted.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from commonweal_node.charter.charter import Charter
from commonweal_node.charter.data_policy import DataPolicy, LanguageFilter, Revise, Scrub, Stage
from commonweal_node.rows.language import identifier_version
from commonweal_node.rows.ledger import Done, open_ledger
from commonweal_node.rows.revise import Reviser
from commonweal_node.rows.row import Row
from commonweal_node.rows.scrub import scrubber_version
from commonweal_node.rows.shards import Shard, has_shard, make_private, read_shard, write_shard
from commonweal_node.rows.stages import Decision, make_stage
from commonweal_node.rows.store import Source, Store
from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import Json, digest_of
from commonweal_protocols.base.errors import ConfigError, StorageError
from commonweal_protocols.statements.values import Digest

_LAYOUT = 1
"""Of a stage's rows and ledger, and of what the stages decide: another one starts anew."""
_REPORT_ROWS = 64

Report = Callable[[str, int, int | None], None]
"""Stage, rows done, rows in all (None: not known)."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A stage that is done: what went in, what came out and why. ``by`` is what decided, if not this program."""

    stage: Stage
    key: Digest
    by: str
    folder: Path
    rows_in: int
    shards: tuple[Shard, ...]
    reasons: Counter[str]

    @property
    def rows_out(self) -> int:
        """How many rows are left."""
        return sum(s.rows for s in self.shards)


@dataclass(frozen=True, slots=True)
class Step:
    """A stage that is to be done, and its place in the chain."""

    stage: Stage
    key: Digest
    by: str


def plan(sources: list[Source], charter: Charter, reviser: Reviser | None) -> list[Step]:
    """Return the stages of a charter's data policy, each with the name of its folder.

    Raises:
        ConfigError: The charter has no data policy, or its stage ``revise`` has no model.
        ModuleNotFoundError: A stage needs the extra ``data``.
    """
    steps = []
    key = digest_of("".join(f"{s.id()}\n" for s in sources).encode())
    for stage in policy_of(charter).stages:
        by = _decided_by(stage, reviser)
        parameters: Json = stage.model_dump(mode="json")
        # What a principle says counts, and not the number that it has.
        texts: list[Json] = (
            [charter.principles[n - 1].text for n in stage.principles] if isinstance(stage, Revise) else []
        )
        key = digest_of(canonical.encode([_LAYOUT, key, parameters, by, texts]))
        steps.append(Step(stage, key, by))
    return steps


def policy_of(charter: Charter) -> DataPolicy:
    """Return a charter's data policy.

    Raises:
        ConfigError: It has none.
    """
    if charter.data is None:
        raise ConfigError(
            "charter: wanted a table [data] with the stages of a curation, got none; see docs/guides/curate-examples.md"
        )
    return charter.data


def _decided_by(stage: Stage, reviser: Reviser | None) -> str:
    match stage:
        case LanguageFilter():
            return identifier_version()
        case Scrub():
            return scrubber_version()
        case Revise():
            if reviser is None:
                raise ConfigError("stage revise: wanted a model, got none; give --base FOLDER")
            return reviser.name
        case _:
            return ""


def run_stages(
    store: Store, sources: list[Source], charter: Charter, reviser: Reviser | None, report: Report
) -> list[Finished]:
    """Do all that is left to do of a curation. The caller holds the store's lock.

    Raises:
        ConfigError: See :func:`plan`.
        StorageError: A disk is full, or has changed a shard.
        ModuleNotFoundError: A stage needs the extra ``data``.
    """
    steps = plan(sources, charter, reviser)
    folder, shards = store.shards, tuple(s for source in sources for s in source.shards)
    texts = tuple(p.text for p in charter.principles)
    finished = []
    for step in steps:
        done = _run_stage(store.work / step.key, step, folder, shards, texts, reviser, report)
        finished.append(done)
        folder, shards = done.folder, done.shards
    return finished


def is_done(store: Store, step: Step, inputs: int) -> bool:
    """Whether all ``inputs`` shards of a step are done."""
    if not (store.work / step.key / "ledger.sqlite").exists():
        return False
    with open_ledger(store.work / step.key / "ledger.sqlite") as ledger:
        return len(ledger.done()) == inputs


def remove_stale(store: Store, finished: list[Finished], newest: Path) -> None:
    """Remove all rows that are no part of the newest curation; manifests and reports of earlier ones stay.

    Raises:
        StorageError: Something cannot be removed.
    """
    current = {done.key for done in finished}
    try:
        for folder in store.work.iterdir():
            if folder.name not in current:
                shutil.rmtree(folder)
        for folder in store.curations.iterdir():
            if folder != newest:
                (folder / "rows.jsonl").unlink(missing_ok=True)
    except OSError as e:
        raise StorageError(f"{store.root}: old rows cannot be removed: {e.strerror}") from e


def _run_stage(
    folder: Path,
    step: Step,
    source: Path,
    inputs: tuple[Shard, ...],
    principles: tuple[str, ...],
    reviser: Reviser | None,
    report: Report,
) -> Finished:
    make_private(folder)
    with open_ledger(folder / "ledger.sqlite") as ledger:
        done = ledger.done()
        if lost := [d.shard.sha256 for d in done if not has_shard(folder, d.shard)]:
            raise StorageError(f"{folder}/{lost[0]}.jsonl: wanted a shard, got none; remove {folder} and curate again")
        total = sum(s.rows for s in inputs)
        before = sum(s.rows for s in inputs[: len(done)])
        report(step.stage.stage, before, total)
        if len(done) < len(inputs):
            apply = make_stage(step.stage, ledger, principles, reviser)
            for number, shard in enumerate(inputs[len(done) :], start=len(done)):
                reasons: Counter[str] = Counter()
                rows = _told(read_shard(source, shard), step.stage.stage, before, total, report)
                left = write_shard(folder, _decided(apply(rows), reasons))
                # The rows are on disk under their name; from here on they count.
                ledger.finish(number, result := Done(left, reasons))
                done.append(result)
                before += shard.rows
                report(step.stage.stage, before, total)
    return Finished(
        step.stage,
        step.key,
        step.by,
        folder,
        total,
        tuple(d.shard for d in done),
        sum((d.reasons for d in done), Counter[str]()),
    )


def _told(rows: Iterator[Row], stage: str, before: int, total: int, report: Report) -> Iterator[Row]:
    for n, row in enumerate(rows, start=1):
        yield row
        if n % _REPORT_ROWS == 0:
            report(stage, before + n, total)


def _decided(decisions: Iterator[Decision], reasons: Counter[str]) -> Iterator[Row]:
    for decision in decisions:
        reasons.update(decision.reasons)
        yield from decision.rows
