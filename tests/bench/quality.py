"""What merges do to communities, on a real model: ``python -m tests.bench.quality --data FOLDER --from CONTRIBUTIONS``.

Merges what ``contributions.py`` trained, by every rule, with everybody honest, at mixed ranks, and with one and two of
seven hostile; evaluates each release on each community's held-out rows, and writes ``results/quality.csv``
(``quality_picture.py`` draws it). Rules that the file has already are left.

Losses are nats for each supervised token, on rows that neither training nor the choice of a blend saw. The hostile are:
a delta turned around and enlarged, noise of ten times the others' norm, answers that belong to other questions, and a
backdoor (a sign in the question that calls for the attacker's answer).
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from commonweal_adapters.exact.privacy import squared_norm
from commonweal_adapters.files.delta import LIMIT, GridTensors, from_grid, read_delta
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_adapters.files.source import Delta, Held
from commonweal_adapters.rules.merge import merge
from commonweal_adapters.rules.stack import stack
from commonweal_node.institution.choice import BASE, BLENDS, OWN, SHARED
from commonweal_node.model.blend import BlendWeights, blend
from commonweal_node.model.heldout import heldout_batches, row_losses
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.packing import Batch
from commonweal_node.model.tensors import AdapterTensors
from commonweal_node.model.tokens import split_heldout, tokenise
from commonweal_node.rows.row import Example, read_examples
from commonweal_protocols.statements.rules import (
    AnyRule,
    CentredClipping,
    Dare,
    FactorMean,
    GeometricMedian,
    Median,
    MultiKrum,
    NormBound,
    Svd,
    TaskArithmetic,
    Ties,
    TrimmedMean,
)
from tests.bench.contributions import (
    COMMUNITIES,
    HOSTILE,
    RANKS,
    RECIPE,
    SEED,
    Variant,
    load_model,
    spec_of,
    start_of,
    triggered,
)

RESULTS = Path(__file__).parent / "results"
ROWS = 48
"""Held-out rows of each community: half to choose a blend with, half to report."""
NORM_MICROS = 12_000_000
"""What bounds and clippings hold a delta to: about the least norm of an honest one here."""
WIDEST = 16
HEADER = f"""\
# python -m tests.bench.contributions --data COMMUNITIES --out C; seed {SEED}; {RECIPE}
# python -m tests.bench.quality --data COMMUNITIES --from C; base: see deploy/demo/compact.toml
# loss: nats for each supervised token, {ROWS // 2} held-out rows a community, one round
scenario,rule,community,measure,value
"""


def honest_rules() -> dict[str, AnyRule]:
    """What is compared where nobody is hostile."""
    return {
        "factor-mean": FactorMean(weights="equal"),
        "factor-mean by examples": FactorMean(weights="examples"),
        "svd": Svd(weights="equal"),
        "task-arithmetic x2": TaskArithmetic(weights="equal", scale_millis=2000),
        "ties": Ties(weights="equal", density_millis=500),
        "dare": Dare(weights="equal", drop_millis=500),
        **robust_rules(1),
    }


def robust_rules(hostile: int) -> dict[str, AnyRule]:
    """What is compared where some may be."""
    return {
        "trimmed-mean": TrimmedMean(weights="equal", hostile=hostile),
        "median": Median(weights="equal"),
        "geometric-median": GeometricMedian(weights="equal"),
        "multi-krum": MultiKrum(weights="equal", hostile=hostile),
        "trimmed-mean, mixed": TrimmedMean(weights="equal", hostile=hostile, mix_hostile=hostile),
        "centred-clipping": CentredClipping(weights="equal", norm_micros=NORM_MICROS),
        "norm-bound": NormBound(weights="equal", norm_micros=NORM_MICROS),
    }


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    scenario: str
    rule: str
    community: str
    measure: str
    value: str


class Bench:
    """The model, the communities' held-out rows, and the contributions."""

    def __init__(self, data: Path, contributions: Path, known: Collection[tuple[str, str]]) -> None:
        self.contributions = contributions
        self.known = known
        self.model: AdaptedModel = load_model()
        self.tune: dict[str, list[Batch]] = {}
        self.report: dict[str, list[Batch]] = {}
        self.signed: dict[str, list[Batch]] = {}
        self.examples: dict[str, int] = {}
        for name in COMMUNITIES:
            self.examples[name] = len(read_examples(data / f"{name}.jsonl", "train"))
            halves = split_heldout(read_examples(data / f"{name}.jsonl", "heldout"), ROWS)
            self.tune[name] = self._batches(halves.tune)
            self.report[name] = self._batches(halves.report)
            self.signed[name] = self._batches(tuple(map(triggered, halves.report)))

    def _batches(self, examples: Sequence[Example]) -> list[Batch]:
        return heldout_batches(tokenise(tuple(examples), self.model.tokenizer, RECIPE.max_tokens).examples)

    def is_new(self, scenario: str, rule: str) -> bool:
        """Whether the table does not have these rows yet."""
        return (scenario, rule) not in self.known

    def delta(self, community: str, kind: str) -> GridTensors:
        """A contribution, at its own rank."""
        if kind == "mixed" and RANKS[community] == 8:
            kind = "honest"
        variant = Variant(community, kind)
        return read_delta((self.contributions / f"{variant.name}.safetensors").read_bytes(), spec_of(variant.rank))

    def deltas(self, kinds: Mapping[str, str]) -> list[Delta]:
        """Rank 8 contributions by institution; sign-flip and noise are made of the honest ones here."""
        honest = {name: self.delta(name, "honest") for name in kinds}
        made = []
        for name, kind in kinds.items():
            grid = honest[name]
            if kind == "sign-flip":
                grid = GridTensors({n: np.clip(-4 * q, -LIMIT, LIMIT).astype(np.int32) for n, q in grid.items()})
            elif kind == "noise":
                grid = noise_like(grid)
            elif kind != "honest":
                grid = self.delta(name, kind)
            made.append(Delta(name, 1, Held(grid)))
        return made

    def loss(self, adapter: AdapterTensors | None, batches: list[Batch]) -> float:
        """Nats for each supervised token."""
        return row_losses(self.model, adapter, batches).mean


