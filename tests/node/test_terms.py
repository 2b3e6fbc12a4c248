"""What a member is shown of a compact before it signs: every term that decides what becomes of its delta."""

import pytest

from commonweal_node.commands.compact_text import describe_terms
from commonweal_protocols.statements.compact import Compact, Quorum
from commonweal_protocols.statements.privacy_budget import epsilon
from commonweal_protocols.statements.secure_terms import SecureTerms, neighbourhoods
from tests.kit.federation import Federation, changed
from tests.kit.ring import union


def shown(compact: Compact, term: str) -> str:
    """All that is said of one term, in one line."""
    lines, under = [], ""
    for name, what in describe_terms(compact):
        under = name or under
        lines += [what] * (under == term)
    return "; ".join(lines)


def compact(members: int = 3, **terms: object) -> Compact:
    names = tuple(f"inst-{i:02d}" for i in range(members))
    quorum = Quorum(updates=members, ratifications=members, amendments=members)
    return changed(Federation(names=names, quorum=quorum).compact, terms)


def test_terms_that_hide_nothing_say_so() -> None:
    plain = compact()
    assert shown(plain, "deltas") == "every element, in whole steps of 2^-20"
    assert shown(plain, "privacy") == "none: no delta is clipped, and none has noise"
    assert shown(plain, "masking").startswith("none: everybody can read each delta")


def test_a_rounds_length_its_limits_and_when_rounds_stop_are_told() -> None:
    recipe = {"steps": 40, "batch_size": 8, "learning_rate_micros": 2000, "max_tokens": 160}
    plain = compact(recipe=recipe)
    assert shown(plain, "recipe") == (
        "a round is 40 steps, each of 8 rows; learning rate 0.002, rows of at most 160 tokens"
    )
    assert shown(plain, "limits").startswith(f"{plain.round_deadline_seconds} s for an answer, of at most ")
    assert shown(plain, "quorum") == "3 updates, 3 ratifications; 3 signatures change this compact"
    paced = shown(compact(recipe=recipe | {"passes_millis": 1500}, stop_after=2), "recipe")
    assert paced.startswith("a round is 1.5 passes over your rows, in 5 to 40 steps, each of 8 rows")
    assert paced.endswith("rounds stop after 2 whose start most members find no better than those before")


@pytest.mark.parametrize(
    ("bits", "keep", "words", "loses"),
    [
        (32, 1000, "every element; in whole steps of 2^-20", False),
        (32, 100, "the largest 100 of each 1000 elements, the others as 0; in whole steps of 2^-20", True),
        (8, 1000, "every element; 8 bits each, about 64 sharing one scale, which rounds them", True),
        (4, 250, "the largest 250 of each 1000 elements, the others as 0; 4 bits each", True),
    ],
)
def test_how_deltas_are_spelled_is_told_with_what_is_lost(bits: int, keep: int, words: str, loses: bool) -> None:
    said = shown(compact(encoding={"bits": bits, "keep_millis": keep}), "deltas")
    assert said.startswith(words)
    assert ("what that loses of yours is kept on your host" in said) == loses


def test_clip_noise_and_budget_are_told_in_the_adapters_own_unit_and_in_updates() -> None:
    # C = 2 and σ = 4 in the unit of the elements: rho = 2 C² / σ² = 0.5 an update.
    terms = {"clip_steps": 2 << 20, "sigma_steps": 4 << 20, "budget_micro_rho": 2_400_000}
    said = shown(compact(privacy=terms), "privacy")
    assert "L2 norm of at most 2;" in said
    assert "sigma 4 on each of its elements" in said
    assert "budget: 2.4 of zCDP's rho, of which an update costs 0.5: 4 updates" in said
    assert f"all of them: epsilon {epsilon(2_000_000, 1e-6):.2f} at delta 1e-06" in said
    assert "no round may invite you under these terms" in said
    assert "nobody else can see" in said


def test_a_budget_that_is_too_small_for_one_update_is_named() -> None:
    terms = {"clip_steps": 2 << 20, "sigma_steps": 4 << 20, "budget_micro_rho": 499_999}
    said = shown(compact(privacy=terms), "privacy")
    assert ": 0 updates; not enough for one: no round may invite you under these terms" in said


@pytest.mark.parametrize(("members", "neighbours", "millis"), [(3, 100, 500), (7, 100, 667), (7, 4, 500)])
def test_masking_is_told_with_who_could_take_it_off_and_what_audits_then_cannot_see(
    members: int, neighbours: int, millis: int
) -> None:
    secure = {"neighbours": neighbours, "threshold_millis": millis}
    made = compact(members, secure=secure)
    held_with = neighbourhoods([m.institution for m in made.members], b"", SecureTerms(**secure))
    (holders,) = {len(others) + 1 for others in held_with.values()}
    need = next(n for n in range(holders + 1) if 1000 * n > millis * holders)
    said = shown(made, "masking")
    assert f"but to {need} of the {holders} who hold shares of your secrets" in said
    assert "audits still prove whose deltas are in a release" in said
    assert "audits cannot see whether one was in range, within a norm, or trained at all" in said
    assert "no single update can be set aside, recalled" in said


def test_a_member_that_is_a_consortium_is_named_as_one() -> None:
    of = "ab" * 32
    told = shown(union(of).compact, "members")
    assert "coop, delta, school" in told
    assert f"delta is a consortium, {of}" in told
    assert "is a consortium" not in shown(compact(), "members")
