"""What institutions and coordinators hand each other before there is a log: a card, and an invite.

Both are small JSON files carried by whatever way the people trust. Neither is secret; anyone who swaps one is caught
when the compact is signed, since that names every key, and the invite's consortium is the digest of that very compact.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import StringConstraints, ValidationError, model_validator

from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.files import read_bounded, write_atomic
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.base.settings import describe
from commonweal_protocols.statements.compact import Coordinator, Member, Witness
from commonweal_protocols.statements.values import Digest, Name, PublicKey

_MAX_FILE_BYTES = 64 * 1024
Address = Annotated[str, StringConstraints(pattern=r"^[^\s/]{1,255}:[0-9]{1,5}$")]


class _File(Closed):
    WHAT: ClassVar[str]
    """What it is, for an error."""

    def to_bytes(self) -> bytes:
        """Return the file's bytes."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    def save(self, path: Path) -> None:
        """Write the file.

        Raises:
            StorageError: It cannot be written.
        """
        write_atomic(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            ConfigError: No such file, or not of this form.
        """
        data = read_bounded(path, _MAX_FILE_BYTES, cls.WHAT, error=ConfigError)
        try:
            return cls.model_validate_json(data)
        except ValidationError as e:
            raise ConfigError(f"{path}: wanted {cls.WHAT}, got another file: {describe(e)}") from e


class Card(_File):
    """An institution's card: its name and its public key, for anyone who drafts a compact."""

    WHAT = "an institution's card"

    institution: Name
    key: PublicKey
    witness: Witness | None = None
    """The witness that its node offers to be."""
    consortium: Digest | None = None
    """Where it is a consortium: that one. Anyone who has the key speaks for it, and gives its releases alone."""

    def member(self) -> Member:
        """Return it as a compact has it."""
        return Member(institution=self.institution, key=self.key, consortium=self.consortium)


class _Reached(_File):
    """Where a coordinator is reached, and the authority behind its TLS certificate."""

    exchange: Address
    """gRPC: submissions and blobs."""
    records: Annotated[str, StringConstraints(pattern=r"^https://[^\s]{1,255}$")]
    """The public records."""

    @model_validator(mode="before")
    @classmethod
    def _without_fleet(cls, value: object) -> object:
        """Pass over the third address that invites of earlier versions have: homes with one are to start."""
        return {k: v for k, v in value.items() if k != "fleet"} if isinstance(value, dict) else value

    # Without a certificate in it, TLS would trust every authority that this host's system does.
    ca_pem: Annotated[str, StringConstraints(max_length=32_768, pattern=r"^-----BEGIN CERTIFICATE-----\n")]


class CoordinatorCard(_Reached):
    """A coordinator's card: its keys and where it is reached, for a consortium that may want it as a successor."""

    WHAT = "a coordinator's card"

    coordinator: Coordinator

    def invite(self, consortium: Digest, name: Name) -> "Invite":
        """Return the invite to a consortium that it coordinates, or is to coordinate."""
        reached = self.model_dump(exclude={"coordinator"})
        return Invite.model_validate({"consortium": consortium, "name": name, **reached})


class Invite(_Reached):
    """A coordinator's invite: which consortium, and where it is reached."""

    WHAT = "a coordinator's invite"

    consortium: Digest
    name: Name
