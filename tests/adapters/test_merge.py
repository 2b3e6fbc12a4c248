"""Every rule gives the same bytes to everybody: in any order, on any number of threads, in any chunks, on any BLAS."""

import hashlib
import json
import os
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest

from commonweal_adapters.exact.gram import gram
from commonweal_adapters.files.delta import LIMIT, GridTensors
from commonweal_adapters.files.source import Delta, Held
from commonweal_adapters.rules.merge import Merged, merge
from commonweal_adapters.rules.merge_error import squared_error
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule
from commonweal_protocols.statements.rules import (
    AnyRule,
    CentredClipping,
    Dare,
    FactorMean,
    FedAdam,
    FedAvgM,
    FrozenA,
    GeometricMedian,
    Median,
    MultiKrum,
    Nesterov,
    NormBound,
    ShareA,
    Svd,
    TaskArithmetic,
    Ties,
    TrimmedMean,
)
from tests.kit.deltas import SPEC, a_round, data

EVERY: list[AnyRule] = [
    FactorMean(weights="examples"),
    FrozenA(weights="examples"),
    ShareA(weights="examples"),
    Svd(weights="examples"),
    TaskArithmetic(weights="examples", scale_millis=1300),
    Ties(weights="examples", density_millis=300),
    Dare(weights="examples", drop_millis=600),
    FedAvgM(weights="examples", momentum_millis=900),
    Nesterov(weights="examples"),
    FedAdam(weights="examples", rate_micros=1000),
    TrimmedMean(weights="equal", hostile=2, mix_hostile=1, bound_norm_micros=10**6),
    Median(weights="equal"),
    GeometricMedian(weights="examples", mix_hostile=1),
    MultiKrum(weights="examples", hostile=2, bound_norm_micros=10**6),
    CentredClipping(weights="examples", norm_micros=10**5),
    NormBound(weights="examples", norm_micros=10**6),
]
SIX = [5, 1, 40, 7, 13, 2]
BIGGER = AdapterSpec(
    rank=4,
    alpha=8,
    prefix="p",
    layers=2,
    modules=(LoraModule(name="m", in_features=9000, out_features=700),),
)


def fitted(rule: AnyRule, start: GridTensors, deltas: list[Delta]) -> list[Delta]:
    """Deltas that the rule allows: zeros where it leaves a factor alone."""
    alone = {"frozen-a": ".lora_A.", "share-a": ".lora_B."}.get(rule.name, "no such tensor")
    made = []
    for d in deltas:
        grid = {n: d.rows.read(n, 0, q.size).reshape(q.shape) * (alone not in n) for n, q in start.items()}
        made.append(Delta(d.institution, d.weight, Held(GridTensors(grid))))
    return made


def whole(made: Merged) -> bytes:
    return data(made.adapter) + b"".join(map(data, made.state)) + repr(sorted(made.counted_micros)).encode()


def test_every_rule_is_held_to_it() -> None:
    assert {type(r) for r in EVERY} == set(get_args(AnyRule))


@pytest.mark.parametrize("rule", EVERY, ids=lambda r: str(r.name))
def test_order_threads_and_chunks_change_no_byte(rule: AnyRule, monkeypatch: pytest.MonkeyPatch) -> None:
    start, deltas = a_round(1, 6, weights=SIX)
    deltas = fitted(rule, start, deltas)
    wanted = merge(rule, SPEC, start, deltas, round_seed="r", threads=1)
    order = [3, 0, 5, 1, 4, 2]
    moved = merge(rule, SPEC, start, [deltas[i] for i in order], round_seed="r", threads=4)
    assert whole(moved) == whole(wanted)
    assert [wanted.counted_micros[i] for i in order] == list(moved.counted_micros)
    monkeypatch.setattr("commonweal_adapters.files.source.CHUNK", 7)
    assert whole(merge(rule, SPEC, start, deltas, round_seed="r", threads=3)) == whole(wanted)


def digests() -> dict[str, str]:
    """What this process makes of one round with several chunks and layers; run in other processes too."""
    start, deltas = a_round(2, 6, size=1 << 21, weights=SIX, spec=BIGGER)
    made: dict[str, str] = {}
    for rule in EVERY:
        merged = merge(rule, BIGGER, start, fitted(rule, start, deltas), round_seed="r")
        made[rule.name] = hashlib.sha256(whole(merged)).hexdigest()
        made[f"error of {rule.name}"] = str(squared_error(BIGGER, start, deltas, merged.adapter))
    made["gram"] = str(gram(start, [d.rows for d in deltas]))
    return made


