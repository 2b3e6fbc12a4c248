"""Rounds never go deaf: whichever daemon is killed, ended or stands still, each round ends and all take part again."""

import json
from pathlib import Path
from random import Random

import pytest

from tests.kit.faults import back_after, draw_faults, survive
from tests.kit.log_watch import LogWatch
from tests.kit.processes import NAMES, Processes, tiny_terms

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROUNDS = 5


def test_five_rounds_with_a_fault_in_each_all_end_and_everybody_takes_part_again(tmp_path: Path) -> None:
    terms = tiny_terms(tmp_path, steps=20).replace("round_deadline_seconds = 120", "round_deadline_seconds = 60")
    faults = draw_faults(Random(5), NAMES, ROUNDS, seconds=(5, 5))
    assert {f.kind for f in faults} == {"killed", "ended", "frozen"}
    assert "coordinator" in [f.name for f in faults], "a seed that leaves nothing out"
    with Processes(tmp_path, terms=terms, rounds=ROUNDS + 1) as p:
        p.start_all()
        watch = LogWatch(p.public)
        outcomes = list(survive(p, watch, faults))
        assert [o.round for o in outcomes] == [1, 2, 3, 4, 5]
        for o in outcomes:
            # A round without a release says who was missing.
            assert len(o.answered) >= 2 or o.reason, o
            assert back_after(watch, o) is not None
        report = json.loads(p.command("audit", "run", p.public, "--no-memory", "--json"))
        assert report["verdict"] == "pass"
        assert not any(map(p.trouble, (*NAMES, "coordinator")))
