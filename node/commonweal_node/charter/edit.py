"""A charter's file as its community edits it: what a command adds, it adds as text, and comments stay.

Each function takes a file's text and returns another, which it has parsed again to see that it says what was meant.
Pure but for ``load_text``.
"""

import json
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from commonweal_node.charter.charter import Charter
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.files import read_bounded
from commonweal_protocols.base.settings import MAX_TOML_BYTES, parse_toml
from commonweal_protocols.statements.charter import Addendum, Clause

Kind = Literal["principles", "safety", "addenda"]

_FIRST = """\
# A community's charter. The bars bind the node; the rest is read by people, and by what is named in it.
community = {community}
version = 1
data_policy = "Say here whose words are in the data, with whose consent, and what is left out."
dissent = ""
# Parts that are published in clear, by name: ids of clauses, community, bars, objectives, data-policy, dissent.
# Of every other part a salted digest is.
public = []

[bars]
min_cohort = 2                  # decline rounds with fewer institutions
max_steps = 1000                # decline rounds that train longer
max_rise_over_base_millis = 0   # refuse a release that is worse than the base by more (thousandths of a nat per token)

[objectives]
supervised_millis = 1000

# The floor that no principle overrides. Keep it small: how many items it has is public.
[[safety]]
id = "people-first"
text = "Where somebody could come to harm, say so and name who can help."

[[principles]]
id = "first"
text = "Write here what your community holds to, a clause each."
# probes = ["humility"]         # questions that show whether a model does: HOME/probes/humility.jsonl

# [[bars.probes]]               # refuse a release under which a probe shows less; any of the three
# probe = "humility"
# min_accuracy_millis = 600
# max_distance_millis = 300
# max_worse_than_base_millis = 50
"""


def load_text(path: Path) -> str:
    """Read a charter's text.

    Raises:
        ConfigError: There is none, or it is not UTF-8.
    """
    data = read_bounded(path, MAX_TOML_BYTES, "a charter", error=ConfigError, if_missing="see: commonweal charter new")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: wanted a charter in UTF-8, got {e}") from e


def new_charter(community: str) -> str:
    """Return a first version for a community to write on."""
    text = _FIRST.format(community=_value(community))
    parse_charter(text, "the new charter")
    return text


def parse_charter(text: str, name: str) -> Charter:
    """Parse a charter's text.

    Raises:
        ConfigError: It is no charter.
    """
    return parse_toml(text.encode(), Charter, name)


def next_version(text: str, name: str) -> str:
    """Return the same charter as the next version, which names this one by its digest.

    Raises:
        ConfigError: It is no charter, or ``version`` and ``previous`` do not stand on lines of their own at its top.
    """
    before = parse_charter(text, name)
    lines = f'version = {before.version + 1}\nprevious = "{before.digest()}"'
    top = re.search(r"^\s*\[", text, re.MULTILINE)
    head, rest = (text[: top.start()], text[top.start() :]) if top else (text, "")
    head = re.sub(r"^previous\s*=.*\n", "", head, flags=re.MULTILINE)
    after = re.sub(r"^version\s*=.*$", lines, head, count=1, flags=re.MULTILINE) + rest
    wanted = before.model_copy(update={"version": before.version + 1, "previous": before.digest()})
    if parse_charter(after, name) != wanted:
        raise ConfigError(f"{name}: wanted version on a line of its own before the first table")
    return after


def add_clause(text: str, kind: Kind, clause: Clause, name: str) -> str:
    """Return the charter with one clause more at the end of its kind.

    Raises:
        ConfigError: It is no charter, has a part of that name, or has its principles in one list.
    """
    before = parse_charter(text, name)
    if any(c.id == clause.id for c in before.clauses()):
        raise ConfigError(f"{name}: wanted an id that the charter does not have, got {clause.id} again; give --as ID")
    block = clause_toml(kind, clause)
    try:
        after = parse_charter(f"{text.rstrip()}\n\n{block}", name)
    except ConfigError as e:
        raise ConfigError(
            f"{name}: the clause cannot be added ({e}); wanted clauses as tables, [[{kind}]] with id and text, and not "
            "as a list of texts"
        ) from e
    if getattr(after, kind) != (*getattr(before, kind), clause):
        raise ConfigError(f"{name}: the clause would not be read as it is; wanted [[{kind}]] at the top level")
    return f"{text.rstrip()}\n\n{block}"


def clause_toml(kind: Kind, clause: Clause) -> str:
    """Return a clause as a table of a charter's file."""
    lines = [f"[[{kind}]]", f"id = {_value(clause.id)}", f"text = {_value(clause.text)}"]
    if isinstance(clause, Addendum):
        lines.append(f"role = {_value(clause.role)}")
    if clause.probes:
        lines.append(f"probes = [{', '.join(map(_value, clause.probes))}]")
    for name, tables in (("provenance", clause.provenance), ("dissent", clause.dissent)):
        for table in tables:
            lines += ["", f"[[{kind}.{name}]]", *_pairs(table)]
    return "\n".join(lines) + "\n"


def _pairs(table: BaseModel) -> list[str]:
    lines = []
    for key, value in table.model_dump(mode="json", exclude_none=True).items():
        if isinstance(value, list):
            rows = (", ".join(f"{k} = {_value(v)}" for k, v in row.items()) for row in value)
            lines += [f"{key} = [", *(f"  {{ {row} }}," for row in rows), "]"]
        else:
            lines.append(f"{key} = {_value(value)}")
    return lines


def _value(value: str | int) -> str:
    """A text or a number in TOML, whose escapes are those of JSON but for one character that it wants escaped too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
