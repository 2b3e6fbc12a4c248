"""Entries that a coordinator must refuse while round 1 is open, and how it says so."""

from collections.abc import Callable

from commonweal_protocols.base.errors import (
    ChainConflictError,
    LogError,
    MalformedError,
    PeerError,
    RuleError,
    SignatureError,
)
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.statements.rounds import Incident
from commonweal_protocols.statements.values import Seen
from tests.kit.author import Author
from tests.kit.federation import ORIGIN, Federation, key_of
from tests.kit.hub import identity


def garbage(f: Federation) -> bytes:
    return b'{"payload": 1}'


def a_flipped_signature(f: Federation) -> bytes:
    good = f.signed("school", identity("school"))
    at = good.rindex(b'"sig":"') + 7
    return good[:at] + (b"B" if good[at : at + 1] == b"A" else b"A") + good[at + 1 :]


def a_stranger(f: Federation) -> bytes:
    return Author(key_of("stranger"), f.state.consortium).sign(identity("stranger"), seq=0, prev=None, seen=())


def another_institutions_name(f: Federation) -> bytes:
    return f.signed("school", identity("clinic"))


def an_update_for_a_round_that_is_not_open(f: Federation) -> bytes:
    return f.signed("school", f.update("school").model_copy(update={"round": 2}))


def a_second_update_for_one_round(f: Federation) -> bytes:
    return f.signed("clinic", f.update("clinic", b"another delta"))


def a_members_rejection(f: Federation) -> bytes:
    return f.signed("coop", Incident(round=1, round_leaf=f.state.rounds[0].leaf, reason="because"))


def another_consortium(f: Federation) -> bytes:
    chain = f.state.chain(public_hex(f.keys["school"]))
    author = Author(f.keys["school"], "0" * 64)
    return author.sign(f.update("school"), seq=chain.seq + 1, prev=chain.leaf, seen=())


def a_gap(f: Federation) -> bytes:
    chain = f.state.chain(public_hex(f.keys["school"]))
    author = Author(f.keys["school"], f.state.consortium)
    return author.sign(f.update("school"), seq=chain.seq + 2, prev=chain.leaf, seen=())


def a_log_that_was_seen_longer(f: Federation) -> bytes:
    chain = f.state.chain(public_hex(f.keys["school"]))
    author = Author(f.keys["school"], f.state.consortium)
    seen = Seen(origin=ORIGIN, size=99, root="0" * 64)
    return author.sign(f.update("school"), seq=chain.seq + 1, prev=chain.leaf, seen=(seen,))


def a_second_compact(f: Federation) -> bytes:
    f.compact = f.compact.model_copy(update={"max_update_bytes": 4096})
    return f.founding()


REFUSED: list[tuple[Callable[[Federation], bytes], type[PeerError], str]] = [
    (garbage, MalformedError, "another encoding of the value"),
    (a_flipped_signature, SignatureError, f"does not hold under key {public_hex(key_of('school'))}"),
    (a_stranger, RuleError, f"identity: wanted a member as the author, got key {public_hex(key_of('stranger'))}"),
    (another_institutions_name, RuleError, r"identity: wanted institution school \(the author\), got clinic"),
    (an_update_for_a_round_that_is_not_open, RuleError, "update: wanted an open round 2, but round 1 is open"),
    (a_second_update_for_one_round, RuleError, "update: clinic has answered round 1 already"),
    (a_members_rejection, RuleError, "incident: wanted the coordinator as the author, got key"),
    (another_consortium, RuleError, "update: wanted consortium [0-9a-f]{64}, got 0{64}"),
    (a_gap, ChainConflictError, "update: wanted number 1 in the chain of school, got 2"),
    (a_log_that_was_seen_longer, LogError, "rolled back: 99 entries were seen, 6 are here"),
    (a_second_compact, RuleError, "compact: wanted version 2, got 1"),
]
