"""A training's report: the figures are there, and the page loads nothing."""

from html.parser import HTMLParser
from pathlib import Path

from commonweal_node.training.checkpoints import Course
from commonweal_node.training.run_report import MembershipFigure, RunReport, render_report, save_report

REPORT = RunReport(
    institution="clinic",
    what="own adapter, round 3",
    weights={"supervised": 1.0, "base-kl": 0.1},
    rows={"supervised": 40, "base-kl": 40},
    recipe={"steps": 5, "batch_size": 8},
    seed=7,
    machine="bfloat16 on cpu",
    estimated_bytes=3 << 30,
    peak_bytes=2 << 30,
    course=Course(
        step=3,
        tokens=900,
        seconds=2.0,
        losses={"supervised": [3.5, 2.25, 2.0], "base-kl": [0.0, 0.5, 0.75]},
        heldout=[(1, 3.0), (2, 2.5), (3, 2.75)],
        best_step=2,
    ),
    heldout_before=3.125,
    heldout_after=2.5,
    membership=MembershipFigure(auc=0.625, error=0.07, members=32, others=32),
)


class Page(HTMLParser):
    """Texts, and whatever would load something."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.text = ""
        self.loads: list[str] = []
        self.pictures = 0
        self.feed(data.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.pictures += tag == "svg"
        self.loads += [tag] if tag in ("script", "link", "img", "iframe") else []
        self.loads += [name for name, _ in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_each_objective_by_name_and_loads_nothing() -> None:
    page = Page(render_report(REPORT))
    for wanted in ("3.1250", "2.5000", "0.7500", "0.625 ± 0.070", "450", "3072 MiB estimated", "3 of 5", "of step 2"):
        assert wanted in page.text, wanted
    assert page.pictures == 3
    assert page.loads == []


def test_without_the_attack_the_page_says_so() -> None:
    page = Page(render_report(REPORT.model_copy(update={"membership": None})))
    assert "Not measured: it is of adapters that are to leave this host" in page.text


def test_page_and_figures_are_saved_under_the_trainings_name(tmp_path: Path) -> None:
    path = save_report(tmp_path, REPORT)
    assert path.name == "own-adapter-round-3.html"
    assert RunReport.model_validate_json(path.with_suffix(".json").read_bytes()) == REPORT
