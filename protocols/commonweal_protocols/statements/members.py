"""What a member signs about itself: its identity, and a new key in the place of its own."""

import hashlib
from typing import Annotated

from pydantic import Field, StringConstraints

from commonweal_protocols.base.schema import is_absent
from commonweal_protocols.statements.fact import Fact
from commonweal_protocols.statements.values import Name, PublicKey, Reason, Subject


class Identity(Fact):
    """An institution announces itself: its node runs, and follows the log."""

    URI = "urn:commonweal:identity:v1"
    TITLE = "an institution announces itself"
    AUTHOR = "a member"
    institution: Name
    transport_key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/=]{40,400}$")] | None = Field(
        default=None, exclude_if=is_absent
    )
    """Of logs in which rounds went over a connection with a key of its own; nothing reads it."""

    def subject(self) -> Subject:
        """The transport key as it is written, or else the institution's name."""
        what = self.institution if self.transport_key is None else self.transport_key
        return Subject(name=self.institution, sha256=hashlib.sha256(what.encode()).hexdigest())


class Rotation(Fact):
    """A member or the coordinator puts a new key in the place of its own. Signed by both keys, the old and the new.

    It stands in the author's chain like any other statement, and the chain continues under the new key.
    """

    URI = "urn:commonweal:rotation:v1"
    TITLE = "a new key takes the place of one"
    AUTHOR = "several keys"
    name: Name
    key: PublicKey
    """The new one."""
    reason: Reason

    def subject(self) -> Subject:
        """The new key, as it is written."""
        return Subject(name=f"key of {self.name}", sha256=hashlib.sha256(self.key.encode()).hexdigest())
