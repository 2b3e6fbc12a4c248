"""The reports of ``commonweal adapter``, for people. What a stranger's file says of itself is printed as plain text."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from commonweal_adapters.commands.compress_job import CompressReport
from commonweal_adapters.commands.inspect_job import Inspection
from commonweal_adapters.commands.inspection import Likeness
from commonweal_adapters.commands.merge_job import MergeReport
from commonweal_adapters.commands.recompute_job import RecomputeReport
from commonweal_protocols.base.text import printable


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _say(console: Console, text: str) -> None:
    # Control characters of a stranger's file must not reach the terminal.
    console.print(escape(printable(text)), soft_wrap=True, highlight=False)


def _micros(value: int | None) -> str:
    return "undefined" if value is None else f"{value / 1e6:.6f}"


def print_inspection(found: Inspection) -> None:
    """Print one adapter."""
    console = Console()
    kind = "delta" if found.is_delta else "adapter"
    _say(
        console,
        f"{found.path}: {kind}, {found.size_bytes} bytes, {found.elements} elements of {', '.join(found.dtypes)}",
    )
    if found.base:
        _say(console, f"base model {found.base}")
    if found.rank is not None:
        alpha = "unknown" if found.alpha is None else f"{found.alpha:g}"
        scaling = " (rslora)" if found.scaling == "rslora" else ""
        _say(
            console, f"rank {found.rank}, alpha {alpha}{scaling}, {found.layers} layers of {len(found.modules)} modules"
        )
    if found.modules:
        # The product of two deltas is nothing that a model ever adds.
        table = _table("module", "‖A‖", "‖B‖", *(() if found.is_delta else ("‖s·B·A‖", "share")))
        for m in found.modules:
            product = () if found.is_delta else (f"{m.norm_product:.4g}", f"{m.share:.1%}")
            table.add_row(escape(m.module), f"{m.norm_a:.4g}", f"{m.norm_b:.4g}", *product)
        console.print(table)
    if found.fit:
        fit = found.fit
        _say(
            console,
            f"grid of {fit.grid_bits} bits: largest value {fit.largest:.4g}, {fit.range_used:.1%} of the range; "
            f"{fit.off_grid} values are off it, and rounding changes {fit.rounding_error:.2e} of the norm",
        )
    for problem in found.problems:
        _say(console, f"problem: {problem}")


def print_diff(one: Path, other: Path, rows: Sequence[Likeness]) -> None:
    """Print how alike two adapters are."""
    console = Console()
    _say(console, f"{one} and {other}")
    table = _table("module", "cos B·A", "cos factors", "‖difference‖", "‖first‖", "‖second‖")
    for row in rows:
        cosines = (f"{row.cosine_product:+.4f}", f"{row.cosine_factors:+.4f}")
        norms = (f"{n:.4g}" for n in (row.distance_product, row.norm_first, row.norm_second))
        table.add_row(escape(row.module), *cosines, *norms)
    console.print(table)


def print_merge(report: MergeReport, out: Path) -> None:
    """Print a merge."""
    console = Console()
    table = _table("adapter", "weight", "counted")
    for i in report.inputs:
        table.add_row(escape(i.path), str(i.weight), f"{i.counted_micros / 1e4:.2f}%")
    console.print(table)
    _say(console, f"{report.rule}: rank {report.rank}, sha256 {report.adapter_sha256}, in {out}")
    _say(console, f"error against the exact merge {_micros(report.error_micros)}")
    _say(console, f"diversity of the deltas {_micros(report.diversity_micros)}")


def print_recompute(report: RecomputeReport) -> None:
    """Print a release that was recomputed."""
    console = Console()
    _say(console, f"round {report.round}, {report.rule} of {', '.join(report.institutions)}")
    _say(console, f"logged      {report.logged_sha256}")
    _say(console, f"recomputed  {report.recomputed_sha256}: {'the same' if report.holds else 'ANOTHER ADAPTER'}")
    _say(console, f"the round moved the adapter by {_micros(report.round_micros)}")
    if report.diversity_micros is None:
        _say(console, "the round was masked: no error and no diversity, which need single deltas")
    elif report.holds:
        _say(console, f"error against the exact merge {_micros(report.error_micros)}")
        _say(console, f"diversity of the deltas {_micros(report.diversity_micros)}")
    if report.without is not None and report.moved_micros is not None:
        share = f", {report.moved_micros / report.round_micros:.1%} of that" if report.round_micros else ""
        _say(console, f"without {report.without}: {report.without_sha256}")
        _say(console, f"leaving {report.without} out moves it by {_micros(report.moved_micros)}{share}")


def print_compress(report: CompressReport, out: Path) -> None:
    """Print an encoding."""
    console = Console()
    share = report.size_bytes / report.float32_bytes
    _say(
        console,
        f"{report.bits} bits, {report.keep_millis} of 1000 kept: {report.size_bytes} bytes, {share:.1%} of float32 "
        f"({report.bits_per_element:.2f} bits an element)",
    )
    if report.relative_error is not None:
        _say(console, f"error {report.relative_error:.4%} of the norm, at most {report.largest_error_steps} grid steps")
    _say(console, f"sha256 {report.sha256}, in {out}")
