"""The shapes in which people bring rows, turned into this program's own; what is not known to be harmless is a problem.

    {"messages": [{"role", "content", "weight"}, ...]}        as it is
    {"conversations": [{"from", "value"}, ...], "system"}     ShareGPT; the names of a turn's keys may be mixed
    {"instruction", "input", "output", "system"}              Alpaca
    {"prompt", "completion"}                                  texts, or lists of messages: the completion is learnt
    {"user", "assistant", "system"}                           a table's columns
    {"text"}                                                  as it is
    {"prompt", "chosen", "rejected"}                          texts, or lists of messages, with the prompt or without

Beside these a row may have ``group`` (or ``meta.qid``), ``license``, ``split`` and ``meta``. Any other key might change
what the row means (``tools``, ``images``, ``label``), or be the group that must not lie on both sides of a split: it is
an error, unless it is one of :data:`HARMLESS`, says nothing, is mapped to a field, or is to be ignored. No I/O.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from commonweal_node.rows.json_objects import kind_of, shown, text_of
from commonweal_protocols.base.errors import ConfigError

FIELDS = (
    "messages",
    "conversations",
    "text",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "instruction",
    "input",
    "output",
    "system",
    "user",
    "assistant",
    "group",
    "license",
    "split",
    "meta",
)
HARMLESS = frozenset(
    ("id", "idx", "index", "uuid", "source", "url", "dataset", "community", "lang", "language", "tags", "votes",
     "date", "timestamp", "created", "created_at", "updated_at",
     # What pandas calls the numbers of a table's rows.
     "", "Unnamed: 0", "__index_level_0__")
)  # fmt: skip
"""They say where a row is from, and nothing about what is to be learnt of it."""
_SHAPES: dict[str, tuple[str, ...]] = {
    "messages": (),
    "conversations": ("system",),
    "text": (),
    "prompt": ("completion", "chosen", "rejected"),
    "instruction": ("input", "output", "system"),
    "user": ("assistant", "system"),
    "chosen": ("rejected",),
}
"""What makes a shape, and what belongs to it."""
_SPLITS = {
    "train": "train",
    "training": "train",
    "heldout": "heldout",
    "validation": "heldout",
    "valid": "heldout",
    "val": "heldout",
    "dev": "heldout",
    "eval": "heldout",
    "test": "heldout",
}
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
_ANSWERING = ("assistant", "gpt", "chatgpt")


@dataclass(frozen=True, slots=True)
class Columns:
    """What an institution says of its keys or columns."""

    mapping: Mapping[str, str] = field(default_factory=dict)
    """Field to column, where they differ."""
    ignored: frozenset[str] = frozenset()

    def fields(self, names: Iterable[str], where: str) -> dict[str, str]:
        """Return field to column for those of a row or a table.

        Raises:
            ConfigError: A name is neither a field nor known to be harmless, or is there twice.
        """
        names, mapped = list(names), set(self.mapping.values())
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"{where}: wanted each column once, got {shown(twice[0])} twice")
        found = {f: c for f, c in self.mapping.items() if c in names}
        # A field that is mapped to another column is not the column of its own name.
        found |= {c: c for c in names if c in FIELDS and c not in self.mapping and c not in mapped | self.ignored}
        known = {*found.values(), *self.ignored, *HARMLESS}
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(
                f"{where}: wanted fields of a row, got {', '.join(map(shown, unknown[:9]))}, which may change what the "
                "row means; commonweal node data add can be told what a column or key is, --map FIELD=COLUMN (like "
                f"group=patient), or that it is nothing: {' '.join(f'--ignore {shown(u)}' for u in unknown[:9])}"
            )
        return found


AS_NAMED = Columns()


def to_row(values: Mapping[str, object], columns: Columns, where: str) -> dict[str, object]:
    """Return an object as one in this program's own keys, of which each is known.

    Raises:
        ConfigError: It is of no shape or of two, lacks a key that is mapped, or has one that is not known to be
            harmless.
    """
    if missing := [c for c in columns.mapping.values() if c not in values]:
        raise ConfigError(f"{where}: wanted the key {shown(missing[0])} (see --map), got none of that name")
    told = {name: value for name, value in values.items() if not _says_nothing(name, value)}
    return of_fields({f: told[c] for f, c in columns.fields(told, where).items()}, where)


def of_fields(values: Mapping[str, object], where: str) -> dict[str, object]:
    """Return a row's fields as an object in this program's own keys.

    Raises:
        ConfigError: They are of no shape or of two.
    """
    kinds = [k for k in _SHAPES if k in values and not (k == "chosen" and "prompt" in values)]
    if "assistant" in values and "user" not in values:
        kinds.append("user")
    if len(kinds) != 1:
        got = " and ".join(kinds) or "none of them"
        raise ConfigError(
            f"{where}: wanted one of messages, text and prompt (with completion, or with chosen and rejected), or one "
            f"of conversations, instruction and user, got {got}"
        )
    about = {k: values[k] for k in ("license",) if k in values}
    about |= {"split": _split(values["split"], where)} if "split" in values else {}
    meta = _meta(values, where)
    about |= {"meta": meta} if meta else {}
    said = {k: v for k, v in values.items() if k not in ("license", "split", "group", "meta")}
    if beside := [k for k in said if k not in (kinds[0], *_SHAPES[kinds[0]])]:
        raise ConfigError(
            f"{where}: wanted {kinds[0]} with nothing but {', '.join(_SHAPES[kinds[0]]) or 'itself'}, got {beside[0]} "
            f"too; to leave that out: commonweal node data add --ignore {beside[0]}"
        )
    return _body(kinds[0], said, where) | about


def _says_nothing(name: str, value: object) -> bool:
    """Exports write what is not there as null or as nothing; a field that is empty is a mistake, and told as one."""
    return (
        value is None
        or (name not in FIELDS and value in ("", [], {}))
        or (name == "input" and isinstance(value, str) and not value.strip())
    )


def _split(value: object, where: str) -> str:
    found = _SPLITS.get(value) if isinstance(value, str) else None
    if found is None:
        raise ConfigError(
            f"{where}: split: wanted 'train' or 'heldout' (or validation, dev, eval, test: held out), got "
            f"{kind_of(value)}"
        )
    return found


def _meta(values: Mapping[str, object], where: str) -> dict[str, object]:
    meta = values.get("meta", {})
    if not isinstance(meta, dict):
        raise ConfigError(f"{where}: meta: wanted an object, got {kind_of(meta)}")
    groups = {
        group_name(value, f"{where}: {name}")
        for name, value in (("group", values.get("group")), ("meta.qid", meta.get("qid")))
        if value is not None and value != ""
    }
    if len(groups) > 1:
        raise ConfigError(f"{where}: wanted one group, got another one as meta.qid")
    rest = {k: v for k, v in meta.items() if k != "qid"}
    return rest | {"qid": groups.pop()} if groups else rest


def group_name(value: object, where: str) -> str:
    """Return the name of a group. Identifiers are often numbers, and 7 is one whatever holds it: text, 7 or 7.0.

    Raises:
        ConfigError: It is neither text nor a whole number.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        raise ConfigError(f"{where}: wanted a name or a whole number, got another number")
    return text_of(value, where)


