"""``commonweal node train``: train on this community's rows alone, with no round and no coordinator."""

import threading
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict
from rich.console import Console

from commonweal_node.charter.objective_weights import OBJECTIVES, ObjectiveName
from commonweal_node.config import load_config
from commonweal_node.home import DEFAULT_HOME, NodeHome
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.options import Home
from commonweal_protocols.base.settings import load_toml
from commonweal_protocols.statements.compact import AdapterSpec, BaseModelRef, Recipe

"""Below the home: apart from the daemon's own training, so that the two do not meet."""


class Terms(BaseModel):
    """The part of a compact's terms that the model side needs."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    base: BaseModelRef
    adapter: AdapterSpec
    recipe: Recipe


class Screen:
    """One line on a terminal, and nothing elsewhere."""

    def __init__(self) -> None:
        self._fields: dict[str, object] = {}
        self._status = Console(stderr=True, markup=False).status("starting")

    def __enter__(self) -> "Screen":
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def set(self, **fields: object) -> None:
        """Show what is known now."""
        self._fields |= fields
        known = self._fields
        line = str(known.get("doing", ""))
        losses, left = known.get("losses"), known.get("eta_seconds")
        if isinstance(losses, dict) and losses:
            line += f", step {known['step']} of {known['steps']}, loss: "
            line += ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        if isinstance(left, float):
            line += f", {known['tokens_per_second']:.0f} tokens/s, {left:.0f} s left"
        self._status.update(line)


def _two(text: str) -> tuple[ObjectiveName, ObjectiveName]:
    found = [name for part in text.split(",") for name in OBJECTIVES if name == part.strip()]
    if len(found) != 2 or text.count(",") != 1:
        raise ConfigError(f"--pareto: wanted two of {', '.join(OBJECTIVES)}, as A,B, got {text!r}")
    return found[0], found[1]


def train(
    compact: Annotated[Path, typer.Option(help="Terms (TOML) with the tables base, adapter and recipe.")],
    home: Home = DEFAULT_HOME,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, if not the recipe's.")] = None,
    pareto: Annotated[
        str | None, typer.Option(help="Two objectives, as A,B: train at several shares of their weight.")
    ] = None,
    points: Annotated[int, typer.Option(min=2, max=100, help="How many shares --pareto tries.")] = 5,
) -> None:
    """Train an adapter from the start that the terms' seed makes; it and its report go to HOME/local.

    With --pareto no adapter is kept: HOME/local/pareto.html shows each objective's held-out loss at each weighting.
    Started by accelerate launch, several processes train together.
    """
    from commonweal_adapters.files.delta import from_grid, read_adapter
    from commonweal_adapters.recompute import recompute_start
    from commonweal_node.charter.charter import load_charter
    from commonweal_node.model.blend import export_peft
    from commonweal_node.training.jobs import ending, work
    from commonweal_node.training.learner import Learner
    from commonweal_node.training.pareto import save_pareto, weightings
    from commonweal_node.training.team import join_team

    config = load_config(NodeHome(home).settings)
    team = join_team()
    if team.rank:
        work(team, config)
        return
    with ending(team):
        weights = load_charter(config.charter).objectives
        tried = weightings(weights, _two(pareto), points) if pareto else []
        terms = load_toml(compact, Terms)
        recipe = terms.recipe.model_copy(update={"steps": steps or terms.recipe.steps})
        start = read_adapter(recompute_start(terms.adapter), terms.adapter)
        local = NodeHome(home).local
        with Screen() as screen:
            learner = Learner(terms, config, weights, home, screen, threading.Event(), team, work=local)
            if tried:
                save_pareto(local / "pareto.html", learner.sweep(start, tried, recipe))
            else:
                trained = learner.train(start, recipe, "train")
                learner.membership(trained)
                made = from_grid(trained, terms.adapter.grid_bits)
                export_peft(local / "adapter", terms.adapter, made, terms.base.reference)
        typer.echo(str(local / "pareto.html") if tried else f"{local / 'adapter'}, report {local / 'runs/train.html'}")