MACHINES: list[tuple[dict[str, str], str]] = [
    ({"OPENBLAS_NUM_THREADS": "1"}, "one thread in BLAS"),
    ({"OPENBLAS_CORETYPE": "Haswell"}, "kernels of 2013, with fused multiply-add"),
    (
        {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"},
        "kernels of 2004, without it, and numpy without wide vectors",
    ),
]


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    return digests()


@pytest.mark.parametrize(("environment", "why"), MACHINES, ids=[w for _, w in MACHINES])
def test_other_machines_make_the_same_bytes(environment: dict[str, str], why: str, here: dict[str, str]) -> None:
    program = "import json; from tests.adapters.test_merge import digests; print(json.dumps(digests()))"
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(made.stdout) == here


def test_plain_float_products_differ_between_those_kernels() -> None:
    # If they did not, the test above would prove nothing.
    program = (
        "import numpy as np, hashlib; r = np.random.default_rng(0); a = r.standard_normal((64, 9000));"
        "print(hashlib.sha256((a @ a.T).tobytes()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | e, capture_output=True, text=True, check=True
        ).stdout
        for e, _ in MACHINES[1:]
    }
    if len(seen) == 1:
        pytest.skip("this numpy's BLAS has one set of kernels")


ALONE: list[AnyRule] = [
    FactorMean(weights="equal"),
    TaskArithmetic(weights="equal", scale_millis=1000),
    Ties(weights="equal", density_millis=1000),
    FedAvgM(weights="equal", momentum_millis=900),
    Median(weights="equal"),
    GeometricMedian(weights="equal"),
    CentredClipping(weights="equal", norm_micros=10**9),
    NormBound(weights="equal", norm_micros=10**9),
]


@pytest.mark.parametrize("rule", ALONE, ids=lambda r: str(r.name))
def test_a_merge_of_one_is_what_it_trained(rule: AnyRule) -> None:
    start, (delta,) = a_round(3, 1, weights=[7])
    made = merge(rule, SPEC, start, [delta])
    for name, q in start.items():
        assert np.array_equal(made.adapter[name], q + delta.rows.read(name, 0, q.size).reshape(q.shape))
    assert made.counted_micros == (10**6,)


@pytest.mark.parametrize("rule", [r for r in ALONE if r.name != "fedavgm"], ids=lambda r: str(r.name))
def test_where_all_trained_the_same_so_does_the_merge(rule: AnyRule) -> None:
    start, (delta,) = a_round(4, 1)
    same = [Delta(f"i{k}", 1, delta.rows) for k in range(4)]
    made = merge(rule, SPEC, start, same)
    for name, q in start.items():
        assert np.array_equal(made.adapter[name], q + delta.rows.read(name, 0, q.size).reshape(q.shape))


@pytest.mark.parametrize("rule", EVERY, ids=lambda r: str(r.name))
def test_a_value_out_of_range_enters_no_merge(rule: AnyRule) -> None:
    start, deltas = a_round(5, 6)
    deltas = fitted(rule, start, deltas)
    # In the factor that every rule reads.
    name = next(n for n in start.values if (".lora_A." in n) == (rule.name == "share-a"))
    grid = GridTensors({n: deltas[0].rows.read(n, 0, q.size).reshape(q.shape).copy() for n, q in start.items()})
    grid[name][0, 0] = LIMIT + 1
    with pytest.raises(BlobError, match=rf"tensor {name}: wanted at most 2\^24 = {LIMIT} grid steps, got {LIMIT + 1}"):
        merge(rule, SPEC, start, [Delta("i000", 1, Held(grid)), *deltas[1:]])


def test_a_merge_of_nobody_and_of_one_name_twice_are_refused() -> None:
    start, deltas = a_round(6, 2)
    rule = FactorMean(weights="equal")
    with pytest.raises(BlobError, match="merge: wanted at least one delta, got none"):
        merge(rule, SPEC, start, [])
    with pytest.raises(BlobError, match="wanted one delta of each institution, got two of one"):
        merge(rule, SPEC, start, [deltas[0], deltas[0]])
    with pytest.raises(BlobError, match="weight: wanted at least 1, got 0"):
        merge(Svd(weights="equal"), SPEC, start, [Delta("a", 0, deltas[0].rows)])
