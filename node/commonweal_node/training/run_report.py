"""A training's report: one HTML page that loads nothing, and the same figures as JSON. For people; never read back.

It holds losses, counts and settings, and not a word of any row. Pure but for :func:`save_report`.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from commonweal_node.svg import curve
from commonweal_node.training.checkpoints import Course
from commonweal_protocols.audit.page_style import STYLE
from commonweal_protocols.base.files import write_atomic
from commonweal_protocols.base.html import Html, el, facts, page, table

_MIB = 1 << 20


class MembershipFigure(BaseModel):
    """See ``membership``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    auc: float
    error: float
    members: int
    others: int


class RunReport(BaseModel):
    """One training, in figures. Losses are nats for each supervised token, or for each pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    institution: str
    what: str
    weights: dict[str, float]
    rows: dict[str, int]
    recipe: dict[str, int]
    seed: int
    machine: str
    estimated_bytes: int | None
    peak_bytes: int
    course: Course
    heldout_before: float
    heldout_after: float
    membership: MembershipFigure | None = None
    trainer: str = ""
    """Whose training it was, where it was not the node's own; then there are no losses of steps."""
    metrics: dict[str, float] = {}
    """What that one reported."""


def save_report(folder: Path, report: RunReport) -> Path:
    """Write both files; returns the page's path.

    Raises:
        StorageError: They cannot be written.
    """
    name = run_name(report.what)
    write_atomic(folder / f"{name}.json", report.model_dump_json(indent=2).encode())
    write_atomic(folder / f"{name}.html", render_report(report))
    return folder / f"{name}.html"


def run_name(what: str) -> str:
    """Return the name of a training's files and folder."""
    return "-".join("".join(c if c.isalnum() else " " for c in what).split())


def render_report(report: RunReport) -> bytes:
    """Return the page."""
    course = report.course
    body = [
        el("p", f"training at {report.institution}", class_="kicker"),
        el("h1", report.what),
        table(
            "Held-out loss of the rows that results are told from",
            ("when", "nats for each supervised token"),
            [("before", f"{report.heldout_before:.4f}"), ("after", f"{report.heldout_after:.4f}")],
        ),
        *(_by_app(report) if report.trainer else _objectives(report)),
        el("h2", "Can the adapter tell who is in it?"),
        _membership(report.membership),
        el("h2", "How it ran"),
        facts(
            *([] if report.trainer else [("steps", f"{course.step} of {report.recipe['steps']}" + _best(course))]),
            ("recipe", ", ".join(f"{name} {value}" for name, value in report.recipe.items())),
            ("seed", str(report.seed)),
            ("machine", report.machine),
            *_speed(report),
            (
                "memory",
                f"{_estimate(report)}, {report.peak_bytes / _MIB:.0f} MiB at most",
            ),
        ),
    ]
    return page(f"{report.what} – {report.institution}", STYLE, el("main", *body))


def _objectives(report: RunReport) -> list[Html]:
    course = report.course
    return [
        el("h2", "Objectives"),
        el("p", "Each has its own loss. Their weighted sum drives the training and means nothing by itself."),
        table(
            "Objectives",
            ("objective", "weight", "rows", "first step", "last step"),
            [
                (name, f"{report.weights[name]:g}", str(report.rows[name]), f"{loss[0]:.4f}", f"{loss[-1]:.4f}")
                for name, loss in course.losses.items()
            ],
        ),
        *(
            curve(f"{name}: loss at each step", [(k + 1, x) for k, x in enumerate(loss)])
            for name, loss in course.losses.items()
        ),
        *([curve("held-out loss on the way", course.heldout)] if course.heldout else []),
    ]


def _by_app(report: RunReport) -> list[Html]:
    return [
        el("h2", "What the trainer reported"),
        el("p", f"Trained by {report.trainer}; these figures are its own and were not checked."),
        table("Metrics", ("metric", "value"), [(name, f"{value:g}") for name, value in report.metrics.items()]),
    ]


def _speed(report: RunReport) -> list[tuple[str, str]]:
    course = report.course
    if report.trainer:
        return [("time", f"{course.seconds:.1f} s")]
    return [
        ("tokens computed", f"{course.tokens} in {course.seconds:.1f} s"),
        ("tokens per second", f"{course.tokens / max(course.seconds, 1e-9):.0f}"),
    ]


def _best(course: Course) -> str:
    return f"; the values of step {course.best_step}, the best on held-out rows, were kept" if course.best_step else ""


def _membership(figure: MembershipFigure | None) -> Html:
    if figure is None:
        return el("p", "Not measured: it is of adapters that are to leave this host, and needs rows (membership_rows).")
    return el(
        "p",
        f"A loss-threshold attack on {figure.members} training rows and {figure.others} held-out rows has an area "
        f"under its curve of {figure.auc:.3f} ± {figure.error:.3f} (0.5 is chance, 1 is certainty). It is one attack, "
        "and no proof that there is no better one.",
    )


def _estimate(report: RunReport) -> str:
    known = report.estimated_bytes
    return f"{known / _MIB:.0f} MiB estimated" if known is not None else "no estimate for this family of models"
