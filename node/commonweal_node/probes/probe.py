"""Probes: files of questions by which a community sees whether a model keeps a clause of its charter.

A probe ``NAME`` is the file ``<home>/probes/NAME.jsonl``, the institution's own; nothing of it leaves the node but its
name and its results. One question on a line, all of one form:

    {"prompt": …, "options": [a, b, …], "gold": 0}               which option is right, from 0: measured by accuracy
    {"prompt": …, "options": [a, b, …], "dist": [0.7, 0.3, …]}   how people answer: measured by distance

In the place of ``prompt`` a conversation may stand, ``messages``, that ends with the user. Where ``dist`` is given,
``gold`` has no say. Every other key is ignored. An error names file and line, and never what stands there.

No torch, no clock; the only I/O is to read files.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from commonweal_node.charter.charter import Charter
from commonweal_node.home import NodeHome
from commonweal_node.rows.json_objects import kind_of, parse_object, read_lines, text_of
from commonweal_node.rows.row import Message, conversation
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.statements.adoption import Measure
from commonweal_protocols.statements.values import Name

MAX_ITEMS = 2000
MAX_OPTIONS = 26
_ROUNDING = 1e-3
"""Published shares of answers are rounded; what they lack to 1 by more than that is a mistake."""


@dataclass(frozen=True, slots=True)
class Item:
    """A question and its options. ``wanted`` is the probability of each: 1 for the right one, or how people answer."""

    where: str
    """File and line, for errors."""
    messages: tuple[Message, ...]
    """Ends with the user."""
    options: tuple[str, ...]
    wanted: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """The questions of one file, at least one, all measured alike."""

    name: Name
    measure: Measure
    items: tuple[Item, ...]


def load_probes(home: Path, charter: Charter, names: Iterable[Name]) -> tuple[Probe, ...]:
    """Read these probes from a node's home, and see that the charter's bars on them can be held against them.

    Raises:
        ConfigError: A file is missing or a line breaks the schema; or a bar is on the other measure.
    """
    bars = {b.probe: b for b in charter.bars.probes}
    probes = tuple(load_probe(NodeHome(home).probes, name) for name in names)
    for p in probes:
        if p.name in bars and not bars[p.name].fits(p.measure):
            key = "min_accuracy_millis" if p.measure == "distance" else "max_distance_millis"
            raise ConfigError(
                f"charter: bars.probes {p.name}: wanted a bar on its {p.measure}, got {key} (its rows have "
                f"{'dist' if p.measure == 'distance' else 'gold'}: fix the bar or the rows)"
            )
    return probes


def load_probe(folder: Path, name: Name) -> Probe:
    """Read one probe.

    Raises:
        ConfigError: There is no such file, a line breaks the schema, or there are too many or none.
    """
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        raise ConfigError(
            f"{path}: wanted the questions of probe {name}, got no file; write or copy it there, a line each: "
            '{"prompt": "…", "options": ["…", "…"], "gold": 0}, or "dist": [0.7, 0.3] in the place of gold'
        )
    items: list[tuple[Measure, Item]] = []
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        if len(items) == MAX_ITEMS:
            raise ConfigError(f"{where}: wanted at most {MAX_ITEMS} questions, got more")
        items.append(_item(parse_object(line, where), where))
        if items[-1][0] != items[0][0]:
            raise ConfigError(f"{where}: wanted dist on every line or on none: a probe has one measure")
    if not items:
        raise ConfigError(f"{path}: wanted at least one question, got none")
    return Probe(name, items[0][0], tuple(item for _, item in items))


def _item(value: dict[str, object], where: str) -> tuple[Measure, Item]:
    options = value.get("options")
    if not isinstance(options, list) or not 2 <= len(options) <= MAX_OPTIONS:
        got = str(len(options)) if isinstance(options, list) else kind_of(options)
        raise ConfigError(f"{where}: options: wanted a list of 2 to {MAX_OPTIONS} texts, got {got}")
    texts = tuple(text_of(o, f"{where}: options[{i}]") for i, o in enumerate(options))
    if len(set(texts)) != len(texts):
        raise ConfigError(f"{where}: options: wanted texts of which no two are equal, got one twice")
    messages = _asked(value, where)
    if value.get("dist") is not None:
        return "distance", Item(where, messages, texts, _shares(value["dist"], len(texts), where))
    gold = value.get("gold")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(texts):
        got = str(gold) if isinstance(gold, int) and not isinstance(gold, bool) else kind_of(gold)
        raise ConfigError(f"{where}: gold: wanted the place of an option, 0 to {len(texts) - 1}, got {got}")
    return "accuracy", Item(where, messages, texts, tuple(float(i == gold) for i in range(len(texts))))


def _asked(value: dict[str, object], where: str) -> tuple[Message, ...]:
    """The conversation up to the answer."""
    if ("prompt" in value) == ("messages" in value):
        raise ConfigError(
            f"{where}: wanted either prompt or messages, got {'both' if 'prompt' in value else 'neither'}"
        )
    if "prompt" in value:
        return (Message("user", text_of(value["prompt"], f"{where}: prompt")),)
    asked = value["messages"]
    if not isinstance(asked, list):
        raise ConfigError(f"{where}: messages: wanted a list that ends with the user, got {kind_of(asked)}")
    # An answer stands for the options: what goes before it must then satisfy the rules of rows.
    return conversation([*asked, {"role": "assistant", "content": "…"}], where)[:-1]


def _shares(value: object, count: int, where: str) -> tuple[float, ...]:
    given = value if isinstance(value, list) else []
    shares = tuple(float(x) for x in given if isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x <= 1)
    if len(shares) != count or len(given) != count:
        raise ConfigError(f"{where}: dist: wanted {count} numbers from 0 to 1, one for each option, got something else")
    total = math.fsum(shares)
    if abs(total - 1) > _ROUNDING:
        raise ConfigError(f"{where}: dist: wanted numbers that sum to 1, got {total:g}")
    return tuple(x / total for x in shares)
