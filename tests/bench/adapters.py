"""The merge rules' speed and memory, beside other programs and the machine: ``python -m tests.bench.adapters``.

Every figure comes from a process of its own, which reads the same deltas from disk (the page cache is warm for all) and
reports its seconds and how far its resident memory rose above what the imports had taken. Flower averages with
its own ``aggregate_arrayrecords``, peft with ``add_weighted_adapter``, byzfl with its aggregators on float32 tensors;
where a program is not installed (``pip install --no-deps byzfl==0.0.11``) its row says so. Nothing is asserted here.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from commonweal_adapters.files.delta import GridTensors, read_delta
from commonweal_adapters.files.lora_file import tensor_shapes, write_tensors
from commonweal_adapters.files.source import Delta, Spool
from commonweal_adapters.rules.merge import merge
from commonweal_adapters.rules.merge_error import squared_error
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule
from commonweal_protocols.statements.rules import (
    AnyRule,
    CentredClipping,
    Dare,
    FactorMean,
    GeometricMedian,
    Median,
    MultiKrum,
    Svd,
    Ties,
    TrimmedMean,
)

console = Console(width=120)


def spec_of(mebibytes: int) -> AdapterSpec:
    """Rank 16 on as many square layers as it takes: of width 1024 (128 KiB each), or 4096 in large adapters."""
    width = 1024 if mebibytes <= 100 else 4096
    module = LoraModule(name="q_proj", in_features=width, out_features=width)
    layers = (mebibytes << 20) // (2 * 16 * width * 4)
    return AdapterSpec(rank=16, alpha=32, prefix="base_model.model.model.layers", layers=layers, modules=(module,))


def weight_of(i: int) -> int:
    return 100 + 37 * i


def make(folder: Path, count: int, spec: AdapterSpec) -> None:
    """Deltas as training leaves them: normal, a few thousandths of a unit wide; each also in float32 for the others."""
    for i in range(count):
        rng = np.random.default_rng(i)
        q = {n: (rng.standard_normal(s, np.float32) * 4000).astype(np.int32) for n, s in tensor_shapes(spec).items()}
        (folder / f"{i}.delta").write_bytes(write_tensors(q, spec))
        floats = {n: (t * np.float32(2.0**-spec.grid_bits)).astype(np.float32) for n, t in q.items()}
        (folder / f"{i}.safetensors").write_bytes(write_tensors(floats, spec))


# -- what one process does: set up untimed, then return the work to be timed


def a_start(spec: AdapterSpec) -> GridTensors:
    """Ones: zeros would take no memory."""
    return GridTensors({n: np.ones(s, np.int32) for n, s in tensor_shapes(spec).items()})


def spooled(folder: Path, count: int, spec: AdapterSpec) -> list[Delta]:
    """The deltas as a merge gets them, in a spool that is closed with this process."""
    spool = Spool(spec)
    grids = (read_delta((folder / f"{i}.delta").read_bytes(), spec) for i in range(count))
    return [Delta(f"i{i:03d}", weight_of(i), spool.keep(grid)) for i, grid in enumerate(grids)]


def ours(rule: AnyRule) -> Callable[[Path, int, AdapterSpec], Callable[[], object]]:
    def prepare(folder: Path, count: int, spec: AdapterSpec) -> Callable[[], object]:
        deltas = spooled(folder, count, spec)
        return lambda: merge(rule, spec, a_start(spec), deltas)

    return prepare


def stated_error(folder: Path, count: int, spec: AdapterSpec) -> Callable[[], object]:
    deltas = spooled(folder, count, spec)

    def work() -> object:
        start = a_start(spec)
        return squared_error(spec, start, deltas, start)

    return work


def flower(folder: Path, count: int, spec: AdapterSpec) -> Callable[[], object]:
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
    from safetensors.numpy import load_file

    def work() -> object:
        records = [
            RecordDict(
                {
                    "arrays": ArrayRecord({n: Array(t) for n, t in load_file(folder / f"{i}.safetensors").items()}),
                    "metrics": MetricRecord({"num-examples": float(weight_of(i))}),
                }
            )
            for i in range(count)
        ]
        return aggregate_arrayrecords(records, "num-examples")

    return work


def peft_linear(folder: Path, count: int, spec: AdapterSpec) -> Callable[[], object]:
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # Never written, so never in memory: only the factors are merged.
            self.q_proj = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
                torch.nn.Linear, spec.modules[0].in_features, spec.modules[0].out_features, bias=False
            )

    class Base(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(Block() for _ in range(spec.layers))

    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=["q_proj"])

    def work() -> object:
        model = get_peft_model(Base(), config, "0")
        for i in range(count):
            if i:
                model.add_adapter(str(i), config)
            loaded = load_file(folder / f"{i}.safetensors")
            for layer in range(spec.layers):
                module = model.base_model.model.layers[layer].q_proj
                prefix = f"{spec.prefix}.{layer}.q_proj.lora_"
                module.lora_A[str(i)].weight = torch.nn.Parameter(loaded[f"{prefix}A.weight"])
                module.lora_B[str(i)].weight = torch.nn.Parameter(loaded[f"{prefix}B.weight"])
        total = sum(weight_of(i) for i in range(count))
        model.add_weighted_adapter(
            [str(i) for i in range(count)], [weight_of(i) / total for i in range(count)], "merged", "linear"
        )
        return model

    return work


def byzfl(name: str, **options: float) -> Callable[[Path, int, AdapterSpec], Callable[[], object]]:
    def prepare(folder: Path, count: int, spec: AdapterSpec) -> Callable[[], object]:
        import torch
        from safetensors.torch import load_file

        from tests.kit.byzantine import aggregators

        aggregator = getattr(aggregators(), name)(**options)

        def work() -> object:
            rows = []
            for i in range(count):
                loaded = load_file(folder / f"{i}.safetensors")
                rows.append(torch.cat([loaded[n].reshape(-1) for n in tensor_shapes(spec)]))
            return aggregator(torch.stack(rows))

        return work

    return prepare


def read_all(folder: Path, count: int, spec: AdapterSpec) -> Callable[[], object]:
    buffer = bytearray(1 << 17)

    def work() -> object:
        for i in range(count):
            with (folder / f"{i}.delta").open("rb", buffering=0) as f:
                while f.readinto(buffer):
                    pass
        return None

    return work


def memcpy(folder: Path, count: int, spec: AdapterSpec) -> Callable[[], object]:
    # A buffer beyond any cache, copied as often as it takes to have read as much as the deltas are.
    size = 256 << 20
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
    times = max(1, count * (folder / "0.delta").stat().st_size // size)

    def work() -> object:
        for _ in range(times):
            np.copyto(target, source)
        return times

    return work


HOSTILE = 2
PROGRAMS: dict[str, Callable[[Path, int, AdapterSpec], Callable[[], object]]] = {
    "machine: memcpy of as many bytes": memcpy,
    "machine: read() of the files": read_all,
    "ours: factor-mean": ours(FactorMean(weights="examples")),
    "Flower: aggregate_arrayrecords": flower,
    "peft: add_weighted_adapter, linear": peft_linear,
    "ours: trimmed-mean": ours(TrimmedMean(weights="equal", hostile=HOSTILE)),
    "byzfl: TrMean": byzfl("TrMean", f=HOSTILE),
    "ours: median": ours(Median(weights="equal")),
    "byzfl: Median": byzfl("Median"),
    "ours: geometric-median": ours(GeometricMedian(weights="equal", iterations=8)),
    "byzfl: GeometricMedian": byzfl("GeometricMedian", nu=0.1, T=8),
    "ours: multi-krum": ours(MultiKrum(weights="equal", hostile=HOSTILE)),
    "byzfl: MultiKrum": byzfl("MultiKrum", f=HOSTILE),
    "ours: centred-clipping": ours(CentredClipping(weights="equal", norm_micros=10**6, iterations=3)),
    "byzfl: CenteredClipping": byzfl("CenteredClipping", L=3, tau=1.0),
    "ours: mixing + trimmed-mean": ours(TrimmedMean(weights="equal", hostile=HOSTILE, mix_hostile=HOSTILE)),
    "ours: ties": ours(Ties(weights="examples", density_millis=200)),
    "ours: dare": ours(Dare(weights="examples", drop_millis=900)),
    "ours: svd": ours(Svd(weights="examples")),
    "ours: stated error": stated_error,
}


def resident_mebibytes(field: str) -> float:
    """VmRSS now, or VmHWM: the most since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def one(name: str, folder: Path, count: int, mebibytes: int) -> None:
    """Run one program once, in this process; print what it took as JSON."""
    work = PROGRAMS[name](folder, count, spec_of(mebibytes))
    before = resident_mebibytes("VmRSS")
    # 5: the peak begins anew, else an import's would hide the work's.
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - began
    peak = resident_mebibytes("VmHWM") - before
    print(json.dumps({"seconds": seconds, "mebibytes": peak, "kept": kept is not None}))


