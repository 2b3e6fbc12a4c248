"""An author whose place in its chain a test chooses, right or wrong."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_protocols.statements.envelope import sign_envelope
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.statement import Header, Statement
from commonweal_protocols.statements.values import Digest, Seen


@dataclass(frozen=True)
class Author:
    """A key, and the consortium in which it speaks."""

    key: Ed25519PrivateKey
    consortium: Digest

    def sign(self, predicate: Predicate, *, seq: int, prev: Digest | None, seen: tuple[Seen, ...]) -> bytes:
        """Return the signed envelope of ``predicate`` at place ``seq`` of this author's chain."""
        header = Header(consortium=self.consortium, seq=seq, prev=prev, seen=seen)
        return sign_envelope(Statement(header, predicate).payload(), self.key)
