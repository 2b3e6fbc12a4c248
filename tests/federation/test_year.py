"""A year of a consortium, and what an auditor who sees only the logs can tell of it, with a proof for every claim."""

import contextlib
import io
import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_adapters import recompute
from commonweal_protocols.audit.audit import audit
from commonweal_protocols.audit.story import Claim, tell
from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.cli import run
from commonweal_protocols.fold.fold import fold
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.source import DirectorySource
from commonweal_protocols.statements.statement import Entry, open_entry
from commonweal_protocols.statements.witness_quorum import policy_of
from commonweal_protocols.tlog.merkle import leaf_hash
from commonweal_protocols.tlog.policy import Policy
from commonweal_protocols.tlog.proof import open_cosigned_proof
from tests.kit.federation import Federation, key_of
from tests.kit.year import DISSENT, a_year

NOW = 10**9


@cache
def entries() -> tuple[Entry, ...]:
    return tuple(open_entry(data) for data in a_year().federation.entries)


@cache
def history() -> tuple[tuple[Entry, State], ...]:
    told: list[tuple[Entry, State]] = []
    state: State | None = None
    for entry in entries():
        state = fold(state, entry)
        told.append((entry, state))
    return tuple(told)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The records of the consortium and of its fork, as they are served."""
    year = a_year()
    assert year.fork is not None
    published = []
    for f in (year.federation, year.fork):
        public = f.publish(tmp_path_factory.mktemp("records"))
        (public / "checkpoint").write_text(f.cosigned(NOW))
        published.append(public)
    return published[0], published[1]


@pytest.fixture(scope="module")
def told(logs: tuple[Path, Path]) -> list[dict[str, Any]]:
    """What the program prints of the two logs."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run(["audit", "story", "--json", *map(str, logs)]) == 0
    logs_told: list[dict[str, Any]] = json.loads(out.getvalue())["logs"]
    return logs_told


