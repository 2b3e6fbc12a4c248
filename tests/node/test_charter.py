"""A charter: what its file may say, and what each of its bars declines."""

import re
from pathlib import Path

import pytest

from commonweal_node.charter.charter import NO_CHARTER, Bars, Charter, load_charter
from commonweal_node.probes.probe import load_probes
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.statements.adoption import HeldoutLoss, Measure, ProbeResult
from commonweal_protocols.statements.charter import Clause, ProbeBar
from commonweal_protocols.statements.rounds import Round
from tests.kit.federation import Federation

COMMUNITIES = sorted((Path(__file__).parents[2] / "deploy/demo/communities").glob("*.charter.toml"))
GOOD = """\
community = "Valley"
version = 2
principles = ["ask first"]
data_policy = "by consent"
[bars]
min_cohort = 3
max_steps = 50
max_rise_over_base_millis = 7
"""


def test_a_charter_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "charter.toml"
    path.write_text(GOOD)
    assert load_charter(path) == Charter(
        community="Valley",
        version=2,
        principles=(Clause(id="principle-1", text="ask first"),),
        data_policy="by consent",
        bars=Bars(min_cohort=3, max_steps=50, max_rise_over_base_millis=7),
    )


def test_without_a_charter_the_widest_bars_hold(tmp_path: Path) -> None:
    charter = load_charter(None)
    assert charter == NO_CHARTER
    assert charter.refusal(offered(cohort=1, steps=10**6)) == ""


@pytest.mark.parametrize("path", COMMUNITIES, ids=[p.name for p in COMMUNITIES])
def test_the_demos_charters_are_charters(path: Path) -> None:
    charter = load_charter(path)
    assert charter.dissent, "dissent is stored with the decision"
    assert len(charter.principles) > 1


@pytest.mark.parametrize("path", COMMUNITIES, ids=[p.name for p in COMMUNITIES])
def test_every_probe_that_a_demo_charter_names_has_its_questions_and_a_bar(path: Path) -> None:
    charter = load_charter(path)
    home = path.with_name(path.name.removesuffix(".charter.toml"))
    assert {b.probe for b in charter.bars.probes} == set(charter.probed_by())
    (probe,) = load_probes(home, charter, charter.probed_by())
    assert {p.name for p in (home / "probes").iterdir()} == {f"{probe.name}.jsonl"}
    places = [i.wanted.index(1) for i in probe.items]
    assert 0 < sum(places) < len(places), "the right option does not always stand in one place"


def test_the_demo_has_three_charters_beside_three_communities() -> None:
    rows = {p.name.removesuffix(".jsonl") for p in COMMUNITIES[0].parent.glob("*.jsonl")}
    assert {p.name.removesuffix(".charter.toml") for p in COMMUNITIES} == rows
    assert len(rows) == 3


BAD: list[tuple[str, str, str, str]] = [
    ("an unknown key", "[bars]", "mood = 1\n[bars]", "mood: Extra inputs are not permitted, got '1'"),
    ("a misspelt bar", "min_cohort", "min_kohort", "bars.min_kohort: Extra inputs are not permitted, got '3'"),
    ("below the range", "min_cohort = 3", "min_cohort = 0", "min_cohort: .* greater than or equal to 1, got '0'"),
    ("above the range", "max_steps = 50", "max_steps = 1000001", "max_steps: .* less than or equal to 1000000, got"),
    ("a negative rise", "millis = 7", "millis = -1", "max_rise_over_base_millis: .* or equal to 0, got '-1'"),
    ("text for a number", "max_steps = 50", 'max_steps = "50"', "max_steps: Input should be a valid integer, got '50'"),
    ("a yes for a number", "max_steps = 50", "max_steps = true", "max_steps: .* valid integer, got 'True'"),
    ("a float", "max_steps = 50", "max_steps = 5e1", "max_steps: .* valid integer, got '50.0'"),
    ("no limit", "max_steps = 50", "max_steps = inf", "max_steps: .* valid integer, got 'inf'"),
    ("no principle", '"ask first"', "", "principles: .* at least 1 item .*, got"),
    ("an empty principle", '"ask first"', '""', r"principles.0.text: .* at least 1 character, got ''"),
    ("a missing key", 'data_policy = "by consent"\n', "", "data_policy: Field required$"),
    ("a date for text", '"by consent"', "2026-01-31", "data_policy: Input should be a valid string, got .*2026-01-31"),
    ("a time for a number", "version = 2", "version = 07:32:00", "version: .* valid integer, got .*07:32:00"),
    ("not TOML", "[bars]", "[bars", "wanted TOML, got: .*line 5"),
]