def noise_like(grid: GridTensors) -> GridTensors:
    """Gaussian noise of ten times the norm of a delta."""
    rng = np.random.default_rng(SEED)
    elements = sum(q.size for _, q in grid.items())
    sigma = 10 * np.sqrt(squared_norm(grid) / elements)
    return GridTensors(
        {n: np.clip(np.rint(rng.normal(0, sigma, q.shape)), -LIMIT, LIMIT).astype(np.int32) for n, q in grid.items()}
    )


def widened(grid: GridTensors, rank: int) -> GridTensors:
    """A delta of a lesser rank at the widest: it leaves the other rows and columns as they start."""
    wide = {name: np.zeros(shape, np.int32) for name, shape in tensor_shapes(spec_of(WIDEST)).items()}
    for name, q in grid.items():
        if q.shape[0] == rank and wide[name].shape[1] == q.shape[1]:
            wide[name][:rank] = q
        else:
            wide[name][:, :rank] = q
    return GridTensors(wide)


def honest(bench: Bench) -> Iterator[Row]:
    """Everybody is honest: base, own, each rule's release, and each community's blend of it with its own."""
    spec, start, bits = spec_of(8), start_of(8), spec_of(8).grid_bits
    deltas = bench.deltas(dict.fromkeys(COMMUNITIES, "honest"))
    own: dict[str, dict[str, np.ndarray]] = {}
    for d in deltas:
        grid = GridTensors({n: (q + bench.delta(d.institution, "honest")[n]) for n, q in start.items()})
        own[d.institution] = from_grid(grid, bits)
    for rule_name, alone in {"base": {}, "local only": own}.items():
        if bench.is_new("honest", rule_name):
            for name in COMMUNITIES:
                yield Row("honest", rule_name, name, "loss", f"{bench.loss(alone.get(name), bench.report[name]):.4f}")
    wide, stacked = stack(spec, start, deltas)
    # The model's scaling is the spec's; a stack has k times the rank under one alpha, so a k-th of it.
    exact = {
        n: q / np.float32(len(deltas)) if n.endswith("lora_A.weight") else q
        for n, q in from_grid(stacked, bits).items()
    }
    assert wide.rank == 8 * len(deltas)
    for name in COMMUNITIES if bench.is_new("honest", "stack (exact)") else ():
        yield Row("honest", "stack (exact)", name, "loss", f"{bench.loss(exact, bench.report[name]):.4f}")
    for rule_name, rule in honest_rules().items():
        if not bench.is_new("honest", rule_name):
            continue
        weigh = bench.examples if rule.weights == "examples" else dict.fromkeys(COMMUNITIES, 1)
        weighed = [d._replace(weight=weigh[d.institution]) for d in deltas]
        shared = from_grid(merge(rule, spec, start, weighed, round_seed="quality").adapter, bits)
        for name in COMMUNITIES:
            yield Row("honest", rule_name, name, "loss", f"{bench.loss(shared, bench.report[name]):.4f}")

            def mix(w: BlendWeights, shared: AdapterTensors = shared, name: str = name) -> AdapterTensors | None:
                return None if w == BASE else blend(spec, shared, own[name], w)

            tune = _on(bench, bench.tune[name])
            choice = min((BASE, SHARED, OWN, *BLENDS), key=lambda w, mix=mix, tune=tune: tune(mix(w)))  # type: ignore[misc]
            mixed = mix(choice)
            yield Row("honest", rule_name, name, "blend", f"{bench.loss(mixed, bench.report[name]):.4f}")
            yield Row("honest", rule_name, name, "shared:own", f"{choice.shared_millis}:{choice.own_millis}")


