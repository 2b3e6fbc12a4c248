"""Files that people write: TOML into one closed, frozen model. Anything unknown or out of range is an error."""

import json
import logging
import tomllib
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.files import read_bounded

log = logging.getLogger(__name__)
Model = TypeVar("Model", bound=BaseModel)
MAX_TOML_BYTES = 1 << 20
_MAX_ERRORS = 20


def describe(error: ValidationError) -> str:
    """Say the first thing that is wrong: where, what was wanted, and what was got."""
    return _sentence(error.errors(include_url=False)[0])


def _sentence(error: ErrorDetails) -> str:
    # Of a value with several forms pydantic names the form that it tried, with brackets: nobody wrote that.
    where = ".".join(str(p) for p in error["loc"] if "[" not in str(p))
    if error["type"] == "value_error":
        # One of our own validators: it says what was wanted and got itself, and its input is the whole model.
        return f"{where}: {error['ctx']['error']}" if where else str(error["ctx"]["error"])
    # Of a key that is missing the input is all that stands beside it.
    got = "" if error["type"] == "missing" else f", got {str(error.get('input'))[:80]!r}"
    return f"{where or 'the whole'}: {error['msg']}{got}"


def _known_keys(model: type[BaseModel], table: tuple[int | str, ...]) -> str:
    """Which keys a table of a file may have, for an error; nothing where it has one of several forms."""
    for name in table:
        field = model.model_fields.get(str(name))
        forms = [f for f in (field.annotation, *get_args(field.annotation)) if isinstance(f, type)] if field else []
        models = [form for form in forms if issubclass(form, BaseModel)]
        if len(models) != 1:
            return ""
        model = models[0]
    return f"; wanted one of {', '.join(sorted(model.model_fields))}"


def _everything_wrong(error: ValidationError, model: type[BaseModel], name: str) -> str:
    """Return a line for each thing that is wrong with a file; of a key that there is not, with those that there are."""
    return "\n".join(
        f"{name}: {_sentence(e)}{_known_keys(model, e['loc'][:-1]) if e['type'] == 'extra_forbidden' else ''}"
        for e in error.errors(include_url=False)[:_MAX_ERRORS]
    )


def parse_toml(data: bytes, model: type[Model], name: str, *, retired: frozenset[str] = frozenset()) -> Model:
    """Parse TOML as ``model``, a closed pydantic model with units in its fields' names. ``name`` is for messages.

    Keys that are ``retired`` are passed over with a warning, so that a home of an earlier version starts.

    Raises:
        ConfigError: It is too large, is not TOML, has an unknown key, or a value is out of range; all of that at once.
    """
    if len(data) > MAX_TOML_BYTES:
        raise ConfigError(f"{name}: wanted at most {MAX_TOML_BYTES} bytes, got more")
    try:
        table = tomllib.loads(data.decode("utf-8"))
        for key in sorted(retired & table.keys()):
            log.warning("%s: %s is no longer used; remove the line", name, key)
            del table[key]
        # Through JSON, where a strict model takes a list for a tuple, text for a path, and nothing else for anything.
        # TOML also has dates, which no setting is: as a table of their own they are refused by the key's name.
        return model.model_validate_json(json.dumps(table, default=lambda date: {"date": str(date)}))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{name}: wanted TOML, got: {e}") from e
    except ValidationError as e:
        raise ConfigError(_everything_wrong(e, model, name)) from e


def load_toml(path: Path, model: type[Model], *, if_missing: str = "", retired: frozenset[str] = frozenset()) -> Model:
    """Read a TOML file as ``model``.

    Args:
        path: The file.
        model: A closed pydantic model; units are in its fields' names.
        if_missing: What to do where there is no such file; for people.
        retired: Keys of earlier versions, which are passed over with a warning.

    Raises:
        ConfigError: It cannot be read, is not TOML, has an unknown key, or a value is out of range.
    """
    data = read_bounded(path, MAX_TOML_BYTES, "a TOML file", error=ConfigError, if_missing=if_missing)
    return parse_toml(data, model, str(path), retired=retired)
