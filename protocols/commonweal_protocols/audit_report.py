"""An audit's report: the verdict, and what it rests on, in one spelling. No I/O, no clock."""

from typing import Literal

from commonweal_protocols import canonical
from commonweal_protocols.canonical import digest_of
from commonweal_protocols.closed import Closed
from commonweal_protocols.predicates import Digest, Fork, Name, PublicKey

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
    check: Check


class RoundReport(Closed):
    """A round and its outcome."""

    round: int
    cohort: tuple[Name, ...]
    updates: tuple[Name, ...]
    refusals: dict[Name, str]
    rejections: dict[Name, str]
    incident: str | None
    release: ReleaseReport | None


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
    carried_over: dict[str, int]
    """The logs that this history was in before, each with how many entries it had when another coordinator followed."""
    forked_from: Fork | None
    """Where the consortium's start was taken over from. It is not made from a seed: the audit of that log vouches."""
    rounds: tuple[RoundReport, ...]
    findings: tuple[Finding, ...]

    def to_bytes(self) -> bytes:
        """The report's one spelling (RFC 8785), and a line end."""
        return canonical.encode(self.model_dump(mode="json")) + b"\n"

    def sha256(self) -> Digest:
        """The digest of that spelling: what a verdict names."""
        return digest_of(self.to_bytes())
