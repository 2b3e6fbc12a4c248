"""Where everything of a node lies: one folder, and a name for each file in it. Nothing is read or made here."""

from dataclasses import dataclass
from pathlib import Path

from commonweal_protocols.base.canonical import digest_of

DEFAULT_HOME = Path("node-home")


@dataclass(frozen=True, slots=True)
class NodeHome:
    """A node's folder."""

    root: Path

    # -- what the operator and the coordinator have given

    @property
    def settings(self) -> Path:
        """``NodeConfig``."""
        return self.root / "node.toml"

    @property
    def invite(self) -> Path:
        """Which consortium, and where its coordinator is."""
        return self.root / "invite.json"

    @property
    def compact(self) -> Path:
        """The statement of the compact that this institution has signed."""
        return self.root / "compact.json"

    @property
    def probes(self) -> Path:
        """The questions that the charter's clauses name."""
        return self.root / "probes"

    @property
    def default_cache(self) -> Path:
        """Base models, unless the settings name another folder."""
        return self.root / "cache"

    # -- what the institution shows

    @property
    def card(self) -> Path:
        """Its name and its key."""
        return self.root / "card.json"

    @property
    def next_card(self) -> Path:
        """The same with the key that is to follow."""
        return self.root / "card-next.json"

    # -- keys and secrets

    @property
    def key(self) -> Path:
        """The institution's key: what it signs with."""
        return self.root / "keys/institution.pem"

    @property
    def next_key(self) -> Path:
        """The institution's key that is to follow."""
        return self.root / "keys/institution.next.pem"

    @property
    def witness_key(self) -> Path:
        """What this node cosigns with."""
        return self.root / "keys/witness.pem"

    @property
    def charter_secret(self) -> Path:
        """What seals the parts of published charters."""
        return self.root / "keys/charter.secret"

    @property
    def curation_key(self) -> Path:
        """The key of keyed digests in data manifests."""
        return self.root / "keys/curation.key"

    # -- the log, as it was seen from here

    @property
    def memory(self) -> Path:
        """The newest verified checkpoint."""
        return self.root / "memory.json"

    @property
    def records(self) -> Path:
        """A copy of the records."""
        return self.root / "records"

    @property
    def witness_store(self) -> Path:
        """What this node has cosigned."""
        return self.root / "witness/cosigned.sqlite"

    @property
    def run(self) -> Path:
        """What a running program writes anew at each start."""
        return self.root / "run"

    @property
    def ca(self) -> Path:
        """Whom to trust for TLS, from the invite, for those who want a file."""
        return self.run / "ca.pem"

    def ca_of(self, pem: str) -> Path:
        """The same for a command: one file for each authority, as a daemon may run here under another invite."""
        return self.run / f"ca-{digest_of(pem.encode())[:16]}.pem"

    # -- what was said, and what opens it

    @property
    def answers(self) -> Path:
        """The signed answer to each round."""
        return self.root / "answers"

    @property
    def sent(self) -> Path:
        """The deltas that were sent, by their digests."""
        return self.root / "sent"

    @property
    def receipts(self) -> Path:
        """The proofs that entries are in the log."""
        return self.root / "receipts"

    @property
    def ballots(self) -> Path:
        """What opens sealed ballots."""
        return self.root / "ballots"

    @property
    def masking(self) -> Path:
        """What is kept of an open masked round."""
        return self.root / "masking"

    @property
    def outgoing(self) -> Path:
        """The delta that is to be sent, once it can be made only once."""
        return self.root / "outgoing"

    @property
    def residual(self) -> Path:
        """What encodings have left out, by round."""
        return self.root / "residual"

    # -- adapters and data

    @property
    def data(self) -> Path:
        """Sources and curations."""
        return self.root / "data"

    @property
    def own(self) -> Path:
        """This community's own adapters, by round."""
        return self.root / "own"

    @property
    def local(self) -> Path:
        """The adapter that was trained here without a federation."""
        return self.root / "local"

    @property
    def shared(self) -> Path:
        """The release that was last decided on."""
        return self.root / "shared.safetensors"

    @property
    def adopted(self) -> Path:
        """What serves: a link to a PEFT folder in `adopted.versions`."""
        return self.root / "adopted"

    @property
    def daemon_lock(self) -> Path:
        """Held by the daemon: a home has one."""
        return self.root / "daemon.lock"

    @property
    def serving(self) -> Path:
        """What that is."""
        return self.root / "serving.json"

    @property
    def releases(self) -> Path:
        """The releases that a choice may fall on, by SHA-256."""
        return self.root / "releases"

    @property
    def recalled(self) -> Path:
        """What served until its release was recalled."""
        return self.root / "recalled"

    @property
    def consortia(self) -> Path:
        """What is kept of other consortia, by consortium."""
        return self.root / "consortia"

    @property
    def checkpoint(self) -> Path:
        """A training's newest state."""
        return self.root / "training/checkpoint.safetensors"

    @property
    def app(self) -> Path:
        """The working folder of a Flower ClientApp while it trains."""
        return self.root / "training/app"

    @property
    def runs(self) -> Path:
        """The course of each training."""
        return self.root / "runs"
