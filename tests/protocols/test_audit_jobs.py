"""An audit whose signatures are checked in other processes: the same report, byte for byte, of whatever records."""

import os
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from commonweal_protocols.audit import cli as audit_cli
from commonweal_protocols.audit.audit import audit, examine
from commonweal_protocols.base.errors import CommonwealError, UnavailableError
from commonweal_protocols.records import signature_pool
from commonweal_protocols.statements.envelope import format_envelope, parse_envelope, sign, sign_envelope
from commonweal_protocols.tlog.tiles import bundle_path
from tests.bench.measure import make_entries
from tests.kit.federation import Federation, key_of
from tests.kit.proc import descendants
from tests.kit.shelf import Shelf, shelf

FEDERATION = Federation()
ENTRIES = [*FEDERATION.entries, *make_entries(FEDERATION, 530)]
LAST = bundle_path(2, len(ENTRIES) - 512)


def published(changed: dict[int, bytes]) -> Shelf:
    return shelf(FEDERATION, [changed.get(i, data) for i, data in enumerate(ENTRIES)])


def honest() -> Shelf:
    return published({})


def a_forged_entry_before_one_that_is_none() -> Shelf:
    payload = parse_envelope(ENTRIES[300]).payload
    return published({300: format_envelope(payload, [sign(b"x", key_of("clinic"))]), 301: b"{", 525: b""})


def an_entry_that_is_none_before_a_forged_one() -> Shelf:
    payload = parse_envelope(ENTRIES[301]).payload
    return published({300: b"{", 301: format_envelope(payload, [sign(b"x", key_of("clinic"))])})


def an_entry_that_says_nothing_known() -> Shelf:
    return published({520: sign_envelope(b"{}", key_of("clinic"))})


def a_gap_in_a_chain_before_a_forged_entry() -> Shelf:
    return published({400: ENTRIES[403], 401: sign_envelope(b"{}", key_of("clinic"))})


def a_missing_bundle_after_a_forged_entry() -> Shelf:
    records = published({100: b"{"})
    del records.files[LAST]
    return records


def a_missing_bundle() -> Shelf:
    records = honest()
    del records.files[LAST]
    return records


def a_damaged_bundle() -> Shelf:
    records = honest()
    records.files[bundle_path(1)] = records.files[bundle_path(1)][:-1]
    return records


def a_source_that_goes_away() -> Shelf:
    records = honest()

    def read(path: str) -> None:
        if path == LAST:
            raise UnavailableError(f"{path}: does not answer")

    records.before_read = read
    return records


def a_source_that_goes_away_after_a_forged_entry() -> Shelf:
    records = a_source_that_goes_away()
    records.files.update({k: v for k, v in published({100: b"{"}).files.items() if k == bundle_path(0)})
    return records


RECORDS: list[Callable[[], Shelf]] = [
    honest,
    a_forged_entry_before_one_that_is_none,
    an_entry_that_is_none_before_a_forged_one,
    an_entry_that_says_nothing_known,
    a_gap_in_a_chain_before_a_forged_entry,
    a_missing_bundle_after_a_forged_entry,
    a_missing_bundle,
    a_damaged_bundle,
    a_source_that_goes_away,
    a_source_that_goes_away_after_a_forged_entry,
]


@pytest.fixture(autouse=True)
def processes_from_the_first_entry_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature_pool, "MIN_POOLED_ENTRIES", 1)


def outcome(records: Shelf, jobs: int) -> tuple[str, bytes]:
    """The report, or the error of our own side; and whatever convicts the log."""
    try:
        found = examine(records, jobs=jobs)
    except CommonwealError as e:
        return f"{type(e).__name__}: {e}", b""
    return str(found.evidence), found.report.to_bytes()


@pytest.mark.parametrize("make", RECORDS, ids=lambda make: make.__name__)
def test_findings_and_reports_are_the_same_bytes_whatever_the_jobs(make: Callable[[], Shelf]) -> None:
    alone = outcome(make(), 1)
    assert outcome(make(), 2) == alone
    assert (alone == ("()", audit(honest()).to_bytes())) is (make is honest)
    assert descendants(os.getpid()) == []


def test_a_memory_that_was_made_with_processes_is_the_one_made_without() -> None:
    alone, beside = (examine(honest(), jobs=jobs).memory for jobs in (1, 2))
    assert alone is not None
    assert beside is not None
    assert (alone.note, alone.journal, alone.state) == (beside.note, beside.journal, beside.state)


@pytest.mark.parametrize("jobs", ["0", "-1", "x"])
def test_jobs_are_a_number_from_one_on(jobs: str) -> None:
    done = CliRunner().invoke(audit_cli.app, ["run", ".", "--jobs", jobs])
    assert done.exit_code == 2
    assert "--jobs" in done.output
