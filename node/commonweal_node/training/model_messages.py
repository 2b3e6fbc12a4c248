"""What a node's daemon and its model process say to each other over two pipes: closed schemas and tensors, no pickle.

A frame is the length of its JSON (4 bytes, big-endian), the length of its tensors (8 bytes), the JSON, and the tensors
as one safetensors file, empty where there are none. Each set of tensors has its number before its names.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue, TypeAdapter
from safetensors.numpy import load, save

from commonweal_adapters.files.delta import GridTensors
from commonweal_node.charter.objective_weights import ObjectiveWeights
from commonweal_node.config import NodeConfig
from commonweal_node.model.blend import BlendWeights
from commonweal_node.model.tensors import Factor
from commonweal_node.probes.probe import Probe
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.compact import Compact, Recipe
from commonweal_protocols.statements.data_manifest import DataManifest

Tensors = Mapping[str, NDArray[Any]] | GridTensors
Half = Literal["tune", "report"]
"""Of the held-out rows: those that choices are made on, and those that are told of."""

_LENGTHS = struct.Struct(">IQ")


class Begin(Closed):
    """Load the base and the rows. The first thing that is asked, once; the answer is :class:`Loaded`."""

    ask: Literal["begin"] = "begin"
    compact: Compact
    config: NodeConfig
    weights: ObjectiveWeights
    home: Path


class Train(Closed):
    """Train from the one set of tensors; the answer is :class:`Done`, with the adapter."""

    ask: Literal["train"] = "train"
    recipe: Recipe
    what: str
    frozen: Factor | None


class Attack(Closed):
    """Measure how well the membership attack does on the one set of tensors; the answer is :class:`Figure`."""

    ask: Literal["attack"] = "attack"


class Measure(Closed):
    """Measure a blend of the two sets of tensors on held-out rows; the answer is :class:`Done`, with the losses."""

    ask: Literal["measure"] = "measure"
    half: Half
    blend: BlendWeights
    what: str


class AskProbe(Closed):
    """Ask a probe under a blend of the two sets of tensors; the answer is :class:`Figure`."""

    ask: Literal["probe"] = "probe"
    probe: Probe
    blend: BlendWeights
    what: str


class Export(Closed):
    """Write a blend of the two sets of tensors as a PEFT folder; the answer is :class:`Done`."""

    ask: Literal["export"] = "export"
    blend: BlendWeights
    directory: Path


class Doing(Closed):
    """What is being done, any number of times before the answer: fields of ``NodeStatus``."""

    tell: Literal["doing"] = "doing"
    fields: dict[str, JsonValue]


class Loaded(Closed):
    """What was loaded."""

    tell: Literal["loaded"] = "loaded"
    num_examples: int
    manifest: DataManifest | None


class Figure(Closed):
    """A figure in millionths, where there is one."""

    tell: Literal["figure"] = "figure"
    micros: int | None


class Done(Closed):
    """It was done; what came of it is the one set of tensors, if there is any."""

    tell: Literal["done"] = "done"


class Failed(Closed):
    """It was not, for a reason that is one of the errors in ``base/errors.py``, by name."""

    tell: Literal["failed"] = "failed"
    error: str
    message: str


Request = Train | Attack | Measure | AskProbe | Export
Reply = Doing | Loaded | Figure | Done | Failed
REQUESTS: TypeAdapter[Begin | Request] = TypeAdapter(Annotated[Begin | Request, Field(discriminator="ask")])
REPLIES: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="tell")])


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One message as it came, and the tensors beside it."""

    text: bytes
    tensors: tuple[Mapping[str, NDArray[Any]], ...]


def write_frame(out: BinaryIO, message: Begin | Request | Reply, *sets: Tensors) -> None:
    """Send a message, and sets of tensors beside it.

    Raises:
        OSError: The other side has ended.
    """
    text = message.model_dump_json().encode()
    named = {f"{i}:{name}": np.ascontiguousarray(x) for i, tensors in enumerate(sets) for name, x in tensors.items()}
    body = save(named) if named else b""
    out.write(_LENGTHS.pack(len(text), len(body)) + text)
    out.write(body)
    out.flush()


def read_frame(source: BinaryIO) -> Frame | None:
    """Wait for a message; None where the other side has ended, be it in the middle of one."""
    head = source.read(_LENGTHS.size)
    if len(head) < _LENGTHS.size:
        return None
    text_bytes, body_bytes = _LENGTHS.unpack(head)
    text, body = source.read(text_bytes), source.read(body_bytes)
    if len(text) < text_bytes or len(body) < body_bytes:
        return None
    sets: list[dict[str, NDArray[Any]]] = []
    for name, x in sorted((load(body) if body else {}).items()):
        number, _, own = name.partition(":")
        if int(number) == len(sets):
            sets.append({})
        sets[int(number)][own] = x
    return Frame(text, tuple(sets))