def _body(kind: str, values: Mapping[str, object], where: str) -> dict[str, object]:
    match kind:
        case "prompt" if "completion" in values and not values.keys() & {"chosen", "rejected"}:
            asked, answer = values["prompt"], values["completion"]
            turns = _context(asked) if isinstance(asked, list) else [_turn("user", asked)]
            return {"messages": turns + (answer if isinstance(answer, list) else [_turn("assistant", answer)])}
        case "prompt" | "chosen" if "completion" not in values:
            return _preference(values, where)
        case "prompt":
            raise ConfigError(f"{where}: wanted completion, or chosen and rejected, got both")
        case "conversations":
            return {"messages": _with_system(values, values["conversations"])}
        case "instruction":
            asked = values["instruction"]
            if "input" in values:
                parts = [text_of(values[k], f"{where}: {k}") for k in ("instruction", "input")]
                asked = "\n\n".join(parts)
            return {"messages": _with_system(values, [_turn("user", asked), _turn("assistant", values.get("output"))])}
        case "user":
            turns = [_turn(role, values.get(role)) for role in ("user", "assistant")]
            return {"messages": _with_system(values, turns)}
        case _:
            return dict(values)


def _turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def _with_system(values: Mapping[str, object], turns: object) -> object:
    return [_turn("system", values["system"]), *turns] if "system" in values and isinstance(turns, list) else turns


