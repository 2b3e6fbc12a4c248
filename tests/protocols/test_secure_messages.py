"""What is said in a masked round: statements like any other, and the largest of them has room in an entry."""

from typing import get_args

import pytest

from commonweal_protocols.statements.registry import PREDICATES, Predicate
from commonweal_protocols.statements.secure_messages import (
    Confirmation,
    Reveal,
    RevealedShare,
    SealedShares,
    StageEnd,
)
from commonweal_protocols.statements.secure_terms import MAX_NEIGHBOURS
from commonweal_protocols.statements.statement import Statement, open_entry, parse_statement
from commonweal_protocols.statements.values import Seen
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES
from tests.kit.author import Author
from tests.kit.federation import key_of
from tests.kit.secure_messages import HEADER, LEAF, MESSAGES, SHARE


@pytest.mark.parametrize("said", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_message_is_a_statement_about_its_round(said: Predicate) -> None:
    assert PREDICATES[said.URI] is type(said)
    payload = Statement(HEADER, said).payload()
    assert parse_statement(payload) == Statement(HEADER, said)
    assert said.subject().sha256 == LEAF


def test_there_is_one_statement_for_each_uri() -> None:
    assert len(PREDICATES) == len(get_args(Predicate))


def names(count: int) -> tuple[str, ...]:
    """As long as a name may be."""
    return tuple(f"{i:03d}" + "x" * 60 for i in range(count))


LARGEST: list[Predicate] = [
    SealedShares(
        round=10**9,
        round_leaf=LEAF,
        advertised="a" * 64,
        seed_commitment="b" * 64,
        shares=tuple(SHARE.model_copy(update={"holder": name}) for name in names(MAX_NEIGHBOURS + 1)),
    ),
    Confirmation(round=10**9, round_leaf=LEAF, survivors=names(400)),
    StageEnd(round=10**9, round_leaf=LEAF, stage="advertise", speakers=names(400)),
    Reveal(
        round=10**9,
        round_leaf=LEAF,
        shares=tuple(RevealedShare(owner=name, of="self", share="0" * 66) for name in names(MAX_NEIGHBOURS + 1)),
    ),
]


@pytest.mark.parametrize("said", LARGEST, ids=lambda m: type(m).__name__)
def test_the_largest_of_each_fits_an_entry_with_the_largest_header(said: Predicate) -> None:
    seen = tuple(Seen(origin=f"{i}" + "o" * 254, size=2**53 - 1, root="c" * 64) for i in range(8))
    entry = Author(key_of("clinic"), "c0" * 32).sign(said, seq=2**53 - 1, prev="ab" * 32, seen=seen)
    assert len(entry) <= MAX_ENTRY_BYTES
    assert open_entry(entry).statement.predicate == said
