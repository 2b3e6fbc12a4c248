"""``commonweal node evaluate``: the charter's probes, under every adapter that this node has."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from commonweal_node.commands.train import Terms
from commonweal_node.config import NodeConfig, load_config
from commonweal_node.home import DEFAULT_HOME, NodeHome
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.options import AsJson, Home
from commonweal_protocols.base.progress import Tell, progress
from commonweal_protocols.base.report import print_report
from commonweal_protocols.base.settings import load_toml
from commonweal_protocols.base.text import printable

if TYPE_CHECKING:
    from commonweal_node.model.lora import AdaptedModel
    from commonweal_node.model.tensors import AdapterTensors
    from commonweal_node.probes.probe import Probe
    from commonweal_protocols.statements.compact import AdapterSpec


def _found(home: Path, spec: "AdapterSpec") -> "dict[str, AdapterTensors | None]":
    """Return the base alone, and the adapters below a home; ``blend`` is what serves."""
    from commonweal_adapters.files.delta import from_grid
    from commonweal_adapters.files.peft_files import load_adapter
    from commonweal_node.institution.answer_store import Answers

    answers = Answers(home, spec)
    found: dict[str, AdapterTensors | None] = {"base": None}
    for what, adapter in (("own", answers.newest_own()), ("shared", answers.load_shared())):
        if adapter is not None:
            found[what] = from_grid(adapter, spec.grid_bits)
    if NodeHome(home).adopted.is_dir():
        found["blend"] = load_adapter(NodeHome(home).adopted).tensors
    return found


def _load(config: NodeConfig, terms: Terms, console: Console) -> "AdaptedModel":
    from commonweal_node.model.base_model import fetch_base, load_base, native_dtype, share_weights
    from commonweal_node.model.lora import AdaptedModel

    def tell(line: str) -> None:
        console.print(f"base model: {line}")

    folder = share_weights(fetch_base(terms.base, config.cache, tell), native_dtype(), tell)
    return AdaptedModel(load_base(folder, native_dtype()), terms.adapter, config.threads or None)


def _measure(
    model: "AdaptedModel", probe: "Probe", adapters: "Mapping[str, AdapterTensors | None]", tell: Tell
) -> dict[str, int]:
    """Return what a probe measures under each adapter, in millionths, with a bar on the terminal for the whole."""
    from commonweal_node.probes.score import measure_probe, pack_probe

    packed = pack_probe(probe, model.tokenizer)
    total, done = len(packed.batches) * len(adapters), itertools.count(1)
    return {
        what: round(1_000_000 * measure_probe(model, adapter, packed, lambda: tell(probe.name, next(done), total)))
        for what, adapter in adapters.items()
    }


def evaluate(
    home: Home = DEFAULT_HOME,
    probe: Annotated[
        list[str] | None, typer.Option(help="Only this probe, HOME/probes/NAME.jsonl; may be given several times.")
    ] = None,
    compact: Annotated[
        Path | None,
        typer.Option(help="Terms (TOML) with base, adapter and recipe, where no consortium was joined yet."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the questions by which the charter's clauses are held, of the base and of every adapter that this node has.

    Each probe has a result of its own; none is summed with another's. The blend is what serves, and what bars bind.
    """
    from commonweal_node.charter.charter import load_charter
    from commonweal_node.connection.witness import signed_compact
    from commonweal_node.probes.probe import load_probes
    from commonweal_node.probes.report import describe_reports, report_probe

    config = load_config(NodeHome(home).settings)
    charter = load_charter(config.charter)
    names = tuple(dict.fromkeys(probe)) if probe else tuple(charter.probed_by())
    if not names:
        raise ConfigError(
            'evaluate: wanted a charter whose clauses name probes (probes = ["NAME"]), got none; or --probe'
        )
    probes = load_probes(home, charter, names)
    if compact is not None:
        terms = load_toml(compact, Terms)
    else:
        signed = signed_compact(home)
        terms = Terms(base=signed.base, adapter=signed.adapter, recipe=signed.recipe)
    adapters = _found(home, terms.adapter)
    console = Console(stderr=True, markup=False, highlight=False)
    model = _load(config, terms, console)
    with progress() as tell:
        reports = [report_probe(charter, p, _measure(model, p, adapters, tell)) for p in probes]
    if as_json:
        print_report(reports, as_json)
        return
    for line in describe_reports(charter, reports):
        typer.echo(printable(line))
