"""Stock ``transformers.Trainer`` with PEFT and a padding collator against this node's training, on the same rows.

``python -m tests.bench.train --data FOLDER`` trains the demo's base model on mixed-length rows of several communities:
the same examples in the same order, rank 8 on every linear layer from the same start, AdamW without decay, the same
learning rates, and gradients clipped at 1. Each run is a process of its own; runs are interleaved and the table gives
medians. Tokens are those of the examples, supervised or context, counted alike for all: neither padding nor a shared
prefix that was computed once changes the count. Runs where torch sees a GPU use it.

``--sides ours ours-2-processes`` compares one process with two that share each step, started by the stock launcher;
each of the two has half of the threads.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from commonweal_adapters.files.delta import from_grid
from commonweal_coordinator.succession.compact_draft import load_terms
from commonweal_node.model.base_model import fetch_base, load_base, native_dtype
from commonweal_node.model.heldout import heldout_batches, row_losses
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.tensors import slots
from commonweal_node.model.tokens import Tokenised, step_indices, tokenise
from commonweal_node.rows.row import read_examples
from commonweal_node.training.objectives import TokenObjective
from commonweal_node.training.team import Team, join_team
from commonweal_node.training.train import Progress, rate_factor, train_adapter
from commonweal_protocols.statements.compact import Recipe
from tests.bench.contributions import ROOT, TERMS, spec_of, start_of

COMMUNITIES = ("coop-commons", "health-medquad", "region-assam", "teachers-mathdial")
TWO = "ours-2-processes"
SIDES = ("ours", "stock-bf16", "stock-fp32")
SEED = 0
RATE_MICROS = 1000
HELDOUT_ROWS = 12
"""Of each community."""


@dataclass(frozen=True, slots=True)
class Result:
    """One run. Tokens are the examples' own; peak memory is the process's greatest resident set, of two the first's.

    ``cpu_seconds`` is what they used, on all their threads: on a machine with other work that is the steadier one.
    """

    side: str
    tokens: int
    seconds: float
    cpu_seconds: float
    peak_mib: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def cpu_rate(self) -> float:
        """Tokens per second of one core."""
        return self.tokens / self.cpu_seconds


class Clock:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def stop(self) -> "Clock":
        """Take both times."""
        self.seconds, self.cpu_seconds = time.monotonic() - self._wall, time.process_time() - self._cpu
        return self


def device() -> str:
    """Where everything runs."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def base_folder() -> Path:
    """The demo's base, fetched once."""
    return fetch_base(load_terms(TERMS).base, ROOT / ".demo/cache", lambda line: print(line, file=sys.stderr))


def rows(data: Path, tokenizer: Any, split: Any, max_tokens: int, limit: int | None = None) -> list[Tokenised]:  # noqa: ANN401
    """The communities' rows, tokenised by the one tokeniser for both sides."""
    examples = [e for c in COMMUNITIES for e in read_examples(data / f"{c}.jsonl", split)[:limit]]
    return list(tokenise(examples, tokenizer, max_tokens).examples)


def in_order(examples: Sequence[Tokenised], recipe: Recipe) -> list[Tokenised]:
    """What the steps take, one after the other."""
    return [examples[i] for step in step_indices(len(examples), recipe.batch_size, recipe.steps, SEED) for i in step]


def train_ours(data: Path, recipe: Recipe, team: Team) -> tuple[dict[str, NDArray[np.float32]], int, Clock]:
    """This node's training."""
    spec = spec_of(8)
    place = device() if team.size == 1 else team.device
    model = AdaptedModel(load_base(base_folder(), native_dtype(place), place), spec)
    examples = rows(data, model.tokenizer, "train", recipe.max_tokens)
    start = from_grid(start_of(8), spec.grid_bits)

    def ignore(_: Progress) -> None:
        pass

    objectives = [TokenObjective("supervised", 1.0, examples)]
    # Nobody's clock runs while another process still loads.
    team.sum([0.0])
    clock = Clock()
    trained = train_adapter(model, start, objectives, recipe, SEED, ignore, team=team)
    clock.stop()
    (clock.cpu_seconds,) = team.sum([clock.cpu_seconds])
    return trained.adapter, sum(len(e.ids) for e in in_order(examples, recipe)), clock


def train_stock(data: Path, recipe: Recipe, dtype: torch.dtype) -> tuple[dict[str, NDArray[np.float32]], int, Clock]:
    """The Trainer as its documentation shows it, but for the order of the rows and the schedule, which are ours."""
    peft, transformers = import_module("peft"), import_module("transformers")
    spec = spec_of(8)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_folder())
    examples = in_order(rows(data, tokenizer, "train", recipe.max_tokens), recipe)
    model = transformers.AutoModelForCausalLM.from_pretrained(base_folder(), dtype=dtype).to(device())
    config = peft.LoraConfig(
        r=spec.rank, lora_alpha=spec.alpha, target_modules=[s.path for s in slots(spec)], task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(model, config)
    named = dict(model.named_parameters())
    for name, value in from_grid(start_of(8), spec.grid_bits).items():
        named[name.replace(".weight", ".default.weight")].data = torch.tensor(value, device=device())
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=recipe.learning_rate_micros / 1e6, weight_decay=0.0,
        fused=True,
    )  # fmt: skip
    dataset = [
        {"input_ids": list(e.ids), "labels": [t if s else -100 for t, s in zip(e.ids, e.supervised, strict=True)]}
        for e in examples
    ]
    with tempfile.TemporaryDirectory() as out:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=out,
                max_steps=recipe.steps,
                per_device_train_batch_size=recipe.batch_size,
                train_sampling_strategy="sequential",
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=device() == "cpu",
                dataloader_pin_memory=device() != "cpu",
            ),
            train_dataset=dataset,
            data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
            optimizers=(
                optimizer,
                torch.optim.lr_scheduler.LambdaLR(
                    optimizer, lambda step: rate_factor(min(step, recipe.steps - 1), recipe.steps)
                ),
            ),
        )
        clock = Clock()
        trainer.train()
        clock.stop()
    names = [n for s in slots(spec) for n in (s.name_a, s.name_b)]
    adapter = {n: named[n.replace(".weight", ".default.weight")].detach().float().cpu().numpy() for n in names}
    return adapter, sum(len(e.ids) for e in examples), clock


