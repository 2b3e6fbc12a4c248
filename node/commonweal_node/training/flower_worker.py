"""The process in which a Flower ClientApp trains: the only module that imports Flower, by its public API alone.

``python -m commonweal_node.training.flower_worker PARENT``, in the working folder that ``flower_trainer`` made; PARENT
is the node's process ID. It sends the app one message of type "train" and writes down the reply. With an app's name as
a second argument it only imports that.
"""

import json
import math
import sys
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from flwr.app import (
    DEFAULT_TTL,
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file, save_file

from commonweal_node.training.child import die_with
from commonweal_node.training.flower_trainer import (
    EXAMPLES,
    MAX_REQUEST_BYTES,
    METRICS,
    NOT_FOUND,
    REQUEST,
    RESULT,
    START,
    Request,
)
from commonweal_protocols.base.files import read_bounded

_NODE, _SERVER = 1, 0


def _load_app(name: str) -> ClientApp | None:
    """Import the app; None, with the reason printed, where there is none of that name."""
    module, _, attribute = name.partition(":")
    try:
        app = getattr(import_module(module), attribute)
    except (ImportError, AttributeError):
        traceback.print_exc()
        return None
    if not isinstance(app, ClientApp):
        print(f"wanted a flwr.clientapp.ClientApp, got {type(app).__name__}", file=sys.stderr)
        return None
    return app


def _message(request: Request) -> Message:
    spec, recipe = request.adapter, request.recipe
    start = {name: Array(values) for name, values in load_file(START).items()}
    config = {
        "steps": recipe.steps,
        "batch-size": recipe.batch_size,
        "learning-rate": recipe.learning_rate_micros / 1e6,
        "max-tokens": recipe.max_tokens,
        "seed": request.seed,
        "rank": spec.rank,
        "alpha": spec.alpha,
        "use-rslora": spec.scaling == "rslora",
        "target-modules": [m.name for m in spec.modules],
        "frozen": request.frozen or "",
    }
    metadata = Metadata(
        run_id=1,
        message_id="1",
        src_node_id=_SERVER,
        dst_node_id=_NODE,
        reply_to_message_id="",
        group_id="1",
        created_at=time.time(),
        ttl=DEFAULT_TTL,
        message_type=MessageType.TRAIN,
    )
    return Message(
        content=RecordDict({"arrays": ArrayRecord(start), "config": ConfigRecord(config)}), metadata=metadata
    )


def _context(request: Request) -> Context:
    """Return what a SuperNode would tell of this node: all of its data is one partition."""
    return Context(
        run_id=1,
        node_id=_NODE,
        node_config={
            "data-path": str(Path(EXAMPLES).absolute()),
            "base-path": str(request.base),
            "partition-id": 0,
            "num-partitions": 1,
        },
        state=RecordDict(),
        run_config=dict(request.run_config),
    )


def _figures(records: dict[str, MetricRecord]) -> Iterator[tuple[str, float]]:
    """Yield every figure by its name; of a list the last one."""
    for metrics in records.values():
        for name, value in metrics.items():
            last = value[-1] if isinstance(value, list) and value else value
            if isinstance(last, int | float) and math.isfinite(last):
                yield name, float(last)


def _train(app: ClientApp, request: Request) -> None:
    """Have the app train once, and write down what it returns."""
    reply = app(_message(request), _context(request))
    if reply.has_error():
        sys.exit(f"the app replied with error {reply.error.code}: {reply.error.reason}")
    arrays = list(reply.content.array_records.values())
    if len(arrays) != 1:
        sys.exit(f"wanted one ArrayRecord in the reply, got {len(arrays)}")
    Path(METRICS).write_text(json.dumps(dict(_figures(dict(reply.content.metric_records)))))
    save_file({name: array.numpy() for name, array in arrays[0].items()}, RESULT)


def main(parent: int, name: str = "") -> int:
    """Import the app of this name, or train with the one that is asked for; return the exit status."""
    die_with(parent)
    if name:
        return NOT_FOUND if _load_app(name) is None else 0
    request = Request.model_validate_json(read_bounded(Path(REQUEST), MAX_REQUEST_BYTES, "a request"))
    app = _load_app(request.app)
    if app is None:
        return NOT_FOUND
    _train(app, request)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
