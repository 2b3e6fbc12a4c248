"""A charter in the log: what of it is published, how the rest is sealed, and which version may follow which. Pure.

A community marks parts as public; those stand in the entry. Of every other part a salted digest does, so that the whole
charter is fixed and little of it told: the number of its parts, and which of them have changed since. A part is opened
to whom the community likes, by handing over its name, its value and its salt (:class:`Opening`).

The salt is an HMAC (RFC 2104, SHA-256) of the part under a secret of the institution's own: nobody can try texts
against a digest without it, what was opened tells nothing of another part, and what stays as it was keeps its digest.
"""

import hmac
from dataclasses import replace
from typing import NamedTuple

from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import Json, digest_of
from commonweal_protocols.base.errors import MalformedError, RuleError
from commonweal_protocols.fold.state import LoggedCharter, State
from commonweal_protocols.statements.charter import CharterRecord
from commonweal_protocols.statements.governance import Charter, Salt
from commonweal_protocols.statements.values import Digest, Name

SECRET_BYTES = 32
MAX_OPENING_BYTES = 1 << 17


class Opening(NamedTuple):
    """What opens one sealed part."""

    part: str
    value: Json
    salt: Salt

    def seal(self) -> Digest:
        """Return the digest that stands for it in the log."""
        said: canonical.Json = {
            "type": "urn:commonweal:sealed-part:v1",
            "part": self.part,
            "value": self.value,
            "salt": self.salt,
        }
        return digest_of(canonical.encode(said))

    def to_bytes(self) -> bytes:
        """Return it as canonical JSON, to hand over."""
        return canonical.encode({**self._asdict()})


def parse_opening(data: bytes) -> Opening:
    """Parse what somebody hands over. Whether it opens anything is for the log to say: look for its seal.

    Raises:
        MalformedError: Not canonical JSON of a part, a value and a salt.
    """
    match canonical.parse(data, max_bytes=MAX_OPENING_BYTES):
        case {"part": str(part), "value": value, "salt": str(salt), **rest} if not rest:
            return Opening(part, value, salt)
    raise MalformedError("opening: wanted a part, a value and a salt")


def open_part(record: CharterRecord, part: str, secret: bytes) -> Opening:
    """Return what opens a part of a charter. ``secret`` is 32 bytes that only the institution has.

    Raises:
        KeyError: The charter has no such part.
    """
    value = record.parts()[part]
    return Opening(part, value, hmac.new(secret, canonical.encode([part, value]), "sha256").hexdigest())


def publish(record: CharterRecord, institution: Name, previous: Digest | None, secret: bytes) -> Charter:
    """Return what an institution publishes of its charter.

    Args:
        record: The charter, whole.
        institution: Whose it is.
        previous: The digest of the version that it published last; None for the first in this log.
        secret: 32 bytes that only the institution has; the same for every version.
    """
    public = set(record.public)
    sealed = (open_part(record, part, secret).seal() for part in record.parts() if part not in public)
    return Charter(
        institution=institution,
        version=record.version,
        previous=previous,
        safety_items=len(record.safety),
        community=record.community if "community" in public else None,
        bars=record.bars if "bars" in public else None,
        objectives=record.objectives if "objectives" in public else None,
        data_policy=record.data_policy if "data-policy" in public else None,
        dissent=record.dissent if "dissent" in public else None,
        principles=tuple(c for c in record.principles if c.id in public),
        safety=tuple(c for c in record.safety if c.id in public),
        addenda=tuple(c for c in record.addenda if c.id in public),
        sealed=tuple(sorted(sealed)),
    )


def on_charter(state: State, leaf: Digest, name: Name, charter: Charter) -> State:
    """A member publishes a version of its charter.

    Raises:
        RuleError: It speaks for another, or does not follow the version that it published last.
    """
    if charter.institution != name:
        raise RuleError(f"charter: wanted institution {name} (the author), got {charter.institution}")
    before = state.charters.get(name, ())
    wanted = before[-1].charter.digest() if before else None
    if charter.previous != wanted:
        raise RuleError(f"charter: wanted {wanted} as the version of {name} before, got {charter.previous}")
    if before and charter.version <= before[-1].charter.version:
        raise RuleError(f"charter: wanted a version above {before[-1].charter.version}, got {charter.version}")
    logged = LoggedCharter(leaf, state.size, charter)
    return replace(state, charters={**state.charters, name: (*before, logged)})
