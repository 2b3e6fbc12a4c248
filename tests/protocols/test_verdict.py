"""A verdict: it is the auditor's, it is on these bytes, and it says what the report says."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from commonweal_adapters import recompute
from commonweal_protocols.audit.audit import examine
from commonweal_protocols.audit.report import Report
from commonweal_protocols.audit.verdict import AuditedTree, Verdict, make_verdict, open_verdict, sign_verdict
from commonweal_protocols.base.canonical import digest_of, encode
from commonweal_protocols.base.errors import LogError, MalformedError, PeerError, SignatureError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.cli import run
from commonweal_protocols.statements.envelope import format_envelope, sign, sign_envelope
from tests.kit.federation import ORIGIN, key_of, two_rounds
from tests.kit.shelf import shelf

KEY, OTHER = key_of("auditor"), key_of("another auditor")
AUDITOR = public_hex(KEY)
NOW = datetime(2026, 11, 24, 12, 30, 59, 999_999, tzinfo=UTC)
FEDERATION = two_rounds()
REPORT = examine(shelf(FEDERATION), recompute=recompute).report
DIGESTS_ONLY = examine(shelf(FEDERATION)).report
FAILED = examine(shelf(FEDERATION, [*FEDERATION.entries, b"junk"])).report


def signed(report: Report = REPORT) -> bytes:
    return sign_verdict(report, KEY, NOW)


def test_a_verdict_says_what_the_report_says() -> None:
    verdict = open_verdict(signed(), AUDITOR)
    root = FEDERATION.replica.checkpoint().root.hex()
    assert verdict == Verdict(
        auditor=AUDITOR,
        consortium=FEDERATION.state.consortium,
        tree=AuditedTree(ORIGIN, 26, root),
        report_sha256=digest_of(REPORT.to_bytes()),
        level="COMMONWEAL_RECOMPUTED",
        verified_at=datetime(2026, 11, 24, 12, 30, 59, tzinfo=UTC),
    )
    assert verdict.passed


def test_the_statement_has_the_fields_that_the_specification_requires() -> None:
    # SLSA 1.1, verification_summary: the required fields of the predicate, and the forms of those with one.
    envelope = json.loads(signed())
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/verification_summary/v1"
    predicate = statement["predicate"]
    required = {"verifier", "timeVerified", "resourceUri", "policy", "verificationResult", "verifiedLevels"}
    assert set(predicate) == required
    assert predicate["verifier"]["id"].startswith("urn:")
    assert predicate["policy"]["uri"].startswith("urn:")
    assert datetime.fromisoformat(predicate["timeVerified"]) == NOW.replace(microsecond=0)
    assert predicate["verificationResult"] in ("PASSED", "FAILED")
    assert not any(level.startswith("SLSA_") for level in predicate["verifiedLevels"])
    assert all(s["digest"]["sha256"] for s in statement["subject"])


LEVELS = [(REPORT, "COMMONWEAL_RECOMPUTED"), (DIGESTS_ONLY, "COMMONWEAL_DIGESTS_ONLY"), (FAILED, "FAILED")]


@pytest.mark.parametrize(("report", "level"), LEVELS, ids=[level for _, level in LEVELS])
def test_the_level_is_what_was_verified(report: Report, level: str) -> None:
    verdict = open_verdict(signed(report), AUDITOR)
    assert verdict.level == level
    assert verdict.passed == (level != "FAILED")


def test_a_log_whose_checkpoint_does_not_hold_is_judged_without_a_tree() -> None:
    assert open_verdict(signed(FAILED), AUDITOR).tree is None


def test_records_without_a_consortium_get_no_verdict() -> None:
    report = examine(shelf(FEDERATION, [b"junk"])).report
    with pytest.raises(LogError, match="wanted a founded consortium"):
        make_verdict(report, AUDITOR, NOW)


def test_any_time_zone_is_written_in_utc() -> None:
    there = NOW.astimezone(timezone(timedelta(hours=-7)))
    assert sign_verdict(REPORT, KEY, there) == signed()


def test_two_audits_of_one_log_give_verdicts_on_one_digest() -> None:
    theirs = open_verdict(sign_verdict(examine(shelf(two_rounds()), recompute=recompute).report, OTHER, NOW),
                          public_hex(OTHER))  # fmt: skip
    assert theirs.report_sha256 == open_verdict(signed(), AUDITOR).report_sha256


def test_anothers_verdict_is_refused() -> None:
    with pytest.raises(SignatureError, match=f"wanted the signature of {AUDITOR}"):
        open_verdict(sign_verdict(REPORT, OTHER, NOW), AUDITOR)


def test_a_verdict_that_two_have_signed_is_nobodys() -> None:
    payload = base64.b64decode(json.loads(signed())["payload"])
    both = format_envelope(payload, [sign(payload, KEY), sign(payload, OTHER)])
    with pytest.raises(SignatureError, match="wanted the signature of"):
        open_verdict(both, AUDITOR)


def test_no_changed_byte_goes_unnoticed() -> None:
    data = signed()
    for at in range(len(data)):
        with pytest.raises(PeerError):
            open_verdict(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], AUDITOR)


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(statement: dict[str, Any]) -> None:
        at: Any = statement
        *parents, last = path.split(".")
        for name in parents:
            at = at[int(name)] if isinstance(at, list) else at[name]
        if isinstance(at, list):
            at[int(last)] = value
        elif value is None:
            del at[last]
        else:
            at[last] = value

    return apply


ZEROS = "0" * 64
FIELDS: list[tuple[str, object]] = [
    ("_type", "https://in-toto.io/Statement/v0.1"),
    ("predicateType", "https://slsa.dev/verification_summary/v0.2"),
    ("subject", []),
    ("subject.0.name", ""),
    ("subject.0.digest.sha256", "x"),
    ("subject.0.digest.sha512", ZEROS),
    ("subject.0.annotations.size", "26"),
    ("subject.0.annotations.size", -1),
    ("subject.0.annotations.size", True),
    ("subject.0.annotations", None),
    ("subject.1.name", "another report"),
    ("subject.1.digest.sha256", "x"),
    ("predicate.verifier.id", f"urn:commonweal:auditor:{ZEROS}"),
    ("predicate.verifier.id", AUDITOR),
    ("predicate.verifier.version", "1"),
    ("predicate.timeVerified", "2026-11-24T12:30:59+00:00"),
    ("predicate.timeVerified", "2026-11-24T12:30:59.0Z"),
    ("predicate.timeVerified", None),
    ("predicate.resourceUri", f"urn:commonweal:consortium:{ZEROS}"),
    ("predicate.resourceUri", "https://example.org/"),
    ("predicate.policy.uri", "urn:commonweal:compact:v2"),
    ("predicate.policy.digest.sha256", ZEROS),
    ("predicate.verificationResult", "FAILED"),
    ("predicate.verifiedLevels", ["FAILED"]),
    ("predicate.verifiedLevels", ["SLSA_BUILD_LEVEL_3"]),
    ("predicate.verifiedLevels", []),
    ("predicate.slsaVersion", "1.1"),
]


@pytest.mark.parametrize(("path", "value"), FIELDS, ids=[f"{p} {str(v)[:30]}" for p, v in FIELDS])
def test_a_statement_with_one_field_wrong_is_refused_even_from_the_auditor(path: str, value: object) -> None:
    statement = json.loads(base64.b64decode(json.loads(signed())["payload"]))
    change(path, value)(statement)
    with pytest.raises(PeerError, match=r"verdict|sha256|key name"):
        open_verdict(sign_envelope(encode(statement), KEY), AUDITOR)


def test_another_signed_thing_is_no_verdict() -> None:
    with pytest.raises(MalformedError, match="wanted a statement of"):
        open_verdict(FEDERATION.signed("school", FEDERATION.adoption()), public_hex(FEDERATION.keys["school"]))


# -- the commands


def test_an_auditor_makes_a_key_signs_a_verdict_and_others_check_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public, key = FEDERATION.publish(tmp_path), tmp_path / "auditor.pem"
    verdict, report = tmp_path / "verdict.json", tmp_path / "report.json"
    assert run(["audit", "keygen", str(key)]) == 0
    auditor = capsys.readouterr().out.strip()
    assert key.stat().st_mode & 0o777 == 0o600
    audit = ["audit", "run", str(public), "--no-memory", "--report", str(report)]
    assert run([*audit, "--sign", str(key), "--verdict", str(verdict)]) == 0
    check = ["audit", "verify-verdict", str(verdict), "--key"]
    capsys.readouterr()
    assert run([*check, auditor, "--report", str(report)]) == 0
    out = capsys.readouterr().out
    assert "pass (COMMONWEAL_RECOMPUTED)" in out
    assert FEDERATION.state.consortium in out
    assert run([*check, AUDITOR]) == 1
    report.write_bytes(FAILED.to_bytes())
    assert run([*check, auditor, "--report", str(report)]) == 1
    assert "wanted the report" in capsys.readouterr().err
    assert run(["audit", "keygen", str(key)]) == 4


def test_a_verdict_of_failed_records_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "verdict.json"
    path.write_bytes(signed(FAILED))
    assert run(["audit", "verify-verdict", str(path), "--key", AUDITOR]) == 1
    assert "fail (FAILED)" in capsys.readouterr().out
