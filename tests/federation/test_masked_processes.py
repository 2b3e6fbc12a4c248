"""A masked round with real processes: TLS, training, and a kill -9 of one whose masked input is in."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.processes import NAMES, Processes, tiny_terms

pytestmark = pytest.mark.slow


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Processes]:
    """Of three, any two can take the masks off."""
    terms = tiny_terms(tmp_path, 20).replace("updates = 2", "updates = 3")
    terms = terms.replace("round_deadline_seconds = 120", "round_deadline_seconds = 80")
    with Processes(tmp_path, terms=terms + "\n[secure]\nthreshold_millis = 500\n", rounds=1) as p:
        yield p


def test_who_is_killed_after_its_masked_input_stands_in_the_release_and_the_audit_re_computes_it(
    three: Processes,
) -> None:
    three.start_all()

    def first_in() -> str:
        state = three.state()
        return next(iter(state.rounds[0].updates), "") if state and state.rounds else ""

    name = three.wait("a masked input", first_in)
    three.kill(name)
    state = three.wait("a release", lambda: three.released(1))
    three.start(name)
    r = state.rounds[0]
    assert r.masking is not None
    assert r.release is not None
    assert [i.institution for i in r.release.release.inputs] == list(NAMES)
    three.wait("everybody's decision", lambda: three.finished(1))
    out = three.command("audit", "run", three.public, "--no-memory", "--json")
    (report,) = json.loads(out)["rounds"]
    assert report["release"]["check"] == "recomputed"
    assert any("not provable" in line for line in report["masked"])
    left = [path for n in NAMES for path in (three.node(n) / "masking").iterdir()]
    assert left == [], "nobody can take a mask off any more"
