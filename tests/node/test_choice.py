"""The choice of what serves: over rows whose losses are given, so that every expected value follows from them."""

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from commonweal_adapters.files.delta import GridTensors
from commonweal_node.institution.choice import BLENDS, Candidate, CandidateKey, Pool, choose
from commonweal_node.model.row_losses import RowLosses, gap
from commonweal_protocols.statements.adoption import Serving

NOTHING = GridTensors({})
ROWS = 24


def pool(releases: int = 0, owns: int = 0, updates: tuple[int, ...] = ()) -> Pool:
    return Pool(
        NOTHING,
        dict.fromkeys(range(1, releases + 1), NOTHING),
        dict.fromkeys(range(1, owns + 1), NOTHING),
        dict.fromkeys(updates, NOTHING),
    )


def losses(nats: NDArray[np.float64] | float) -> RowLosses:
    return RowLosses(np.broadcast_to(np.float64(nats) * 10, ROWS).copy(), np.full(ROWS, 10))


class Measured:
    """Losses by what a candidate is called, like ``release 1``; all others cost 5."""

    def __init__(self, table: Mapping[str, NDArray[np.float64] | float]) -> None:
        self.table = table
        self.asked: list[str] = []

    def __call__(self, c: Candidate) -> RowLosses:
        s = c.key.serving
        name = f"{s.kind} {s.round}" + (f" {c.key.own_round} {c.key.shared_millis}" if s.kind == "blend" else "")
        self.asked.append(name)
        return losses(self.table.get(name, 5.0))


def key(kind: str, number: int) -> CandidateKey:
    weights = {"release": (1000, 0), "own": (0, 1000), "update": (0, 1000), "base": (0, 0)}[kind]
    return CandidateKey(
        serving=Serving.model_validate({"kind": kind, "round": number}), shared_millis=weights[0], own_millis=weights[1]
    )


def test_every_release_every_own_checkpoint_and_every_update_is_tried_and_blends_of_the_best_two() -> None:
    measure = Measured({"release 2": 3.0, "own 1": 4.0})
    found = choose(pool(3, 2, (2, 3)), None, measure)
    assert measure.asked == [
        *("base 0", "release 1", "release 2", "release 3", "own 1", "own 2", "update 2", "update 3"),
        *(f"blend 2 1 {w.shared_millis}" for w in BLENDS),
    ]
    assert found.serves.key == key("release", 2)
    assert len(found.losses) == len(measure.asked)


@pytest.mark.parametrize("best", ["base 0", "release 1", "own 2", "update 3", "blend 1 1 700"])
def test_the_least_loss_serves_whatever_it_is(best: str) -> None:
    serves = choose(pool(3, 2, (2, 3)), None, Measured({best: 1.0})).serves.key
    kind, number = best.split()[:2]
    assert (serves.serving.kind, serves.serving.round) == (kind, int(number))


def test_of_equals_the_base_serves() -> None:
    assert choose(pool(2, 2), None, Measured({})).serves.key == key("base", 0)


def test_what_serves_stays_unless_another_is_better_beyond_what_the_rows_explain() -> None:
    rng = np.random.default_rng(1)
    noisy = 4.0 + rng.normal(0, 1, ROWS)
    noisy += 3.98 - noisy.mean()
    close: dict[str, NDArray[np.float64] | float] = {"release 1": 4.0, "release 2": noisy}
    assert choose(pool(2), key("release", 1), Measured(close)).serves.key == key("release", 1), "cannot tell"
    assert choose(pool(2), None, Measured(close)).serves.key == key("release", 2), "with nothing to lose, the best"
    steady: dict[str, NDArray[np.float64] | float] = {"release 1": 4.0, "release 2": 3.98}
    assert choose(pool(2), key("release", 1), Measured(steady)).serves.key == key("release", 2), "on every row"


def test_a_blend_that_serves_is_found_again_though_its_parts_are_the_best_no_more() -> None:
    serving = CandidateKey(serving=Serving(kind="blend", round=1), own_round=1, shared_millis=700, own_millis=700)
    found = choose(pool(2, 2), serving, Measured({"release 2": 3.0, "own 2": 3.0, "blend 1 1 700": 2.0}))
    assert found.serves.key == serving
    assert found.current is not None


def test_what_served_and_is_gone_is_no_candidate() -> None:
    found = choose(pool(1), key("release", 7), Measured({}))
    assert found.current is None
    assert found.serves.key == key("base", 0)


def test_a_release_improves_if_it_is_better_than_every_one_before_it() -> None:
    assert choose(pool(1), None, Measured({})).improves is None
    falling: dict[str, NDArray[np.float64] | float] = {"release 1": 4.0, "release 2": 3.0, "release 3": 2.0}
    assert choose(pool(3), None, Measured(falling)).improves is True
    turned: dict[str, NDArray[np.float64] | float] = {"release 1": 4.0, "release 2": 3.0, "release 3": 3.5}
    assert choose(pool(3), None, Measured(turned)).improves is False


def test_the_best_alone_is_the_best_of_all_own_checkpoints() -> None:
    found = choose(pool(1, 3), None, Measured({"release 1": 3.0, "own 1": 4.5, "own 2": 3.5, "own 3": 4.0}))
    assert found.own is not None
    assert found.own.key == key("own", 2)
    assert choose(pool(1), None, Measured({})).own is None


def test_a_paired_interval_is_that_of_the_normal_law_where_rows_are_many() -> None:
    rng = np.random.default_rng(3)
    tokens = np.full(400, 7)
    a, d = rng.normal(20, 5, 400), rng.normal(-1, 2, 400)
    found = gap(RowLosses(a + d, tokens), RowLosses(a, tokens))
    half = 1.96 * d.std(ddof=1) / np.sqrt(400) / 7
    assert found.mean == pytest.approx(d.mean() / 7)
    assert found.low == pytest.approx(d.mean() / 7 - half, abs=0.15 * half)
    assert found.high == pytest.approx(d.mean() / 7 + half, abs=0.15 * half)
    assert found.is_better


def test_long_rows_count_by_their_tokens() -> None:
    a = RowLosses(np.array([10.0, 300.0]), np.array([10, 100]))
    assert a.mean == pytest.approx(310 / 110)


def test_losses_of_other_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same rows"):
        gap(losses(1.0), RowLosses(np.ones(ROWS), np.full(ROWS, 9)))