def _on(bench: Bench, batches: list[Batch]) -> Callable[[AdapterTensors | None], float]:
    return lambda adapter: bench.loss(adapter, batches)


def mixed_ranks(bench: Bench) -> Iterator[Row]:
    """Institutions train at ranks 4, 8 and 16; all are merged at the widest."""
    spec, start = spec_of(WIDEST), start_of(WIDEST)
    deltas = [Delta(n, 1, Held(widened(bench.delta(n, "mixed"), RANKS[n]))) for n in COMMUNITIES]
    for rule_name in ("factor-mean", "svd"):
        if not bench.is_new("ranks 4/8/16", rule_name):
            continue
        made = merge(honest_rules()[rule_name], spec, start, deltas)
        shared = from_grid(made.adapter, spec.grid_bits)
        for name in COMMUNITIES:
            loss = bench.loss(shared, bench.report[name])
            yield Row("ranks 4/8/16", rule_name, name, "loss", f"{loss:.4f}")


def hostile(bench: Bench, kind: str, count: int) -> Iterator[Row]:
    """One or two of seven are hostile: what the others' communities get, and who counted for less than half."""
    spec, start, bits = spec_of(8), start_of(8), spec_of(8).grid_bits
    attackers = HOSTILE[:count]
    kinds = {name: kind if name in attackers else "honest" for name in COMMUNITIES}
    deltas, scenario = bench.deltas(kinds), f"{kind}, {count} of 7"
    for rule_name, rule in {"factor-mean": FactorMean(weights="equal"), **robust_rules(count)}.items():
        if not bench.is_new(scenario, rule_name):
            continue
        made = merge(rule, spec, start, deltas, round_seed="quality")
        shared = from_grid(made.adapter, bits)
        for name in COMMUNITIES:
            if name not in attackers:
                loss = bench.loss(shared, bench.report[name])
                yield Row(scenario, rule_name, name, "loss", f"{loss:.4f}")
                if kind == "backdoor":
                    loss = bench.loss(shared, bench.signed[name])
                    yield Row(scenario, rule_name, name, "loss of the attacker's answer", f"{loss:.4f}")
        half = 10**6 // (2 * len(COMMUNITIES))
        low = [d.institution for d, c in zip(deltas, made.counted_micros, strict=True) if c < half]
        yield Row(scenario, rule_name, "", "counted for less than half", " ".join(low))


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the communities' rows, NAME.jsonl")
    parser.add_argument("--from", dest="contributions", type=Path, required=True, help="what contributions.py made")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    table, began = RESULTS / "quality.csv", time.monotonic()
    if not table.exists():
        table.write_text(HEADER)
    text = table.read_text()
    if not text.startswith(HEADER):
        raise SystemExit(f"{table}: is of another bench; move it away")
    known = {(row["scenario"], row["rule"]) for row in csv.DictReader(text[text.index("scenario,") :].splitlines())}
    bench = Bench(options.data, options.contributions, known)
    with table.open("a", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        parts = [honest(bench), mixed_ranks(bench)]
        parts += [hostile(bench, k, n) for k in ("sign-flip", "noise", "label-flip", "backdoor") for n in (1, 2)]
        for part in parts:
            for row in part:
                writer.writerow([row.scenario, row.rule, row.community, row.measure, row.value])
                f.flush()
            print(f"{row.scenario}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
