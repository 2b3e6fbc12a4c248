"""``python -m tests.bench.quality_picture`` draws ``results/quality.csv`` as ``results/quality.svg``.

Left: each community's held-out loss under the base, its own adapter, the shared one, and its blend of the two, with
everybody honest. Right: the loss under each rule where one or two of seven are hostile, averaged over the honest
communities, against the same communities' under the mean of seven honest ones; 5 % more or worse is marked.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from statistics import fmean

from commonweal_protocols.base.html import Html, el
from tests.bench.quality import RESULTS

Losses = Mapping[tuple[str, str], Mapping[str, float]]
"""By scenario and rule: each community's loss."""

_SHARED = "factor-mean"
_BLEND = "blend of it and one's own"
_MARKS = {"base": "#8c959f", "local only": "#0550ae", _SHARED: "#bf5600", _BLEND: "#0b5a2a"}
_WIDTH, _LEFT, _SPAN, _ROW, _TOP = 1240, 190, 330, 26, 70
_TABLE, _CELL = 720, 62
_BAD = 0.05


def read() -> Losses:
    """The table's losses; a rule's blends stand under a name of their own."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    with (RESULTS / "quality.csv").open(newline="") as f:
        for row in csv.DictReader(line for line in f if not line.startswith("#")):
            if row["measure"] == "loss":
                found[row["scenario"], row["rule"]][row["community"]] = float(row["value"])
            elif row["measure"] == "blend" and row["rule"] == _SHARED:
                found[row["scenario"], _BLEND][row["community"]] = float(row["value"])
    return found


def rises(losses: Losses) -> dict[str, dict[str, float]]:
    """By rule and hostile scenario: by which share the honest communities' mean loss is above that of seven honest."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (scenario, rule), by_community in losses.items():
        if " of 7" in scenario:
            usual = fmean(losses["honest", _SHARED][name] for name in by_community)
            found[rule][scenario] = fmean(by_community.values()) / usual - 1
    return found


def _text(text: str, x: float, y: float, **more: str) -> Html:
    return el("text", text, x=f"{x:.0f}", y=f"{y:.0f}", **more)


def _honest(losses: Losses) -> Iterator[Html]:
    by_mark = {mark: losses["honest", mark] for mark in _MARKS}
    every = [loss for by_community in by_mark.values() for loss in by_community.values()]
    low, high = min(every), max(every)

    def across(loss: float) -> float:
        return _LEFT + (loss - low) / (high - low) * _SPAN

    for i, (mark, colour) in enumerate(_MARKS.items()):
        x, y = float(_LEFT + (i % 2) * 170), 36.0 + (i // 2) * 16
        yield el("circle", cx=f"{x - 8}", cy=f"{y - 4}", r="5", fill=colour)
        yield _text(mark, x, y)
    for i, name in enumerate(sorted(by_mark["base"])):
        y = _TOP + (i + 0.5) * _ROW
        yield _text(name, _LEFT - 12, y + 4, text_anchor="end")
        ends = [by_mark[mark][name] for mark in _MARKS]
        yield el(
            "line",
            x1=f"{across(min(ends)):.1f}",
            x2=f"{across(max(ends)):.1f}",
            y1=f"{y:.0f}",
            y2=f"{y:.0f}",
            stroke="#d0d7de",
        )
        for mark, colour in _MARKS.items():
            yield el("circle", cx=f"{across(by_mark[mark][name]):.1f}", cy=f"{y:.0f}", r="5", fill=colour)
    bottom = _TOP + (len(by_mark["base"]) + 0.8) * _ROW
    yield _text(f"{low:.2f}", _LEFT, bottom, text_anchor="middle")
    yield _text(f"{high:.2f} nats", _LEFT + _SPAN, bottom, text_anchor="middle")


def _hostile(losses: Losses) -> Iterator[Html]:
    table = rises(losses)
    scenarios = list(dict.fromkeys(scenario for row in table.values() for scenario in row))
    for j, scenario in enumerate(scenarios):
        kind, count = scenario.split(", ")
        x = _TABLE + (j + 0.5) * _CELL
        yield _text(kind, x, 52, text_anchor="middle")
        yield _text(count, x, 65, text_anchor="middle")
    for i, (rule, row) in enumerate(table.items()):
        y = _TOP + i * _ROW
        yield _text(rule, _TABLE - 10, y + 17, text_anchor="end")
        for j, scenario in enumerate(scenarios):
            rise, x = row[scenario], _TABLE + j * _CELL
            is_bad = rise >= _BAD
            fill = "#fdecea" if is_bad else "#e7f6ec"
            yield el("rect", x=f"{x + 1}", y=f"{y + 1}", width=f"{_CELL - 2}", height=f"{_ROW - 2}", fill=fill)
            shown = f"{100 * rise:+.1f} %{' ✗' if is_bad else ''}"
            yield _text(shown, x + _CELL / 2, y + 17, text_anchor="middle")


def draw(losses: Losses) -> bytes:
    """The picture."""
    height = _TOP + 9 * _ROW
    return el(
        "svg",
        el("rect", width=f"{_WIDTH}", height=f"{height}", fill="#ffffff"),
        _text("Held-out loss, everybody honest", 10, 18, font_weight="600"),
        *_honest(losses),
        _text("Hostile institutions: rise of the honest communities' mean loss", _TABLE - 130, 18, font_weight="600"),
        *_hostile(losses),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {height}",
        font_family="system-ui, sans-serif",
        font_size="11",
        fill="#1b1f23",
    ).encode()


if __name__ == "__main__":
    (RESULTS / "quality.svg").write_bytes(draw(read()))
