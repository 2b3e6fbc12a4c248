"""Bytes of a round and what they cost in precision: ``python -m tests.bench.wire [DELTA ...]``.

For each encoding: bytes of an update against float32, the error of one update, the error that is left of a sum of ten
rounds with error feedback and without, and how fast the file is written and read. Without arguments the deltas are made
up, in the shape of the demo's adapter: heavy tails (Student's t, 4 degrees of freedom), each tensor with a scale of
its own. Files of real int32 deltas of one shape give figures for what was really trained. Nothing is asserted here.
Then the other costs of an update: noise, and masks for secure aggregation.
"""

import argparse
import math
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from commonweal_adapters.exact.privacy import privatise
from commonweal_adapters.files.delta import GridTensors, write_delta
from commonweal_adapters.files.encode import quantise, read_encoded, write_encoded
from commonweal_adapters.files.feedback import encode_with_feedback, no_residual
from commonweal_adapters.files.lora_file import tensor_shapes
from commonweal_adapters.files.peft_files import load_adapter
from commonweal_adapters.secure.masked_sum import unmask
from commonweal_adapters.secure.member import Member
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.fold.masked_round import Context, Masking
from commonweal_protocols.statements.compact import AdapterSpec, LoraModule
from commonweal_protocols.statements.delta_encoding import Encoding
from commonweal_protocols.statements.privacy_budget import PrivacyTerms
from commonweal_protocols.statements.rounds import Input
from commonweal_protocols.statements.secure_terms import SecureTerms
from commonweal_protocols.statements.values import Blob, Name

console = Console(width=120)
ROUNDS = 10
T = TypeVar("T")
ENCODINGS = [
    Encoding(bits=32),
    Encoding(bits=8),
    Encoding(bits=4),
    Encoding(bits=8, keep_millis=100),
    Encoding(bits=4, keep_millis=100),
    Encoding(bits=8, keep_millis=10),
    Encoding(bits=4, keep_millis=10),
]
DEMO = AdapterSpec(
    rank=8,
    alpha=16,
    prefix="base_model.model.model.layers",
    layers=30,
    modules=tuple(
        LoraModule(name=name, in_features=i, out_features=o)
        for name, i, o in (
            ("self_attn.q_proj", 576, 576),
            ("self_attn.k_proj", 576, 192),
            ("self_attn.v_proj", 576, 192),
            ("self_attn.o_proj", 576, 576),
            ("mlp.gate_proj", 576, 1536),
            ("mlp.up_proj", 576, 1536),
            ("mlp.down_proj", 1536, 576),
        )
    ),
)


def made_up(seed: int) -> GridTensors:
    rng = np.random.default_rng(seed)
    values = {}
    for name, shape in tensor_shapes(DEMO).items():
        scale = 1000 * math.exp(rng.normal(0, 0.5))
        values[name] = np.clip(rng.standard_t(4, shape) * scale, -(1 << 23), 1 << 23).astype(np.int32)
    return GridTensors(values)


def error(off: Sequence[GridTensors], wanted: Sequence[GridTensors]) -> float:
    """‖Σ off - Σ wanted‖ / ‖Σ wanted‖."""
    gap = whole = 0.0
    for name, _ in wanted[0].items():
        target = sum((w[name].astype(np.float64) for w in wanted), np.zeros(1))
        gap += float(np.sum((sum((o[name].astype(np.float64) for o in off), np.zeros(1)) - target) ** 2))
        whole += float(np.sum(target**2))
    return math.sqrt(gap / whole)


def seconds(work: Callable[[], T]) -> tuple[float, T]:
    """The best of three."""
    best, result = math.inf, None
    for _ in range(3):
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
    assert result is not None
    return best, result


def encode(delta: GridTensors, spec: AdapterSpec, encoding: Encoding) -> bytes:
    return write_encoded(quantise(delta, encoding), spec, encoding)


