"""Opening many entries: whatever checks the signatures, the same entries and the same first error, in its place."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from commonweal_protocols.base.errors import (
    CommonwealError,
    LogError,
    MalformedError,
    PeerError,
    SignatureError,
    UnavailableError,
)
from commonweal_protocols.records.entries import begin_opening, open_entries
from commonweal_protocols.records.signature_pool import Checker, InProcess, Pool
from commonweal_protocols.statements.envelope import format_envelope, sign, sign_envelope
from commonweal_protocols.statements.statement import Entry, open_entry
from tests.kit.federation import Federation, key_of
from tests.kit.worker import worker_that


def some_entries() -> list[bytes]:
    f = Federation()
    for _ in range(4):
        f.announce()
    return f.entries


ENTRIES = some_entries()
FORGED = format_envelope(b"x", [sign(b"y", key_of("a"))])
NO_STATEMENT = sign_envelope(b"{}", key_of("a"))


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as p:
        yield p


@pytest.fixture(params=["in process", "pool"])
def checker(request: pytest.FixtureRequest, pool: Pool) -> Checker:
    return pool if request.param == "pool" else InProcess()


def one_by_one(entries: Sequence[bytes]) -> list[Entry]:
    return [open_entry(data) for data in entries]


@pytest.mark.parametrize("width", [1, 3, 256])
def test_entries_come_in_order_and_as_if_opened_one_by_one(checker: Checker, width: int) -> None:
    bundles = [ENTRIES[at : at + width] for at in range(0, len(ENTRIES), width)]
    assert list(open_entries(bundles, checker)) == one_by_one(ENTRIES)


def test_nothing_is_nothing(checker: Checker) -> None:
    assert list(open_entries([], checker)) == []
    assert list(open_entries([[], []], checker)) == []


REFUSED: list[tuple[bytes, type[PeerError], str]] = [
    (b"{", MalformedError, "envelope: wanted canonical JSON"),
    (FORGED, SignatureError, "does not hold under key"),
    (NO_STATEMENT, MalformedError, "statement: wanted"),
]


@pytest.mark.parametrize(("bad", "kind", "message"), REFUSED, ids=[kind.__name__ + m[:3] for _, kind, m in REFUSED])
@pytest.mark.parametrize("place", [0, 4, 9])
def test_the_first_error_is_raised_in_its_place_whatever_comes_after_it(
    checker: Checker, bad: bytes, kind: type[PeerError], message: str, place: int
) -> None:
    bundles = [[*ENTRIES[:place], bad, b"worse"], [FORGED], [b""]]
    got: list[Entry] = []  # what came before the error stays in it
    with pytest.raises(kind, match=message):
        got.extend(open_entries(bundles, checker))
    assert got == one_by_one(ENTRIES[:place])


@pytest.mark.parametrize("error", [LogError("gone"), UnavailableError("away")])
def test_a_bundle_that_cannot_be_read_is_an_error_only_after_all_before_it(
    checker: Checker, error: CommonwealError
) -> None:
    def bundles(last: bytes) -> Iterator[list[bytes]]:
        yield ENTRIES[:5]
        yield [*ENTRIES[5:9], last]
        raise error

    got: list[Entry] = []  # what came before the error stays in it
    with pytest.raises(type(error), match=str(error)):
        got.extend(open_entries(bundles(ENTRIES[9]), checker))
    assert got == one_by_one(ENTRIES[:10])
    with pytest.raises(SignatureError):
        list(open_entries(bundles(FORGED), checker))


def test_no_more_is_read_ahead_than_the_checker_can_use(checker: Checker) -> None:
    read = 0

    def bundles() -> Iterator[list[bytes]]:
        nonlocal read
        for data in ENTRIES:
            read += 1
            yield [data]

    for n, _ in enumerate(open_entries(bundles(), checker), 1):
        assert n <= read <= n + checker.ahead


def test_each_entry_of_a_batch_is_judged_by_itself(checker: Checker) -> None:
    data = [ENTRIES[0], FORGED, ENTRIES[1], b"{", NO_STATEMENT, ENTRIES[2]]
    opened = begin_opening(data, checker)()
    assert [o for o in opened if isinstance(o, Entry)] == one_by_one(ENTRIES[:3])
    errors = [o for o in opened if isinstance(o, PeerError)]
    assert [type(e) for e in errors] == [SignatureError, MalformedError, MalformedError]
    for bad, error in zip((FORGED, b"{", NO_STATEMENT), errors, strict=True):
        with pytest.raises(type(error)) as alone:
            open_entry(bad)
        assert str(alone.value) == str(error)


def test_a_worker_that_refuses_what_holds_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker_that("sys.stdout.write('\\0'); sys.stdout.flush(); sys.stdin.read()", tmp_path, monkeypatch)
    with Pool(1) as liar, pytest.raises(UnavailableError, match="wanted the answer that every signature holds, got"):
        list(open_entries([ENTRIES[:1]], liar))