def run_side(side: str, data: Path, recipe: Recipe, out: Path) -> None:
    """One run in this process; its adapter and its figures go below ``out``."""
    team = join_team()
    if side in ("ours", TWO):
        adapter, tokens, clock = train_ours(data, recipe, team)
        team.leave()
        if team.rank:
            return
    else:
        dtype = torch.float32 if side == "stock-fp32" else torch.bfloat16
        adapter, tokens, clock = train_stock(data, recipe, dtype)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    save_file(adapter, out / f"{side}.safetensors")
    (out / f"{side}.json").write_text(json.dumps(asdict(Result(side, tokens, clock.seconds, clock.cpu_seconds, peak))))


def matmul_peak(dtype: torch.dtype) -> float:
    """The best of this machine's matrix products, in operations per second (a multiply and an add are two)."""
    best = 0.0
    for size in (1024, 2048, 4096):
        a, b = (torch.randn(size, size, device=device()).to(dtype) for _ in range(2))
        for _ in range(5):
            began = time.perf_counter()
            product = a @ b
            float(product[0, 0])  # a GPU has finished by then
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def operations_per_token(supervised_share: float) -> float:
    """Of the matrix products that training cannot do without: W forward and for dx, A and B three times, the head.

    Attention's products are left out, and so is what a prefix computed once saves.
    """
    spec, config = spec_of(8), json.loads((base_folder() / "config.json").read_text())
    weights = sum(s.in_features * s.out_features for s in slots(spec))
    factors = sum((s.in_features + s.out_features) * spec.rank for s in slots(spec))
    head = int(config["hidden_size"]) * int(config["vocab_size"])
    return 4 * weights + 6 * factors + 4 * head * supervised_share


def launcher(side: str) -> list[str]:
    """What starts a side's module."""
    if side != TWO:
        return [sys.executable]
    threads = str(max(1, torch.get_num_threads() // 2))
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*command, "--main_process_port", "0", "--num_cpu_threads_per_process", threads]


def measure(options: argparse.Namespace, recipe: Recipe) -> None:
    """Run every side in turn, several times, and print the table."""
    found: dict[str, list[Result]] = {side: [] for side in options.sides}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for n in range(options.runs):
            for side in options.sides:
                command = [*launcher(side), "-m", "tests.bench.train", "--data", str(options.data), "--side", side]
                command += ["--out", str(out), "--steps", str(recipe.steps), "--batch", str(recipe.batch_size)]
                subprocess.run([*command, "--max-tokens", str(recipe.max_tokens)], check=True, cwd=ROOT)
                result = Result(**json.loads((out / f"{side}.json").read_text()))
                found[side].append(result)
                print(
                    f"run {n + 1}  {side:12} {result.rate:6.0f} tokens/s  "
                    f"{result.cpu_rate:6.0f} per core-second  {result.peak_mib:5.0f} MiB",
                    flush=True,
                )
        model = AdaptedModel(load_base(base_folder(), torch.float32, device()), spec_of(8))
        heldout = heldout_batches(rows(options.data, model.tokenizer, "heldout", recipe.max_tokens, HELDOUT_ROWS))
        losses = {
            side: row_losses(model, load_file(out / f"{side}.safetensors"), heldout).mean for side in options.sides
        }
        before = row_losses(model, None, heldout).mean
        examples = rows(options.data, model.tokenizer, "train", recipe.max_tokens)
    lengths = [len(e.ids) for e in examples]
    share = sum(sum(e.supervised) for e in examples) / sum(lengths)
    print(
        f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    deciles = np.percentile(lengths, (10, 50, 90)).astype(int).tolist()
    print(f"{len(lengths)} rows, lengths 10/50/90 %: {deciles}, supervised {share:.0%}; {recipe}")
    peaks = {side: matmul_peak(torch.float32 if side == "stock-fp32" else torch.bfloat16) for side in options.sides}
    print(f"held-out loss of the base, in float32: {before:.4f}")
    for side, results in found.items():
        rate = statistics.median(r.rate for r in results)
        cpu_rate = statistics.median(r.cpu_rate for r in results)
        of_peak = rate * operations_per_token(share) / peaks[side]
        peak_mib = statistics.median(r.peak_mib for r in results)
        print(
            f"{side:12} {rate:6.0f} tokens/s  {cpu_rate:6.0f} per core-second  peak {peak_mib:5.0f} MiB  "
            f"held-out {losses[side]:.4f}  {of_peak:.0%} of a matmul peak of {peaks[side] / 1e9:.0f} Gop/s"
        )


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the communities' rows, NAME.jsonl")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--sides", nargs="+", choices=(*SIDES, TWO), default=SIDES)
    parser.add_argument("--side", choices=(*SIDES, TWO), help="one run in this process")
    parser.add_argument("--out", type=Path, help="where that run's adapter and figures go")
    options = parser.parse_args()
    recipe = Recipe(
        steps=options.steps,
        batch_size=options.batch,
        learning_rate_micros=RATE_MICROS,
        max_tokens=options.max_tokens,
    )
    if options.side:
        run_side(options.side, options.data, recipe, options.out)
    else:
        measure(options, recipe)


if __name__ == "__main__":
    main()
