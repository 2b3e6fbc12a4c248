"""Opening many entries, in order: what :func:`statement.open_entry` does for one.

Whatever verifies the envelopes, the entries, the errors, and the place of the first error are the same.
"""

from collections.abc import Iterable, Iterator

from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import PeerError
from commonweal_protocols.records.signature_pool import Bundle, Verify
from commonweal_protocols.statements.statement import Entry, parse_statement
from commonweal_protocols.tlog.merkle import leaf_hash


def open_entries(bundles: Iterable[Bundle], verify: Verify) -> Iterator[Entry]:
    """Yield the entries of some bundles, in order.

    Bundles are read ahead, as far as ``verify`` can use them. What goes wrong in reading one is raised only in its
    turn: after every entry before it.

    Raises:
        MalformedError: An entry is not in its one accepted encoding.
        SignatureError: A signature does not hold.
        CommonwealError: What reading a bundle raises.
    """
    for bundle, outcomes in verify(bundles):
        for data, outcome in zip(bundle, outcomes, strict=True):
            if isinstance(outcome, PeerError):
                raise outcome
            payload = outcome.payload
            yield Entry(leaf_hash(data).hex(), outcome.signers, parse_statement(payload), digest_of(payload))
