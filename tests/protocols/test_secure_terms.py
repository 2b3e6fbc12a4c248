"""Who masks with whom: a relation that goes both ways, and a threshold above what was agreed."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from commonweal_protocols.statements.secure_terms import SecureTerms, neighbourhoods
from tests.kit.secure import names_of


@given(st.integers(1, 401), st.integers(500, 999))
def test_a_threshold_is_the_least_number_above_the_share(holders: int, millis: int) -> None:
    got = SecureTerms(threshold_millis=millis).threshold(holders)
    assert got == math.floor(Fraction(holders * millis, 1000)) + 1
    assert got > holders * millis / 1000 >= got - 1


@given(st.integers(1, 60), st.integers(1, 30), st.binary(max_size=8))
def test_neighbours_are_neighbours_of_each_other_and_as_many_as_agreed(count: int, half: int, seed: bytes) -> None:
    names = names_of(count)
    found = neighbourhoods(names, seed, SecureTerms(neighbours=2 * half))
    assert found.keys() == set(names)
    for name, near in found.items():
        assert list(near) == sorted(set(near) - {name})
        assert len(near) == min(2 * half, count - 1)
        assert all(name in found[other] for other in near)


def test_everybody_is_reached_and_another_seed_is_another_ring() -> None:
    names, terms = names_of(30), SecureTerms(neighbours=2)
    rings = [neighbourhoods(names, seed, terms) for seed in (b"a", b"b")]
    for ring in rings:
        seen, todo = set(), [names[0]]
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += ring[name]
        assert seen == set(names)
    assert rings[0] != rings[1]


@pytest.mark.parametrize(
    "terms", [{"neighbours": 3}, {"neighbours": 0}, {"threshold_millis": 499}, {"threshold_millis": 1000}, {"x": 1}]
)
def test_terms_under_which_nothing_is_hidden_are_no_terms(terms: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        SecureTerms.model_validate(terms)
