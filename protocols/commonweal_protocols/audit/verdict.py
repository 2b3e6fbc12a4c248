"""An auditor's signed verdict: a SLSA verification summary over one report, in the envelope that entries have.

Predicate ``https://slsa.dev/verification_summary/v1`` (SLSA 1.1), whose fields say here:

    subject             the log's root with its size, and the audit's report, both by SHA-256
    verifier.id         urn:commonweal:auditor:KEY, which must be the key that signs
    timeVerified        the auditor's own clock, in UTC: the specification wants one, and nothing here relies on it
    resourceUri         urn:commonweal:consortium:DIGEST
    policy              the founding compact, by the digest of its payload
    verificationResult  PASSED or FAILED
    verifiedLevels      one of COMMONWEAL_RECOMPUTED, COMMONWEAL_DIGESTS_ONLY, FAILED

Any consumer of such summaries can read one. This module reads only the encoding that it writes, so a verdict means one
thing. The report itself has no clock in it: two auditors' verdicts can be compared by the report's digest. No I/O.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_protocols.audit.report import Report
from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import Json, parse_digest
from commonweal_protocols.base.errors import LogError, MalformedError, SignatureError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.envelope import parse_envelope, sign_envelope, verify_envelope
from commonweal_protocols.statements.statement import STATEMENT_TYPE
from commonweal_protocols.statements.values import Digest, PublicKey
from commonweal_protocols.tlog.checkpoint import check_origin
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

PREDICATE_TYPE = "https://slsa.dev/verification_summary/v1"
_AUDITOR, _CONSORTIUM = "urn:commonweal:auditor:", "urn:commonweal:consortium:"
_TIME = "%Y-%m-%dT%H:%M:%SZ"

Level = Literal["COMMONWEAL_RECOMPUTED", "COMMONWEAL_DIGESTS_ONLY", "FAILED"]
"""What was verified: every release recomputed (there may be none yet), or only their files' digests."""


@dataclass(frozen=True, slots=True)
class AuditedTree:
    """The log's tree that was audited."""

    origin: str
    size: int
    root: Digest


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an auditor vouches for. ``tree`` is None where the log's checkpoint did not hold."""

    auditor: PublicKey
    consortium: Digest
    tree: AuditedTree | None
    report_sha256: Digest
    level: Level
    verified_at: datetime
    """Aware, UTC, whole seconds."""

    @property
    def passed(self) -> bool:
        """Whether the records hold."""
        return self.level != "FAILED"


def make_verdict(report: Report, auditor: PublicKey, now: datetime) -> Verdict:
    """Return the verdict that a report stands for.

    Args:
        report: The audit's report.
        auditor: The public key of who signs.
        now: Aware; cut to whole seconds.

    Raises:
        LogError: The records name no consortium, so there is nothing to give a verdict on.
    """
    if report.consortium is None:
        raise LogError("verdict: wanted a founded consortium, got records without one")
    level: Level = "COMMONWEAL_RECOMPUTED"
    if report.verdict == "fail":
        level = "FAILED"
    elif any(r.release is not None and r.release.check != "recomputed" for r in report.rounds):
        level = "COMMONWEAL_DIGESTS_ONLY"
    tree = AuditedTree(report.origin, report.size, report.root) if report.origin and report.root else None
    at = now.astimezone(UTC).replace(microsecond=0)
    return Verdict(auditor, report.consortium, tree, report.sha256(), level, at)


def _payload(v: Verdict) -> bytes:
    subject: list[Json] = [{"name": "audit report", "digest": {"sha256": v.report_sha256}}]
    if v.tree is not None:
        size: Json = {"size": v.tree.size}
        subject.insert(0, {"name": v.tree.origin, "digest": {"sha256": v.tree.root}, "annotations": size})
    return canonical.encode(
        {
            "_type": STATEMENT_TYPE,
            "subject": subject,
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "verifier": {"id": _AUDITOR + v.auditor},
                "timeVerified": v.verified_at.strftime(_TIME),
                "resourceUri": _CONSORTIUM + v.consortium,
                "policy": {"uri": Compact.URI, "digest": {"sha256": v.consortium}},
                "verificationResult": "PASSED" if v.passed else "FAILED",
                "verifiedLevels": [v.level],
            },
        }
    )


def sign_verdict(report: Report, key: Ed25519PrivateKey, now: datetime) -> bytes:
    """Return the signed envelope of a report's verdict, canonical.

    Raises:
        LogError: See :func:`make_verdict`.
    """
    return sign_envelope(_payload(make_verdict(report, public_hex(key), now)), key)


def open_verdict(data: bytes, auditor: PublicKey) -> Verdict:
    """Verify a verdict and return it.

    Args:
        data: The envelope's bytes, unverified.
        auditor: The key whose verdict it should be.

    Raises:
        MalformedError: Another form or encoding than :func:`sign_verdict` writes.
        SignatureError: Not signed by this key alone, or it names another auditor.
    """
    verified = verify_envelope(parse_envelope(data))
    if verified.signers != (auditor,):
        raise SignatureError(f"verdict: wanted the signature of {auditor}, got {', '.join(verified.signers)}")
    verdict = _parse(verified.payload)
    if verdict.auditor != auditor:
        raise SignatureError(f"verdict: wanted verifier {auditor} (the signer), got {verdict.auditor}")
    return verdict


def _parse(payload: bytes) -> Verdict:
    match canonical.parse(payload, max_bytes=MAX_ENTRY_BYTES):
        case {
            "subject": [*trees, {"digest": {"sha256": str(report)}}],
            "predicate": {
                "verifier": {"id": str(verifier)},
                "timeVerified": str(time),
                "resourceUri": str(resource),
                "verifiedLevels": ["COMMONWEAL_RECOMPUTED" | "COMMONWEAL_DIGESTS_ONLY" | "FAILED" as level],
            },
        }:
            pass
        case _:
            raise MalformedError(f"verdict: wanted a statement of {PREDICATE_TYPE} as this program writes it")
    tree = None
    match trees:
        case [{"name": str(origin), "digest": {"sha256": str(root)}, "annotations": {"size": int(size)}}]:
            check_origin(origin)
            parse_digest(root)
            # To Python true is the number 1.
            if isinstance(size, bool) or size < 0:
                raise MalformedError(f"verdict: wanted a size of 0 or more, got {size}")
            tree = AuditedTree(origin, size, root)
    auditor, consortium = verifier.removeprefix(_AUDITOR), resource.removeprefix(_CONSORTIUM)
    for digest in (auditor, consortium, report):
        parse_digest(digest)
    try:
        at = datetime.strptime(time, _TIME).replace(tzinfo=UTC)
    except ValueError as e:
        raise MalformedError(f"verdict: wanted a time like 2026-01-31T12:00:00Z, got {time[:40]!r}") from e
    verdict = Verdict(auditor, consortium, tree, report, level, at)
    # All else follows from these, so nothing in a verdict can say something that is not read here.
    if _payload(verdict) != payload:
        raise MalformedError("verdict: its fields do not fit one another, or there are others than this program writes")
    return verdict
