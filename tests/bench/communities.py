"""Every real community by itself: held-out loss before and after one training from the start, and what it took.

``python -m tests.bench.communities --data FOLDER`` uses the demo's base model at rank 8. The losses are of all held-out
rows, cut at the recipe's length. ``REACHED`` is what 60 steps of stock PEFT came to on the same rows.
"""

import argparse
import time
from pathlib import Path

from commonweal_adapters.files.delta import from_grid
from commonweal_node.model.heldout import heldout_batches, row_losses
from commonweal_node.model.tokens import tokenise
from commonweal_node.rows.row import read_examples
from commonweal_node.training.objectives import TokenObjective
from commonweal_node.training.train import Progress, train_adapter
from commonweal_protocols.statements.compact import Recipe
from tests.bench.contributions import SEED, load_model, spec_of, start_of

REACHED: dict[str, tuple[float, float] | None] = {
    "region-northern-nigeria": (4.84, 1.86),
    "region-assam": (4.75, 2.26),
    "region-mexico": (4.22, 1.76),
    "coop-commons": (3.66, 3.28),
    "teachers-mathdial": (3.39, 2.05),
    "health-medquad": (2.31, 2.01),
    "civic-18f": None,
}


def ignore(_: Progress) -> None:
    """Nothing is shown."""


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the communities' rows, NAME.jsonl")
    parser.add_argument("--communities", nargs="+", choices=sorted(REACHED), default=tuple(REACHED))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate-micros", type=int, default=2000)
    parser.add_argument("--max-tokens", type=int, default=256)
    options = parser.parse_args()
    recipe = Recipe(
        steps=options.steps,
        batch_size=options.batch,
        learning_rate_micros=options.rate_micros,
        max_tokens=options.max_tokens,
    )
    model, start = load_model(), from_grid(start_of(8), spec_of(8).grid_bits)
    print(f"{recipe}; {model.describe()}")
    for name in options.communities:
        path = options.data / f"{name}.jsonl"
        rows = tokenise(read_examples(path, "train"), model.tokenizer, recipe.max_tokens).examples
        last = tokenise(read_examples(path, "heldout"), model.tokenizer, recipe.max_tokens).examples
        heldout = heldout_batches(last)
        before = row_losses(model, None, heldout).mean
        began, cpu = time.monotonic(), time.process_time()
        objective = TokenObjective("supervised", 1.0, rows)
        trained = train_adapter(model, start, [objective], recipe, SEED, ignore)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        after = row_losses(model, trained.adapter, heldout).mean
        wanted = REACHED[name]
        stock = f"stock {wanted[0]:.2f} → {wanted[1]:.2f}" if wanted else "stock not measured"
        print(f"{name:26} {before:.3f} → {after:.3f}  {seconds:5.0f} s, {cpu:5.0f} core-seconds  ({stock})", flush=True)


if __name__ == "__main__":
    main()