@pytest.mark.parametrize(("why", "old", "new", "message"), BAD, ids=[b[0] for b in BAD])
def test_a_bad_charter_is_refused_by_file_key_and_value(
    tmp_path: Path, why: str, old: str, new: str, message: str
) -> None:
    assert GOOD.count(old) == 1
    path = tmp_path / "charter.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: .*{message}"):
        load_charter(path)


def test_a_missing_charter_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"valley\.toml: wanted a TOML file, got no such file"):
        load_charter(tmp_path / "valley.toml")


# -- the bars


def charter(**bars: int) -> Charter:
    return NO_CHARTER.model_copy(update={"bars": Bars.model_validate(bars)})


def offered(cohort: int, steps: int) -> Round:
    r = Federation().next_round()
    names = tuple(f"member-{i:03}" for i in range(cohort))
    return r.model_copy(update={"cohort": names, "recipe": r.recipe.model_copy(update={"steps": steps})})


ROUNDS: list[tuple[dict[str, int], int, int, str]] = [
    # bars, cohort, steps, reason
    ({}, 1, 10**6, ""),
    ({"min_cohort": 3}, 3, 1, ""),
    ({"min_cohort": 3}, 4, 1, ""),
    ({"min_cohort": 3}, 2, 1, "charter: wanted a cohort of at least 3, got 2"),
    ({"max_steps": 40}, 1, 40, ""),
    ({"max_steps": 40}, 1, 39, ""),
    ({"max_steps": 40}, 1, 41, "charter: wanted at most 40 steps, got 41"),
]


@pytest.mark.parametrize(("bars", "cohort", "steps", "reason"), ROUNDS)
def test_a_bar_declines_a_round_beyond_its_bound_and_lets_it_pass_there(
    bars: dict[str, int], cohort: int, steps: int, reason: str
) -> None:
    assert charter(**bars).refusal(offered(cohort, steps)) == reason


RELEASES: list[tuple[int, int, int, str]] = [
    # bar in thousandths of a nat; the base's and the blend's micronats; the start of the reason
    (0, 2_000_000, 2_000_000, ""),
    (0, 2_000_000, 1, ""),
    (0, 2_000_000, 2_000_001, "charter: wanted the best blend at most 0 thousandths of a nat above the base"),
    (7, 2_000_000, 2_007_000, ""),
    (7, 2_000_000, 2_007_001, "charter: wanted the best blend at most 7 thousandths of a nat above the base"),
]


@pytest.mark.parametrize(("bar", "base", "blend", "reason"), RELEASES)
def test_a_bar_refuses_a_release_beyond_its_bound_and_lets_it_pass_there(
    bar: int, base: int, blend: int, reason: str
) -> None:
    # The other two losses have no say in it.
    loss = HeldoutLoss(base_micronats=base, local_micronats=0, shared_micronats=10**9, blend_micronats=blend)
    said = charter(max_rise_over_base_millis=bar).objection(loss)
    assert bool(said) == bool(reason)
    assert said.startswith(reason)


def test_an_objection_states_by_how_much() -> None:
    loss = HeldoutLoss(base_micronats=1_000_000, local_micronats=0, shared_micronats=0, blend_micronats=1_012_000)
    assert charter(max_rise_over_base_millis=7).objection(loss).endswith("above the base on held-out rows, got 12")


# -- bars on probes