def measure(name: str, folder: Path, count: int, mebibytes: int, repeat: int) -> tuple[float, float] | str:
    """The best seconds and the least memory of several processes; or why there is none."""
    runs = []
    for _ in range(repeat):
        made = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.bench.adapters", "--one", name, "--folder", str(folder),
             "--count", str(count), "--mebibytes", str(mebibytes)],
            capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            return made.stderr.strip().splitlines()[-1][:60] if made.stderr.strip() else f"exit {made.returncode}"
        runs.append(json.loads(made.stdout))
    return min(r["seconds"] for r in runs), min(r["mebibytes"] for r in runs)


def compare(count: int, mebibytes: int, names: list[str], repeat: int) -> Table:
    """One table: every program on the same deltas. The first is the measure of the others' speed."""
    table = Table(
        "program", "seconds", "GB/s of deltas", "of memcpy", "peak MiB", "in adapters",
        title=f"{count} deltas of {mebibytes} MiB, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    )  # fmt: skip
    copied = 0.0
    folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=Path(__file__).parents[2]))
    try:
        make(folder, count, spec_of(mebibytes))
        for name in names:
            made = measure(name, folder, count, mebibytes, repeat)
            if isinstance(made, str):
                table.add_row(name, made)
                continue
            seconds, peak = made
            copied = copied or seconds
            rate = count * mebibytes * (1 << 20) / seconds / 1e9
            share = f"{copied / seconds:.1%}"
            table.add_row(name, f"{seconds:.3f}", f"{rate:.2f}", share, f"{peak:.0f}", f"{peak / mebibytes:.1f}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sizes", default="100x10,50x10,25x10,10x200", help="counts x MiB of an adapter")
    parser.add_argument("--only", default="", help="programs whose names hold one of these, with commas between")
    parser.add_argument("--one", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--mebibytes", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.folder, args.count, args.mebibytes)
        return
    wanted = ["memcpy", *args.only.split(",")]
    names = [n for n in PROGRAMS if any(w in n for w in wanted)]
    for size in args.sizes.split(","):
        count, mebibytes = map(int, size.split("x"))
        console.print(compare(count, mebibytes, names, args.repeat))


if __name__ == "__main__":
    main()