def _context(turns: list[object]) -> list[object]:
    """A prompt's turns: answers among them are given, and not to be learnt."""
    return [
        {"weight": 0, **t} if isinstance(t, dict) and t.get("role", t.get("from")) in _ANSWERING else t for t in turns
    ]


def _preference(values: Mapping[str, object], where: str) -> dict[str, object]:
    """Two answers to one question: as texts, or as messages that hold the question, or go on from it."""
    prompt, chosen, rejected = (values.get(k) for k in ("prompt", "chosen", "rejected"))
    if not any(isinstance(v, list) for v in (prompt, chosen, rejected)):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    before = _said(prompt, "user", f"{where}: prompt")
    good, bad = (_said(v, "assistant", f"{where}: {k}") for k, v in (("chosen", chosen), ("rejected", rejected)))
    if before and (good[0][0], bad[0][0]) == ("assistant", "assistant"):
        good, bad = before + good, before + bad
    for said in (good, bad):
        if [role for role, _ in said] != ["user", "assistant"] or said[0] != (before or good)[0]:
            raise ConfigError(
                f"{where}: wanted two answers to one question, a user's turn and an assistant's in each, got more or "
                "other turns: a preference is over one turn"
            )
    return {"prompt": good[0][1], "chosen": good[1][1], "rejected": bad[1][1]}


def _said(value: object, role: str, where: str) -> list[tuple[str, str]]:
    if value is None and role == "user":
        return []
    turns = value if isinstance(value, list) else [_turn(role, value)]
    if not turns:
        raise ConfigError(f"{where}: wanted messages, got none")
    read = [read_turn(t, f"{where}[{i}]") for i, t in enumerate(turns)]
    if not all(learnt for _, _, learnt in read):
        raise ConfigError(f"{where}: wanted turns without a weight, got weight 0: an answer is preferred or it is not")
    return [(role, content) for role, content, _ in read]


def read_turn(value: object, where: str) -> tuple[str, str, bool]:
    """Return a turn's role and content, and whether it is to be learnt where the assistant speaks.

    Raises:
        ConfigError: It is none, or has a key that is not known to be harmless.
    """
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: wanted an object with role and content, got {kind_of(value)}")
    said, of_role = ("value", "from") if "from" in value and "role" not in value else ("content", "role")
    known = {said, of_role, "weight", *HARMLESS}
    if unknown := [k for k, v in value.items() if k not in known and not _says_nothing(k, v)]:
        raise ConfigError(
            f"{where}: wanted role, content and weight, got {shown(unknown[0])}, which may change what the turn means "
            "(tool calls and thoughts beside the content are not trained on); take it out, or leave the row out"
        )
    role = value.get(of_role)
    role = _ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ("system", "user", "assistant"):
        raise ConfigError(f"{where}.{of_role}: wanted 'system', 'user' or 'assistant', got {kind_of(role)}")
    weight = value.get("weight")
    if isinstance(weight, bool) or weight not in ((None, 0, 1) if role == "assistant" else (None, 0)):
        raise ConfigError(
            f"{where}.weight: wanted 0 or 1 on the assistant's turn, and none on another, got {kind_of(weight)}"
        )
    return role, _content(value.get(said), f"{where}.{said}"), role != "assistant" or weight != 0


def _content(value: object, where: str) -> str:
    if not isinstance(value, list):
        return text_of(value, where)
    # Parts, as vision models have them: templates write text parts one after another.
    texts = []
    for i, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or _beside(part, ("type", "text")):
            raise ConfigError(f"{where}[{i}]: wanted a part of type text, with its text alone, got another")
        texts.append(text_of(part.get("text"), f"{where}[{i}].text"))
    return text_of("".join(texts), where)


def _beside(value: Mapping[str, object], known: Collection[str]) -> bool:
    return any(k not in known and not _says_nothing(k, v) for k, v in value.items())
