"""Opening many entries, in order, with their signatures checked ahead: what :func:`statement.open_entry` does for one.

Whatever checks the signatures, the entries, the errors, and the place of the first error are the same.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import CommonwealError, PeerError, UnavailableError
from commonweal_protocols.records.signature_pool import Checker
from commonweal_protocols.statements.envelope import UnverifiedEnvelope, Verified, parse_envelope, verify_envelope
from commonweal_protocols.statements.statement import Entry, parse_statement
from commonweal_protocols.tlog.merkle import leaf_hash

Opened = list[Entry | PeerError]
"""For each entry what it says, or why it is refused."""


def begin_opening(entries: Sequence[bytes], checker: Checker) -> Callable[[], Opened]:
    """Begin to open up to 256 entries, each by itself; calling what this returns, once, waits for the outcome.

    Raises:
        UnavailableError: See :class:`checker.Checker`; the call that waits raises this too.
    """
    parsed = [_parse(data) for data in entries]
    envelopes = [e for e in parsed if isinstance(e, UnverifiedEnvelope)]
    wait = checker.begin(envelopes) if envelopes else tuple

    def finish() -> Opened:
        checked = iter(wait())
        return [
            e if isinstance(e, PeerError) else _finish(data, e, next(checked))
            for data, e in zip(entries, parsed, strict=True)
        ]

    return finish


def open_entries(bundles: Iterable[Sequence[bytes]], checker: Checker) -> Iterator[Entry]:
    """Yield the entries of some bundles, of up to 256 each, in order.

    Bundles are read ahead, as far as the checker can use them. What goes wrong in reading one is raised only in its
    turn: after every entry before it.

    Raises:
        MalformedError: An entry is not in its one accepted encoding.
        SignatureError: A signature does not hold.
        UnavailableError: See :class:`checker.Checker`.
        CommonwealError: What reading a bundle raises.
    """
    source = iter(bundles)
    begun: deque[Callable[[], Opened]] = deque()
    trouble: CommonwealError | None = None
    more = True
    while more or begun:
        while more and len(begun) <= checker.ahead:
            try:
                bundle = next(source, None)
            except CommonwealError as e:
                bundle, trouble = None, e
            if more := bundle is not None:
                begun.append(begin_opening(bundle or (), checker))
        if begun:
            for opened in begun.popleft()():
                if isinstance(opened, PeerError):
                    raise opened
                yield opened
    if trouble is not None:
        raise trouble


def _parse(data: bytes) -> UnverifiedEnvelope | PeerError:
    try:
        return parse_envelope(data)
    except PeerError as e:
        return e


def _finish(data: bytes, envelope: UnverifiedEnvelope, verified: Verified | None) -> Entry | PeerError:
    try:
        if verified is None:
            # The checker says only that one does not hold; this says which.
            verify_envelope(envelope)
            raise UnavailableError("signature worker: wanted the answer that every signature holds, got the opposite")
        return Entry(
            leaf_hash(data).hex(), verified.signers, parse_statement(verified.payload), digest_of(verified.payload)
        )
    except PeerError as e:
        return e