def claims(log: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = log["claims"]
    return found


WHAT: list[tuple[str, str]] = [
    ("founding", r"7 institutions found the consortium three: bakery, .*, school\. hub coordinates"),
    ("admission", r"theatre is admitted, by the motion “Admit the theatre”"),
    ("amendment", r"Version 3 of the compact is in force, by the motion “Weights by examples”.*equal -> examples"),
    ("motion", r"coop moves “No religious texts”, to resolve “Religious texts are left out"),
    ("dissent", rf"farm votes on “No religious texts”: no, saying: {DISSENT}"),
    ("outcome", r"“No religious texts” is carried \(its time has come, .*no: 2 \(farm, theatre\)"),
    ("refusal", r"farm declines round \d+: not without our texts"),
    ("outcome", r"“The yearly meeting” is carried: farm \(all have voted\).*farm: 5; school: 3"),
    ("incident", r"hub closes round \d+ without a release: upkeep\. Contributed had: bakery, .*, theatre"),
    ("succession", r"second-hub takes the place of hub .* log\.test/three ends with \d+ entries; all of them are carr"),
    ("exit", r"museum leaves: the building is closed\. 7 members are left"),
    ("recall", r"The release of round 19 is withdrawn\. It is to be computed again without that"),
    (
        "release",
        r"The adapter of round 19 is published again, made of what bakery, clinic, farm, library, school, theatre",
    ),
    ("ratified", r"The release of round 20 is valid"),
]


def test_the_story_tells_what_happened_in_its_order(told: list[dict[str, Any]]) -> None:
    consortium = iter(claims(told[0]))
    for kind, wanted in WHAT:
        assert any(c["kind"] == kind and re.search(wanted, c["sentence"]) for c in consortium), (kind, wanted)


def test_the_fork_says_where_it_comes_from(told: list[dict[str, Any]]) -> None:
    consortium, fork = told
    (claim,) = [c for c in claims(fork) if c["kind"] == "fork"]
    found = re.search(r"the first (\d+) entries of the log (\S+), .*the entry ([0-9a-f]+)…", claim["sentence"])
    assert found is not None
    assert found[2] == consortium["origin"]
    assert any(c["leaf"].startswith(found[3]) and c["kind"] == "release" for c in claims(consortium))


def test_every_claim_carries_its_proof(told: list[dict[str, Any]]) -> None:
    year = a_year()
    assert year.fork is not None
    policies: list[Policy] = [policy_of(f.state.compact) for f in (year.federation, year.fork)]
    for log, policy in zip(told, policies, strict=True):
        for c in claims(log):
            entry = c["entry"].encode()
            index, cosigned = open_cosigned_proof(c["proof"].encode(), entry, policy)
            assert (index, leaf_hash(entry).hex(), cosigned.checkpoint.size) == (c["index"], c["leaf"], log["size"])


def test_every_entry_is_told_of(told: list[dict[str, Any]]) -> None:
    for log in told:
        assert {c["index"] for c in claims(log)} == set(range(log["size"]))


def test_both_logs_pass_an_audit_that_computes_every_release_again(logs: tuple[Path, Path]) -> None:
    for path in logs:
        report = audit(DirectorySource(path), recompute=recompute)
        assert (report.verdict, report.findings) == ("pass", ())


def test_people_read_what_is_no_routine_and_a_page_has_the_proofs(
    logs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "story.html"
    assert run(["audit", "story", f"{logs[0]}", f"--html={page}"]) == 0
    printed = capsys.readouterr().out
    assert "museum leaves" in printed
    assert "contributes to round" not in printed
    assert run(["audit", "story", f"{logs[0]}", "--all"]) == 0
    assert "contributes to round" in capsys.readouterr().out
    assert page.read_text().count("c2sp.org/tlog-proof@v1") > 50


def test_a_log_that_breaks_its_compact_is_not_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    f = Federation()
    stranger = Federation(terms={"consortium": "four"})
    stranger.announce()
    public = f.publish(tmp_path, [*f.entries, stranger.entries[1]])
    assert run(["audit", "story", f"{public}"]) == 1
    assert "wanted consortium" in capsys.readouterr().err


def test_a_checkpoint_of_another_log_lets_nothing_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    f = Federation()
    public = f.publish(tmp_path)
    f.log_key = key_of("stranger")
    (public / "checkpoint").write_bytes(f.note())
    assert run(["audit", "story", f"{public}"]) == 1
    assert "wanted a signature of log.test/three" in capsys.readouterr().err


# -- the fold over a whole year


def test_two_replays_of_a_year_stand_in_the_same_state() -> None:
    again = Replica()
    for data in a_year().federation.entries:
        again.add(data)
    assert again.state == a_year().federation.state == history()[-1][1]


def _folded(state: State | None, some: tuple[Entry, ...]) -> State:
    for entry in some:
        state = fold(state, entry)
    assert state is not None
    return state


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_entries_in_another_order_are_refused_or_end_in_the_same_facts(data: st.DataObject) -> None:
    i = data.draw(st.integers(1, len(entries()) - 2))
    j = data.draw(st.integers(i + 1, min(len(entries()) - 1, i + 12)))
    some = list(entries()[i : j + 1])
    some[0], some[-1] = some[-1], some[0]
    before, after = history()[i - 1][1], history()[j][1]
    try:
        swapped = _folded(before, tuple(some))
    except RuleError:
        return
    assert facts(swapped) == facts(after)


def facts(state: State) -> object:
    """A state without the indices that ballots, answers and ratifications happen to have."""
    rounds = []
    for r in state.rounds:
        logged = r.release
        release = logged and (logged.leaf, set(logged.ratified_by), dict(logged.adoptions), logged.recalled_by)
        rounds.append((r.leaf, dict(r.updates), dict(r.refusals), dict(r.rejected), r.incident, release))
    motions = {
        leaf: (
            m.motion, m.stage, m.outcome, set(m.sealed),
            {n: tuple(c.choice for c in casts) for n, casts in m.ballots.items()},
        )
        for leaf, m in state.motions.items()
    }  # fmt: skip
    return (
        state.compact,
        dict(state.chains),
        dict(state.identities),
        set(state.retired),
        rounds,
        motions,
        state.origins,
    )


def test_an_author_s_own_entries_never_change_their_order() -> None:
    rng = random.Random(7)
    chosen = 0
    while chosen < 60:
        i = rng.randrange(1, len(entries()) - 1)
        one = entries()[i]
        j = next((k for k in range(i + 1, len(entries())) if entries()[k].signers == one.signers), None)
        if j is None or one.statement.header is None or entries()[j].statement.header is None:
            continue
        chosen += 1
        with pytest.raises(RuleError):
            fold(history()[i - 1][1], entries()[j])


def test_what_is_told_of_the_first_part_of_a_log_stays_told() -> None:
    def claims_of(n: int) -> tuple[Claim, ...]:
        return tuple(tell(history()[:n]))

    whole = claims_of(len(history()))
    for n in (1, 100, 300):
        part = claims_of(n)
        assert whole[: len(part)] == part