def encodings(spec: AdapterSpec, deltas: Sequence[GridTensors]) -> Table:
    table = Table(title=f"an update of {sum(q.size for _, q in deltas[0].items()):,} elements; {len(deltas)} rounds")
    for column in ("bits, kept", "bytes", "of float32", "error", "of the sum", "with feedback", "write", "read"):
        table.add_column(column, justify="right")
    plain = len(write_delta(deltas[0], spec))
    table.add_row("float32, or int32", f"{plain:,}", "100 %", *["0"] * 3, "", "")
    for encoding in ENCODINGS:
        left = [quantise(delta, encoding) for delta in deltas]
        residual, sent = no_residual(spec), []
        for delta in deltas:
            data, residual = encode_with_feedback(delta, residual, spec, encoding)
            sent.append(read_encoded(data, spec, encoding))
        write, data = seconds(partial(encode, deltas[0], spec, encoding))
        read, _ = seconds(partial(read_encoded, data, spec, encoding))
        table.add_row(
            f"{encoding.bits}, {encoding.keep_millis / 10:g} %",
            f"{len(data):,}",
            f"{len(data) / plain:.1%}",
            f"{error(left[:1], deltas[:1]):.2%}",
            f"{error(left, deltas):.2%}",
            f"{error(sent, deltas):.2%}",
            f"{write * 1e3:.0f} ms",
            f"{read * 1e3:.0f} ms",
        )
    return table


def noise(delta: GridTensors) -> str:
    terms = PrivacyTerms(clip_steps=1 << 20, sigma_steps=1 << 20, budget_micro_rho=1)
    took, _ = seconds(lambda: privatise(delta, terms, secrets.token_bytes))
    size = sum(q.size for _, q in delta.items())
    return f"clip and discrete Gaussian noise: {took:.2f} s, {size / took / 1e6:.2f} million samples a second"


def masked_round(delta: GridTensors, count: int) -> Table:
    """A masked round in which one member drops out after it has left shares: seconds of one member at each stage."""
    names = tuple(f"member-{i:03d}" for i in range(count))
    elements = sum(q.size for _, q in delta.items())
    masking = Masking(Context("00" * 32, "00" * 32), SecureTerms(), names, 8 * elements)
    roots = {name: secrets.token_bytes(32) for name in names}
    took: dict[str, float] = {}

    def stage(what: str, who: Sequence[Name], work: Callable[[Member], T]) -> dict[Name, T]:
        began = time.perf_counter()
        said = {name: work(Member(masking, 1, name, roots[name])) for name in who}
        took[what] = (time.perf_counter() - began) / len(who)
        return said

    for name, keys in stage("advertise", names, Member.advertise).items():
        masking = masking.advertise(name, keys)
    masking = masking.end_stage("advertise", names, {}, 1)
    for name, sealed in stage("seal", names, Member.seal).items():
        masking = masking.seal(name, sealed)
    masking = masking.end_stage("seal", names, {}, 1)
    vectors = stage("mask", names[1:], lambda m: m.mask(delta, 1))
    masking = masking.end_stage("mask", names[1:], vectors, 1)
    for name, confirmation in stage("confirm", names[1:], Member.confirm).items():
        masking = masking.confirm(name, confirmation)
    for name, reveal in stage("reveal", names[1:], Member.reveal).items():
        masking = masking.reveal(name, reveal)
    blobs = {n: Blob(sha256=digest_of(v), size_bytes=len(v)) for n, v in vectors.items()}
    inputs = [Input(institution=n, leaf="00" * 32, delta=blob, weight=1) for n, blob in blobs.items()]
    by_digest = {digest_of(v): v for v in vectors.values()}
    began = time.perf_counter()
    unmask(masking, inputs, by_digest.__getitem__)
    took["unmask, once for all"] = time.perf_counter() - began
    table = Table(title=f"a masked round of {count} members, {8 * elements:,} bytes a vector, one drops out")
    table.add_column("stage")
    table.add_column("seconds of one member", justify="right")
    for name, value in took.items():
        table.add_row(name, f"{value:.3f}")
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("deltas", nargs="*", type=Path, help="files of int32 deltas of one shape: a round each")
    parser.add_argument("--members", type=int, default=7, help="of the masked round")
    args = parser.parse_args()
    if args.deltas:
        files = [load_adapter(path) for path in args.deltas]
        spec = files[0].spec(20)
        deltas = [file.grid(20) for file in files]
    else:
        spec, deltas = DEMO, [made_up(seed) for seed in range(ROUNDS)]
    console.print(encodings(spec, deltas))
    console.print(noise(deltas[0]))
    console.print(masked_round(deltas[0], args.members))


if __name__ == "__main__":
    main()
