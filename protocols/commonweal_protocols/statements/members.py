"""What a member signs about itself: its identity, and a new key in the place of its own."""

import hashlib
from typing import Annotated, ClassVar

from pydantic import StringConstraints

from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.values import Name, PublicKey, Reason, Subject


class Identity(Closed):
    """An institution announces itself: its node runs, and follows the log."""

    URI: ClassVar[str] = "urn:commonweal:identity:v1"
    institution: Name
    transport_key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/=]{40,400}$")] | None = None
    """Of logs in which rounds went over a connection with a key of its own; nothing reads it."""

    def subject(self) -> Subject:
        """The transport key as it is written, or else the institution's name."""
        what = self.institution if self.transport_key is None else self.transport_key
        return Subject(name=self.institution, sha256=hashlib.sha256(what.encode()).hexdigest())


class Rotation(Closed):
    """A member or the coordinator puts a new key in the place of its own. Signed by both keys, the old and the new.

    It stands in the author's chain like any other statement, and the chain continues under the new key.
    """

    URI: ClassVar[str] = "urn:commonweal:rotation:v1"
    name: Name
    key: PublicKey
    """The new one."""
    reason: Reason

    def subject(self) -> Subject:
        """The new key, as it is written."""
        return Subject(name=f"key of {self.name}", sha256=hashlib.sha256(self.key.encode()).hexdigest())
