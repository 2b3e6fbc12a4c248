"""A round's length: steps, or passes over each member's own rows; and entries of earlier forms keep their bytes."""

import pytest

from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.statements.adoption import Adoption, HeldoutLoss, Serving
from commonweal_protocols.statements.compact import Recipe
from commonweal_protocols.statements.members import Identity
from tests.kit.federation import Federation

ONE_PASS = Recipe(steps=40, passes_millis=1000, batch_size=8, learning_rate_micros=2000, max_tokens=160)


@pytest.mark.parametrize(
    ("rows", "passes", "steps"),
    [
        (80, 1000, 10),
        (81, 1000, 11),  # the last step takes what is left
        (80, 500, 5),
        (320, 1000, 40),
        (321, 1000, 40),  # never more than the compact's bound
        (8, 1000, 5),  # never fewer than five
        (1, 1, 5),
    ],
)
def test_a_member_takes_as_many_steps_as_its_passes_are(rows: int, passes: int, steps: int) -> None:
    assert ONE_PASS.model_copy(update={"passes_millis": passes}).steps_for(rows) == steps


def test_the_bound_on_steps_is_kept_also_below_five() -> None:
    assert ONE_PASS.model_copy(update={"steps": 3}).steps_for(80) == 3


def test_without_passes_every_member_takes_all_steps() -> None:
    assert ONE_PASS.model_copy(update={"passes_millis": None}).steps_for(8) == 40


def announced(**terms: object) -> Federation:
    base = Federation()
    f = Federation(terms={"recipe": base.compact.recipe.model_dump() | terms})
    f.announce()
    return f


def opened(f: Federation, passes: int | None) -> None:
    r = f.next_round()
    f.say("hub", r.model_copy(update={"recipe": r.recipe.model_copy(update={"passes_millis": passes})}))


def test_a_round_takes_no_more_passes_than_the_compact_says_and_states_them_where_that_does() -> None:
    opened(announced(passes_millis=1000), 1000)
    opened(announced(passes_millis=1000), 500)
    opened(announced(), 2000)
    for passes in (1001, None):
        with pytest.raises(RuleError, match=r"recipe\.passes_millis at most 1000, got"):
            opened(announced(passes_millis=1000), passes)


def test_a_field_that_is_left_out_leaves_no_trace_so_entries_of_earlier_forms_keep_their_bytes() -> None:
    assert ONE_PASS.model_copy(update={"passes_millis": None}).to_canonical() == (
        b'{"batch_size":8,"learning_rate_micros":2000,"max_tokens":160,"steps":40}'
    )
    assert Identity(institution="clinic").to_canonical() == b'{"institution":"clinic"}'
    losses = HeldoutLoss(base_micronats=4, local_micronats=3, shared_micronats=2, blend_micronats=2)
    adoption = Adoption(
        round=1,
        release_leaf="a" * 64,
        decision="adopt",
        shared_millis=1000,
        own_millis=0,
        heldout=losses,
        reason="best",
    )
    assert b"serves" not in adoption.to_canonical()
    assert b"improves" not in adoption.to_canonical()
    said = adoption.model_copy(update={"serves": Serving(kind="release", round=1), "improves": False})
    assert b'"improves":false' in said.to_canonical()
    assert b'"serves":{"kind":"release","round":1}' in said.to_canonical()
