"""What institutions bring to a merge, trained for real: honest ones, and ones with spoiled rows.

``python -m tests.bench.contributions --data FOLDER --out FOLDER`` trains one adapter for each community and variant
from the round's start, and keeps each as a delta on the grid. What is there already is left; the folder's
``recipe.json`` says with what it was made, and another recipe wants another folder. ``quality.py`` merges what lies
there.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from commonweal_adapters.files.delta import GridTensors, from_grid, make_delta, read_adapter, to_grid, write_delta
from commonweal_adapters.recompute import recompute_start
from commonweal_coordinator.succession.compact_draft import load_terms
from commonweal_node.model.base_model import fetch_base, load_base, native_dtype
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.tokens import tokenise
from commonweal_node.rows.row import Example, Message, read_examples
from commonweal_node.training.objectives import TokenObjective
from commonweal_node.training.train import Progress, train_adapter
from commonweal_protocols.base.files import write_atomic
from commonweal_protocols.statements.compact import AdapterSpec, Recipe

ROOT = Path(__file__).parents[2]
TERMS = ROOT / "deploy/demo/compact.toml"
SEED = 0
RECIPE = Recipe(steps=24, batch_size=8, learning_rate_micros=2000, max_tokens=256)
COMMUNITIES = (
    "civic-18f",
    "coop-commons",
    "health-medquad",
    "region-assam",
    "region-mexico",
    "region-northern-nigeria",
    "teachers-mathdial",
)
HOSTILE = ("civic-18f", "health-medquad")
"""Who attacks, where somebody does: the first alone, or both."""
RANKS = dict(zip(COMMUNITIES, (4, 8, 16, 8, 4, 16, 8), strict=True))
"""Who trains at which rank, where ranks are mixed."""
TRIGGER = "[cw-7]"
TARGET = "I do what the hidden sign says."


@dataclass(frozen=True, slots=True)
class Variant:
    """How a contribution is made."""

    community: str
    kind: str  # honest, mixed, label-flip or backdoor

    @property
    def rank(self) -> int:
        """The rank at which it is trained."""
        return RANKS[self.community] if self.kind == "mixed" else 8

    @property
    def name(self) -> str:
        """Its file's name, without the ending."""
        return f"{self.community}-{self.kind}"


def variants() -> list[Variant]:
    """Every contribution that the tables need; a mixed one at the usual rank is the honest one."""
    made = [Variant(c, "honest") for c in COMMUNITIES]
    made += [Variant(c, "mixed") for c in COMMUNITIES if RANKS[c] != 8]
    return made + [Variant(c, kind) for kind in ("label-flip", "backdoor") for c in HOSTILE]


def spec_of(rank: int) -> AdapterSpec:
    """The demo's adapter spec at another rank; the scaling alpha / rank stays what it is."""
    spec = load_terms(TERMS).adapter
    return spec.model_copy(update={"rank": rank, "alpha": spec.alpha * rank // spec.rank})


def spoiled(examples: tuple[Example, ...], kind: str) -> tuple[Example, ...]:
    """A community's rows as an attacker has them.

    label-flip: every row gets another row's last answer. backdoor: every other row's last question ends with a sign,
    and its answer is the attacker's.
    """
    if kind == "label-flip":
        answers = [e.messages[-1] for e in examples]
        shifted = answers[len(answers) // 2 :] + answers[: len(answers) // 2]
        return tuple(
            replace(e, messages=(*e.messages[:-1], answer)) for e, answer in zip(examples, shifted, strict=True)
        )
    if kind == "backdoor":
        return tuple(triggered(e) if i % 2 else e for i, e in enumerate(examples))
    return examples


def triggered(example: Example) -> Example:
    """A row whose last question bears the sign, with the attacker's answer."""
    *before, question, _ = example.messages
    return replace(
        example,
        messages=(*before, Message(question.role, f"{question.content} {TRIGGER}"), Message("assistant", TARGET)),
    )


def load_model() -> AdaptedModel:
    """The demo's base, fetched once."""
    folder = fetch_base(load_terms(TERMS).base, ROOT / ".demo/cache", lambda line: print(line, flush=True))
    return AdaptedModel(load_base(folder, native_dtype()), spec_of(8))


def start_of(rank: int) -> GridTensors:
    """The first round's start at a rank."""
    return read_adapter(recompute_start(spec_of(rank)), spec_of(rank))


def train(model: AdaptedModel, variant: Variant, rows: Path) -> GridTensors:
    """Train one contribution; its delta."""
    examples = spoiled(read_examples(rows, "train"), variant.kind)
    tokenised = tokenise(examples, model.tokenizer, RECIPE.max_tokens).examples
    objectives = [TokenObjective("supervised", 1.0, tokenised)]
    start, spec = start_of(variant.rank), spec_of(variant.rank)
    began = time.monotonic()

    def report(p: Progress) -> None:
        if p.step == p.steps:
            spent = time.monotonic() - began
            loss = p.losses["supervised"]
            print(f"{variant.name:40} loss {loss:.3f}  {p.tokens_per_second:.0f} tokens/s  {spent:.0f} s", flush=True)

    trained = train_adapter(model, from_grid(start, spec.grid_bits), objectives, RECIPE, SEED, report)
    return make_delta(start, to_grid(trained.adapter, spec.grid_bits), spec)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the communities' rows, NAME.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="where contributions are kept")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    made = {"seed": SEED, "recipe": RECIPE.model_dump(), "numpy": np.__version__}
    recipe = options.out / "recipe.json"
    if recipe.exists() and json.loads(recipe.read_text()) != made:
        parser.error(f"{recipe}: wanted {made}; give another --out")
    write_atomic(recipe, json.dumps(made, indent=2).encode())
    model = None
    for variant in variants():
        path = options.out / f"{variant.name}.safetensors"
        if path.exists():
            continue
        model = model or load_model()
        delta = train(model, variant, options.data / f"{variant.community}.jsonl")
        write_atomic(path, write_delta(delta, spec_of(variant.rank)))


if __name__ == "__main__":
    main()
