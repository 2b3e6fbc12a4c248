"""Where a consortium stands: the nouns that the fold returns. They change by :func:`fold.fold` alone. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from commonweal_protocols.fold.amendment import Retired, is_expired
from commonweal_protocols.fold.masked_round import Masking
from commonweal_protocols.fold.tally import Outcome
from commonweal_protocols.statements.adoption import Adoption, ForeignAdoption
from commonweal_protocols.statements.compact import Compact, Member, Quorum
from commonweal_protocols.statements.data_manifest import DataManifest
from commonweal_protocols.statements.delta_encoding import Encoding
from commonweal_protocols.statements.governance import Charter, Choice, Motion
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.privacy_budget import PrivacyTerms, spent_micro_rho
from commonweal_protocols.statements.rounds import Rejection, Release, Round, Update
from commonweal_protocols.statements.statement import Header
from commonweal_protocols.statements.values import Blob, Digest, Name, PublicKey, Seen


@dataclass(frozen=True, slots=True)
class Chain:
    """An author's newest entry: the next one is number ``seq`` + 1 and names ``leaf``."""

    seq: int
    leaf: Digest


NO_ENTRY = Chain(-1, "")


@dataclass(frozen=True, slots=True)
class LoggedUpdate:
    """An update in the log."""

    leaf: Digest
    update: Update


@dataclass(frozen=True, slots=True)
class LoggedRelease:
    """A release in the log, who re-computed and ratified it (with the entry's index), and what each member decided."""

    leaf: Digest
    release: Release
    quorum: int
    ratified_by: Mapping[Name, int] = field(default_factory=dict)
    adoptions: Mapping[Name, Adoption] = field(default_factory=dict)
    recalled_by: Digest | None = None
    """The motion that withdrew it."""

    @property
    def is_ratified(self) -> bool:
        """Whether the members' quorum ratifies it, and it was not withdrawn."""
        return len(self.ratified_by) >= self.quorum and self.recalled_by is None


@dataclass(frozen=True, slots=True)
class RoundState:
    """One round, from its opening on. ``rejected`` holds the institutions whose logged update was set aside.

    A round may end with a release and an incident: then the release can no longer be ratified.
    """

    leaf: Digest
    round: Round
    quorum: Quorum
    """The compact's when the round was opened; it holds to the round's end."""
    privacy: PrivacyTerms | None = None
    encoding: Encoding | None = None
    """The same of these two."""
    basis: tuple[Digest, ...] = ()
    """The compact and the members' statements of their rows that were in force when it was opened."""
    state_before: tuple[Blob, ...] = ()
    """What the rule kept when it made the round's start."""
    answered_at: Mapping[Name, int] = field(default_factory=dict)
    """The index of each institution's update or refusal."""
    updates: Mapping[Name, LoggedUpdate] = field(default_factory=dict)
    refusals: Mapping[Name, str] = field(default_factory=dict)
    rejected: Mapping[Name, Rejection] = field(default_factory=dict)
    release: LoggedRelease | None = None
    incident: str | None = None
    masking: Masking | None = None
    """What was said to mask the updates; None where they are not."""

    @property
    def is_open(self) -> bool:
        """Whether updates may still enter."""
        return self.release is None and self.incident is None

    @property
    def is_pending(self) -> bool:
        """Whether its release waits for the members' quorum."""
        release = self.release
        return release is not None and release.recalled_by is None and self.incident is None and not release.is_ratified

    @property
    def wants_release_again(self) -> bool:
        """Whether its release was withdrawn for one update, and enough are left to compute it again without that."""
        release = self.release
        if release is None or release.recalled_by is None or self.incident is not None:
            return False
        left = len(self.accepted())
        return self.quorum.updates <= left < len(release.release.inputs)

    def accepted(self) -> tuple[tuple[Name, LoggedUpdate], ...]:
        """The updates that a release must contain, by institution: all that were logged and not set aside."""
        return tuple((name, u) for name, u in sorted(self.updates.items()) if name not in self.rejected)

    def unanswered(self) -> tuple[Name, ...]:
        """The cohort members that have given neither an update nor a refusal.

        In a masked round: those who take part, have not refused, and have yet to speak in the present stage.
        """
        asked = self.round.cohort if self.masking is None else self.masking.absent(self.updates)
        return tuple(n for n in asked if n not in self.refusals and (self.masking or n not in self.updates))


@dataclass(frozen=True, slots=True)
class LoggedManifest:
    """What a member has stated last of its rows."""

    leaf: Digest
    manifest: DataManifest


@dataclass(frozen=True, slots=True)
class LoggedForeignAdoption:
    """A member's decision on a release of another consortium, and the index of its entry."""

    leaf: Digest
    index: int
    adoption: ForeignAdoption


@dataclass(frozen=True, slots=True)
class LoggedCharter:
    """A version of a member's charter in the log, and the index of its entry."""

    leaf: Digest
    index: int
    charter: Charter


