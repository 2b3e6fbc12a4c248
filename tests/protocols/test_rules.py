"""A compact's rule: closed models, told apart by name, and one encoding of each on both sides of JSON."""

from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from commonweal_protocols.statements import rules
from commonweal_protocols.statements.rules import AnyRule, Rule

ADAPTER: TypeAdapter[AnyRule] = TypeAdapter(Rule)

LEAST: list[dict[str, Any]] = [
    {"name": "factor-mean", "weights": "equal"},
    {"name": "frozen-a", "weights": "examples"},
    {"name": "share-a", "weights": "equal"},
    {"name": "svd", "weights": {"name": "capped", "cap_millis": 300}},
    {"name": "task-arithmetic", "weights": "equal", "scale_millis": 1000},
    {"name": "ties", "weights": "equal", "density_millis": 200},
    {"name": "dare", "weights": "equal", "drop_millis": 900},
    {"name": "fedavgm", "weights": "equal", "momentum_millis": 900},
    {"name": "nesterov", "weights": {"name": "minimax-fair", "eta_millis": 500, "most_millis": 4000}},
    {"name": "fedadam", "weights": "equal", "rate_micros": 1000},
    {"name": "trimmed-mean", "weights": "equal", "hostile": 2},
    {"name": "median", "weights": "equal"},
    {"name": "geometric-median", "weights": "equal"},
    {"name": "multi-krum", "weights": "equal", "hostile": 2, "mix_hostile": 2},
    {"name": "centred-clipping", "weights": "equal", "norm_micros": 10**6},
    {"name": "norm-bound", "weights": "equal", "norm_micros": 10**6},
]


def test_every_rule_is_named_here() -> None:
    assert {type(ADAPTER.validate_python(r)) for r in LEAST} == set(get_args(AnyRule))


@pytest.mark.parametrize("fields", LEAST, ids=[str(r["name"]) for r in LEAST])
def test_a_rule_comes_back_from_json_as_it_went(fields: dict[str, Any]) -> None:
    rule = ADAPTER.validate_python(fields)
    assert ADAPTER.validate_json(rule.model_dump_json()) == rule
    assert rule.name == fields["name"]


@pytest.mark.parametrize("fields", LEAST, ids=[str(r["name"]) for r in LEAST])
def test_every_parameter_is_an_integer_or_a_choice(fields: dict[str, Any]) -> None:
    dump = ADAPTER.validate_python(fields).model_dump()
    weights = dump.pop("weights")
    values = [*dump.values(), *(weights.values() if isinstance(weights, dict) else [weights])]
    assert {type(v) for v in values} <= {int, str, type(None)}


@pytest.mark.parametrize("fields", LEAST, ids=[str(r["name"]) for r in LEAST])
def test_an_unknown_parameter_and_a_number_with_a_point_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        ADAPTER.validate_python(fields | {"vibes": 1})
    for key, value in fields.items():
        if isinstance(value, int):
            with pytest.raises(ValidationError, match="valid integer"):
                ADAPTER.validate_python(fields | {key: float(value)})


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"name": "vibes", "weights": "equal"}, "does not match any of the expected tags", "no such rule"),
    ({"weights": "equal"}, "Unable to extract tag", "no name"),
    ({"name": "median", "weights": "examples"}, "Input should be 'equal'", "a rank by somebody's own word"),
    ({"name": "trimmed-mean", "weights": "equal", "hostile": 0}, "greater than or equal to 1", "nobody hostile"),
    ({"name": "fedavgm", "weights": "equal", "momentum_millis": 1000}, "less than or equal to 999", "never forgets"),
    ({"name": "dare", "weights": "equal", "drop_millis": 1000}, "less than or equal to 990", "everything dropped"),
    ({"name": "svd", "weights": {"name": "capped", "cap_millis": 0}}, "greater than or equal to 1", "a cap of nothing"),
    ({"name": "svd", "weights": {"name": "minimax-fair", "eta_millis": 1, "most_millis": 10**6}}, "100000", "no bound"),
]


@pytest.mark.parametrize(("fields", "message", "why"), BAD, ids=[w for _, _, w in BAD])
def test_a_rule_out_of_bounds_is_refused(fields: dict[str, Any], message: str, why: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ADAPTER.validate_python(fields)


def test_every_rule_states_its_formula_or_its_paper() -> None:
    for model in get_args(AnyRule):
        assert model.__doc__ is not None
        assert "et al." in model.__doc__ or "arXiv" in model.__doc__, model
    assert rules.__doc__ is not None
