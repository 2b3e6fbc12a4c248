"""Opening many entries: whatever verifies them, the same entries and the same first error, in its place."""

from collections.abc import Iterator, Sequence

import pytest

from commonweal_protocols.base.errors import (
    CommonwealError,
    LogError,
    MalformedError,
    PeerError,
    SignatureError,
    UnavailableError,
)
from commonweal_protocols.records.entries import open_entries
from commonweal_protocols.records.signature_pool import MIN_POOLED_ENTRIES, Verify, verifier_for, verify_here
from commonweal_protocols.statements.envelope import format_envelope, sign, sign_envelope
from commonweal_protocols.statements.statement import Entry, open_entry
from tests.kit.federation import Federation, key_of


def some_entries() -> list[bytes]:
    f = Federation()
    for _ in range(4):
        f.announce()
    return f.entries


ENTRIES = some_entries()
FORGED = format_envelope(b"x", [sign(b"y", key_of("a"))])
NO_STATEMENT = sign_envelope(b"{}", key_of("a"))


JOBS = 2


@pytest.fixture(scope="module")
def pooled() -> Iterator[Verify]:
    with verifier_for(MIN_POOLED_ENTRIES, JOBS) as verify:
        yield verify


@pytest.fixture(params=["here", "pool"])
def verify(request: pytest.FixtureRequest, pooled: Verify) -> Verify:
    return pooled if request.param == "pool" else verify_here


def one_by_one(entries: Sequence[bytes]) -> list[Entry]:
    return [open_entry(data) for data in entries]


@pytest.mark.parametrize("width", [1, 3, 256])
def test_entries_come_in_order_and_as_if_opened_one_by_one(verify: Verify, width: int) -> None:
    bundles = [ENTRIES[at : at + width] for at in range(0, len(ENTRIES), width)]
    assert list(open_entries(bundles, verify)) == one_by_one(ENTRIES)


def test_nothing_is_nothing(verify: Verify) -> None:
    assert list(open_entries([], verify)) == []
    assert list(open_entries([[], []], verify)) == []


REFUSED: list[tuple[bytes, type[PeerError], str]] = [
    (b"{", MalformedError, "envelope: wanted canonical JSON"),
    (FORGED, SignatureError, "does not hold under key"),
    (NO_STATEMENT, MalformedError, "statement: wanted"),
]


@pytest.mark.parametrize(("bad", "kind", "message"), REFUSED, ids=[kind.__name__ + m[:3] for _, kind, m in REFUSED])
@pytest.mark.parametrize("place", [0, 4, 9])
def test_the_first_error_is_raised_in_its_place_whatever_comes_after_it(
    verify: Verify, bad: bytes, kind: type[PeerError], message: str, place: int
) -> None:
    bundles = [[*ENTRIES[:place], bad, b"worse"], [FORGED], [b""]]
    got: list[Entry] = []  # what came before the error stays in it
    with pytest.raises(kind, match=message):
        got.extend(open_entries(bundles, verify))
    assert got == one_by_one(ENTRIES[:place])


@pytest.mark.parametrize("error", [LogError("gone"), UnavailableError("away")])
def test_a_bundle_that_cannot_be_read_is_an_error_only_after_all_before_it(
    verify: Verify, error: CommonwealError
) -> None:
    def bundles(last: bytes) -> Iterator[list[bytes]]:
        yield ENTRIES[:5]
        yield [*ENTRIES[5:9], last]
        raise error

    got: list[Entry] = []  # what came before the error stays in it
    with pytest.raises(type(error), match=str(error)):
        got.extend(open_entries(bundles(ENTRIES[9]), verify))
    assert got == one_by_one(ENTRIES[:10])
    with pytest.raises(SignatureError):
        list(open_entries(bundles(FORGED), verify))


def test_no_more_is_read_ahead_than_workers_can_use(verify: Verify) -> None:
    read = 0

    def bundles() -> Iterator[list[bytes]]:
        nonlocal read
        for data in ENTRIES:
            read += 1
            yield [data]

    for n, _ in enumerate(open_entries(bundles(), verify), 1):
        assert n <= read <= n + (0 if verify is verify_here else 2 * JOBS)