@dataclass(frozen=True, slots=True)
class Cast:
    """A ballot that is open to all, and the index of its entry."""

    index: int
    choice: Choice
    reason: str | None


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed ballot, and the index of its entry."""

    index: int
    commitment: Digest


@dataclass(frozen=True, slots=True)
class MotionState:
    """A motion, from its entry on. ``ballots`` and ``sealed`` hold all that a voter has cast, the newest last."""

    index: int
    author: Name
    motion: Motion
    electorate: tuple[Name, ...]
    """Who could vote when it was made."""
    threshold: int
    """How many yes it needs; of a question, how many ballots."""
    stage: Literal["open", "opening", "closed"] = "open"
    ballots: Mapping[Name, tuple[Cast, ...]] = field(default_factory=dict)
    sealed: Mapping[Name, tuple[Sealed, ...]] = field(default_factory=dict)
    cutoff: int | None = None
    """The first index that was late, if the stage before ended by time."""
    outcome: Outcome | None = None

    @property
    def is_open(self) -> bool:
        """Whether it has no outcome yet."""
        return self.stage != "closed"


@dataclass(frozen=True, slots=True)
class State:
    """Where a consortium stands after ``size`` entries."""

    consortium: Digest
    compact: Compact
    """The version in force, with the keys that its members have now."""
    compact_sha256: Digest
    """The digest of the statement that it was: what the next version names."""
    size: int
    chains: Mapping[PublicKey, Chain] = field(default_factory=dict)
    identities: Mapping[Name, Identity] = field(default_factory=dict)
    rounds: tuple[RoundState, ...] = ()
    retired: Mapping[PublicKey, Retired] = field(default_factory=dict)
    motions: Mapping[Digest, MotionState] = field(default_factory=dict)
    """By the leaf hash of their entry, in the order of the log."""
    charters: Mapping[Name, tuple[LoggedCharter, ...]] = field(default_factory=dict)
    """Every version that an institution has published, the newest last."""
    manifests: Mapping[Name, LoggedManifest] = field(default_factory=dict)
    """The newest of each institution."""
    foreign: Mapping[Name, tuple[LoggedForeignAdoption, ...]] = field(default_factory=dict)
    """Every decision on another consortium's release that an institution has made, the newest last."""
    origins: Mapping[str, int] = field(default_factory=dict)
    """The logs that this history was in before, and how many entries it had when it left each."""

    def chain(self, key: PublicKey) -> Chain:
        """The author's newest entry, or :data:`NO_ENTRY`."""
        return self.chains.get(key, NO_ENTRY)

    def next_header(self, key: PublicKey, seen: tuple[Seen, ...]) -> Header:
        """The header of the next statement under a key: at the end of its chain, vouching for what was seen."""
        chain = self.chain(key)
        return Header(consortium=self.consortium, seq=chain.seq + 1, prev=chain.leaf or None, seen=seen)

    def member(self, institution: Name) -> Member | None:
        """The member of a name."""
        return next((m for m in self.compact.members if m.institution == institution), None)

    def institution(self, key: PublicKey) -> Name | None:
        """The member that owns ``key``."""
        return next((m.institution for m in self.compact.members if m.key == key), None)

    def key(self, institution: Name) -> PublicKey | None:
        """The key of a member."""
        member = self.member(institution)
        return member.key if member else None

    def basis(self) -> tuple[Digest, ...]:
        """What rounds are opened on: the compact in force, and what members have stated of their rows."""
        return (self.compact_sha256, *sorted(m.leaf for m in self.manifests.values()))

    def is_burst_over(self) -> bool:
        """Whether the compact's ``stop_after`` holds back the next round: no start was better, nothing has changed."""
        worse = 0
        for r in reversed(self.rounds):
            no = sum(u.update.improves is False for u in r.updates.values())
            if r.basis != self.basis() or r.release is None or 2 * no <= len(r.updates):
                break
            worse += 1
        return self.compact.stop_after is not None and worse >= self.compact.stop_after

    @property
    def open_round(self) -> RoundState | None:
        """The round that takes updates, if there is one."""
        return self.rounds[-1] if self.rounds and self.rounds[-1].is_open else None

    def awaited(self, r: RoundState) -> tuple[Name, ...]:
        """The cohort members from whom an answer may still come: nobody waits for who has left, or whose key expired.

        Anyone who has a key again is awaited again.
        """
        able = self.able()
        return tuple(n for n in r.unanswered() if n in able)

    def able(self) -> frozenset[Name]:
        """The members who may sign the next entry: those whose key has not expired."""
        return frozenset(m.institution for m in self.compact.members if not is_expired(m, self.size))

    def may_ratify(self, release: LoggedRelease) -> tuple[Name, ...]:
        """The members from whom a ratification of a release may still come."""
        return tuple(sorted(self.able() - release.ratified_by.keys()))

    def is_out_of_reach(self, r: RoundState) -> bool:
        """Whether a release waits for a quorum of members that those who are left can no longer make up."""
        release = r.release
        if release is None or not r.is_pending:
            return False
        return len(release.ratified_by) + len(self.may_ratify(release)) < release.quorum

    def ratified(self) -> LoggedRelease | None:
        """The newest ratified release."""
        for r in reversed(self.rounds):
            if r.release and r.release.is_ratified:
                return r.release
        return None

    def next_start(self) -> Blob:
        """The adapter from which the next round must start."""
        release = self.ratified()
        return release.release.adapter if release else self.compact.start

    def kept(self) -> tuple[Blob, ...]:
        """What an outer optimiser has kept with that adapter, for the same rule; another rule begins anew."""
        release = self.ratified()
        return release.release.state_after if release and release.release.rule == self.compact.rule else ()

    def spent_micro_rho(self, institution: Name) -> int:
        """How much of its privacy budget an institution has spent."""
        return spent_micro_rho(institution, ((r.privacy, r.updates) for r in self.rounds))
