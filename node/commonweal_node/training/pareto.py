"""One training for each of several weightings, and what each objective's held-out loss is then: a table, no winner.

Which trade-off is right is the community's to say; nothing here ranks, sums or picks. The points that no other point
beats in every objective are marked, because the rest can be had for nothing. Pure but for the training itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from commonweal_node.charter.objective_weights import ObjectiveName, ObjectiveWeights
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.tensors import AdapterTensors
from commonweal_node.svg import plane
from commonweal_node.training.objectives import TrainingRows, choose_objectives
from commonweal_protocols.audit.page_style import STYLE
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.files import write_atomic
from commonweal_protocols.base.html import el, page, table
from commonweal_protocols.base.settings import describe


@dataclass(frozen=True, slots=True)
class Point:
    """A weighting, and the held-out loss of every objective after training by it, in nats."""

    weights: ObjectiveWeights
    losses: Mapping[ObjectiveName, float]


def weightings(
    weights: ObjectiveWeights, names: tuple[ObjectiveName, ObjectiveName], count: int
) -> list[ObjectiveWeights]:
    """Return ``count`` ≥ 2 weightings that share out the two objectives' weight between them, from all to none.

    Raises:
        ConfigError: One of the two has no weight, or a share leaves nothing to train.
    """
    first, second = (f"{name.replace('-', '_')}_millis" for name in names)
    whole = getattr(weights, first) + getattr(weights, second)
    if not getattr(weights, first) or not getattr(weights, second) or names[0] == names[1]:
        raise ConfigError(f"pareto: wanted two objectives with a weight in the charter, got {names[0]} and {names[1]}")
    made = []
    for k in range(count):
        share = whole * k // (count - 1)
        try:
            made.append(ObjectiveWeights.model_validate(weights.model_dump() | {first: whole - share, second: share}))
        except ValidationError as e:
            raise ConfigError(f"pareto: {names[0]} at {whole - share}, {names[1]} at {share}: {describe(e)}") from e
    return made


def sweep(
    model: AdaptedModel,
    start: AdapterTensors,
    rows: TrainingRows,
    heldout: TrainingRows,
    tried: Sequence[ObjectiveWeights],
    batch_tokens: int,
    train: Callable[[int, ObjectiveWeights], AdapterTensors],
) -> list[Point]:
    """Train by each weighting from the same start with the same seed, and measure every objective that any of them has.

    Args:
        model: The base; its spec is the adapter's.
        start: Where each training starts.
        rows: What is trained on.
        heldout: What is measured on; of every kind that the weightings need.
        tried: At least one.
        batch_tokens: See ``train_adapter``.
        train: Trains from ``start`` on ``rows`` by the weighting at this place, and gives the adapter.

    Raises:
        ConfigError: An objective has no rows, or a loss is not finite.
    """
    names = {o.name for weights in tried for o in choose_objectives(weights, rows)}
    every = ObjectiveWeights.model_validate(
        tried[0].model_dump() | {f"{n.replace('-', '_')}_millis": 1000 for n in names}
    )
    measured = choose_objectives(every, heldout)
    with model.adapter(start):
        for o in measured:
            o.prepare(model, range(o.num_rows), batch_tokens)
    points = []
    for k, weights in enumerate(tried):
        adapter = train(k, weights)
        with torch.no_grad(), model.adapter(adapter):
            losses = {
                o.name: sum(float(part()) for part in o.parts(model, range(o.num_rows), batch_tokens)) for o in measured
            }
        points.append(Point(weights, losses))
    return points


def undominated(points: Sequence[Point]) -> list[bool]:
    """Whether no other point is at least as low in every objective and lower in one."""

    def beats(a: Point, b: Point) -> bool:
        pairs = [(a.losses[name], b.losses[name]) for name in b.losses]
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    return [not any(beats(other, point) for other in points) for point in points]


def save_pareto(path: Path, points: Sequence[Point]) -> None:
    """Write the page.

    Raises:
        StorageError: It cannot be written.
    """
    write_atomic(path, render_pareto(points))


def render_pareto(points: Sequence[Point]) -> bytes:
    """Return a page with the table, and a picture of each two objectives."""
    names = sorted(points[0].losses)
    rows = []
    for k, (point, free) in enumerate(zip(points, undominated(points), strict=True)):
        shares = ", ".join(f"{n} {point.weights.weight(n):g}" for n in names)
        rows.append(
            (
                str(k + 1),
                shares,
                *(f"{point.losses[n]:.4f}" for n in names),
                "" if free else "another is as low in all, and lower in one",
            )
        )
    pictures = [
        plane(
            f"{across} to the right, {up} upwards: the lower left is better in both",
            [(p.losses[across], p.losses[up]) for p in points],
        )
        for i, across in enumerate(names)
        for up in names[i + 1 :]
    ]
    body = [
        el("h1", "Trade-offs between objectives"),
        el("p", "Held-out losses after training by each weighting, lower is better. None of them is the right one."),
        table("Weightings", ("point", "weights", *names, ""), rows),
        *pictures,
    ]
    return page("Trade-offs between objectives", STYLE, el("main", *body))
