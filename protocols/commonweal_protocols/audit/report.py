"""An audit's report: the verdict, and what it rests on, in one encoding. No I/O, no clock."""

from typing import Literal

from commonweal_protocols.audit.vocabulary import describe_manifest, describe_proposal
from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.adoption import ProbeResult
from commonweal_protocols.statements.compact import Fork
from commonweal_protocols.statements.rounds import ForeignRelease
from commonweal_protocols.statements.values import Digest, Name, PublicKey

Check = Literal["recomputed", "digests only", "failed"]


class Finding(Closed):
    """One thing that is wrong, the entry where it shows, and whose key answers for it."""

    index: int | None
    culprit: str
    key: PublicKey
    sentence: str


class ReleaseReport(Closed):
    """A release, and how it stands."""

    index: int
    adapter_sha256: Digest
    inputs: tuple[Name, ...]
    ratified_by: tuple[Name, ...]
    adoptions: dict[Name, str]
    probes: dict[Name, tuple[ProbeResult, ...]]
    """What else than losses those decisions rest on, of those institutions whose charter has such a bar."""
    recalled_by: int | None
    """The entry of the motion that withdrew it."""
    check: Check


class RoundReport(Closed):
    """A round and its outcome."""

    round: int
    cohort: tuple[Name, ...]
    updates: tuple[Name, ...]
    data_leaves: dict[Name, Digest]
    """The entry of the data manifest behind an update, of those updates that name one."""
    membership_auc_micros: dict[Name, int]
    """As those updates state it that do; 500,000 is chance."""
    refusals: dict[Name, str]
    rejections: dict[Name, str]
    incident: str | None
    release: ReleaseReport | None
    masked: tuple[str, ...] = ()
    """Of a release whose updates were masked: what is proved of it, and what nobody can prove."""


class MotionReport(Closed):
    """A motion, and what came of it."""

    index: int
    author: Name
    title: str
    proposal: str
    stage: Literal["open", "opening", "closed"]
    result: Literal["passed", "failed", "tied"] | None
    steps: tuple[str, ...]
    """How it was counted."""
    dissent: dict[Name, str]
    """Who voted no and said why, in their own words."""


class ForeignReport(Closed):
    """Another consortium's release that an entry here names: somebody decided on it, or contributed it."""

    index: int
    institution: Name
    what: Literal["adopt", "blend", "refuse", "contribution"]
    release: ForeignRelease


class EndedKey(Closed):
    """A key that signs no more; of a revoked one, from which entry on what it has said is suspect."""

    key: PublicKey
    owner: Name
    at_index: int
    suspect_from_index: int | None
    reason: str


class Report(Closed):
    """The verdict and what it rests on: a function of the records and of what the auditor was asked, nothing else."""

    format: Literal["urn:commonweal:audit-report:v1"] = "urn:commonweal:audit-report:v1"
    verdict: Literal["pass", "fail"]
    consortium: Digest | None
    name: Name | None
    origin: str | None
    size: int
    root: Digest | None
    entries: dict[str, int]
    compact_version: int | None
    """The one in force."""
    motions: tuple[MotionReport, ...]
    ended_keys: tuple[EndedKey, ...]
    data: dict[Name, str]
    """What each institution has stated last of its rows, in words."""
    foreign: tuple[ForeignReport, ...]
    """Releases of other consortia that entries name; their own logs bear them out (``commonweal audit foreign``)."""
    carried_over: dict[str, int]
    """The logs that this history was in before, each with how many entries it had when another coordinator followed."""
    forked_from: Fork | None
    """Where the consortium's start was taken over from. It is not made from a seed: the audit of that log vouches."""
    rounds: tuple[RoundReport, ...]
    findings: tuple[Finding, ...]

    def to_bytes(self) -> bytes:
        """The report's one encoding (RFC 8785), and a line end."""
        return canonical.encode(self.model_dump(mode="json")) + b"\n"

    def sha256(self) -> Digest:
        """The digest of that encoding: what a verdict names."""
        return digest_of(self.to_bytes())


def report_motions(state: State) -> tuple[MotionReport, ...]:
    """Return every motion, in the order of the log."""
    return tuple(
        MotionReport(
            index=m.index,
            author=m.author,
            title=m.motion.title,
            proposal=describe_proposal(m.motion.proposal),
            stage=m.stage,
            result=m.outcome.result if m.outcome else None,
            steps=m.outcome.steps if m.outcome else (),
            dissent={
                name: casts[-1].reason
                for name, casts in sorted(m.ballots.items())
                if casts[-1].choice == "no" and casts[-1].reason is not None
            },
        )
        for m in state.motions.values()
    )


def report_data(state: State) -> dict[Name, str]:
    """Return what each institution has stated last of its rows, in words."""
    return {name: describe_manifest(logged.manifest) for name, logged in sorted(state.manifests.items())}


def report_foreign(state: State) -> tuple[ForeignReport, ...]:
    """Return every release of another consortium that an entry names, in the order of the log."""
    named = [
        ForeignReport(index=f.index, institution=name, what=f.adoption.decision, release=f.adoption.release)
        for name, decisions in state.foreign.items()
        for f in decisions
    ]
    for r in state.rounds:
        named += [
            ForeignReport(index=r.answered_at[name], institution=name, what="contribution", release=u.update.release)
            for name, u in r.updates.items()
            if u.update.release is not None
        ]
    return tuple(sorted(named, key=lambda f: f.index))


def report_keys(state: State) -> tuple[EndedKey, ...]:
    """Return every key that has ended, in the order in which they did."""
    ended = (
        EndedKey(
            key=key,
            owner=r.owner,
            at_index=r.at_index,
            suspect_from_index=r.suspect_from_index,
            reason=r.reason,
        )
        for key, r in state.retired.items()
    )
    return tuple(sorted(ended, key=lambda e: (e.at_index, e.key)))
