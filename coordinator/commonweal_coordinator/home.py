"""Where everything of a coordinator lies: one folder, and a name for each file in it. Nothing is read or made here."""

from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOME = Path("coordinator-home")


@dataclass(frozen=True, slots=True)
class CoordinatorHome:
    """A coordinator's folder."""

    root: Path

    @property
    def settings(self) -> Path:
        """``CoordinatorConfig``. It is written last: where it is, a home is whole."""
        return self.root / "coordinator.toml"

    @property
    def key(self) -> Path:
        """The coordinator's key: what it signs entries with."""
        return self.root / "keys/coordinator.pem"

    @property
    def log_key(self) -> Path:
        """What checkpoints are signed with."""
        return self.root / "keys/log.pem"

    @property
    def ml_dsa_key(self) -> Path:
        """The log's second key, after quantum computers."""
        return self.root / "keys/log-ml-dsa.pem"

    @property
    def tls(self) -> Path:
        """The authority and the server's certificate."""
        return self.root / "tls"

    @property
    def card(self) -> Path:
        """For a consortium that may want this coordinator."""
        return self.root / "coordinator-card.json"

    @property
    def invite(self) -> Path:
        """For the members."""
        return self.root / "invite.json"

    @property
    def lock(self) -> Path:
        """The log's lock database: its one source of truth."""
        return self.root / "lock.db"

    @property
    def public(self) -> Path:
        """What everybody may read: the log, unless a bucket has it, and the blobs."""
        return self.root / "public"

    @property
    def mirror(self) -> Path:
        """The records of the log before this one, as a standby has copied them."""
        return self.root / "mirror"

    @property
    def memory(self) -> Path:
        """The newest checkpoint that a standby has verified."""
        return self.root / "memory.json"

    @property
    def founding(self) -> Path:
        """The draft that founds the consortium, and its signatures."""
        return self.root / "founding"

    @property
    def amendment(self) -> Path:
        """The draft of the compact's next version, and its signatures."""
        return self.root / "amendment"

    @property
    def succession(self) -> Path:
        """The draft by which this coordinator follows another, and its signatures."""
        return self.root / "succession"