BARS: list[tuple[dict[str, int], Measure, int, int, str, str]] = [
    # bar, measure, the base's and the blend's millionths, what is said, why
    ({"min_accuracy_millis": 600}, "accuracy", 0, 600_000, "", "at the bar"),
    (
        {"min_accuracy_millis": 600},
        "accuracy",
        0,
        599_999,
        "an accuracy of at least 600 thousandths, got 599.999",
        "a hair",
    ),
    ({"max_distance_millis": 250}, "distance", 0, 250_000, "", "at the bar"),
    ({"max_distance_millis": 250}, "distance", 0, 300_000, "a distance of at most 250 thousandths, got 300", "too far"),
    ({"max_worse_than_base_millis": 50}, "accuracy", 500_000, 450_000, "", "as much as may be lost"),
    (
        {"max_worse_than_base_millis": 50},
        "accuracy",
        500_000,
        449_999,
        "at most 50 thousandths worse than the base's 500, got 449.999",
        "a lower accuracy is worse",
    ),
    ({"max_worse_than_base_millis": 0}, "accuracy", 500_000, 900_000, "", "a higher accuracy is not"),
    (
        {"max_worse_than_base_millis": 0},
        "distance",
        300_000,
        310_000,
        "at most 0 thousandths worse than the base's 300, got 310",
        "a longer distance is worse",
    ),
    ({"max_worse_than_base_millis": 0}, "distance", 300_000, 100_000, "", "a shorter distance is not"),
    (
        {"min_accuracy_millis": 400, "max_worse_than_base_millis": 0},
        "accuracy",
        900_000,
        500_000,
        "at most 0 thousandths worse than the base's 900, got 500",
        "both parts of a bar bind",
    ),
    (
        {"min_accuracy_millis": 0},
        "distance",
        0,
        0,
        "an accuracy, got the distance",
        "a bar on the other measure is never met",
    ),
]


@pytest.mark.parametrize(("bar", "measure", "base", "blend", "said", "why"), BARS, ids=[b[-1] for b in BARS])
def test_a_bar_on_a_probe_refuses_a_blend_beyond_its_bound_and_lets_it_pass_there(
    bar: dict[str, int], measure: Measure, base: int, blend: int, said: str, why: str
) -> None:
    wanted = f"charter: clause ask, kind: probe seed: wanted {said} (40 items)" if said else ""
    assert objection(ProbeBar(probe="seed", **bar), measure, base, blend) == wanted


def objection(bar: ProbeBar, measure: Measure, base: int, blend: int) -> str:
    clauses = tuple(Clause(id=i, text=i, probes=("seed",)) for i in ("ask", "kind"))
    held = Charter(**{**NO_CHARTER.__dict__, "principles": clauses, "bars": Bars(probes=(bar,))})
    loss = HeldoutLoss(base_micronats=2, local_micronats=2, shared_micronats=2, blend_micronats=1)
    found = ProbeResult(
        probe="seed",
        measure=measure,
        items=40,
        base_micros=base,
        # The other two have no say in it.
        local_micros=0 if measure == "accuracy" else 10**6,
        shared_micros=0 if measure == "accuracy" else 10**6,
        blend_micros=blend,
    )
    return held.objection(loss, (found,))


PROBED = """\
community = "Valley"
version = 2
data_policy = "by consent"
[[principles]]
id = "ask"
text = "ask first"
probes = ["seed"]
[[bars.probes]]
probe = "seed"
min_accuracy_millis = 600
"""
BAD_BARS: list[tuple[str, str, str, str]] = [
    (
        "a probe of no clause",
        'probe = "seed"',
        'probe = "sead"',
        "bars.probes: wanted probes that a clause names, got sead",
    ),
    (
        "nothing is barred",
        "min_accuracy_millis = 600\n",
        "",
        "bars.probes.0: seed: wanted min_accuracy_millis, max_dist",
    ),
    ("beyond all", "= 600", "= 1001", "bars.probes.0.min_accuracy_millis: .* less than or equal to 1000, got '1001'"),
    (
        "both measures",
        "= 600",
        "= 600\nmax_distance_millis = 1",
        "bars.probes.0: seed: wanted an accuracy or a distance",
    ),
    (
        "two bars on one",
        "= 600",
        '= 600\n[[bars.probes]]\nprobe = "seed"\nmax_worse_than_base_millis = 0',
        "bars.probes: wanted one bar on each probe, got seed again",
    ),
    ("an unknown key", "= 600", "= 600\nmin_mood = 1", "bars.probes.0.min_mood: Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("why", "old", "new", "message"), BAD_BARS, ids=[b[0] for b in BAD_BARS])
def test_a_bar_on_a_probe_that_cannot_bind_is_refused(
    tmp_path: Path, why: str, old: str, new: str, message: str
) -> None:
    path = tmp_path / "charter.toml"
    path.write_text(PROBED)
    assert load_charter(path).bars.probes == (ProbeBar(probe="seed", min_accuracy_millis=600),)
    assert PROBED.count(old) == 1
    path.write_text(PROBED.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        load_charter(path)
