"""Small Flower ClientApps, for a node to train with: one that does its work, and some that do not."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

no_app = "a text"
good = ClientApp()
crash = ClientApp()
garbage = ClientApp()
error = ClientApp()
endless = ClientApp()


def _reply(message: Message, arrays: dict[str, np.ndarray], metrics: dict[str, float]) -> Message:
    record = ArrayRecord({name: Array(values) for name, values in arrays.items()})
    return Message(RecordDict({"arrays": record, "metrics": MetricRecord(metrics)}), reply_to=message)


def _start(message: Message) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in message.content["arrays"].items()}


@good.train()
def _good(message: Message, context: Context) -> Message:
    """Move the factors that run_config names by the learning rate; report what there was to see."""
    config, moved = message.content["config"], str(context.run_config["moves"])
    arrays = {
        name: values + np.float32(config["learning-rate"]) * any(f".lora_{f}." in name for f in moved)
        for name, values in _start(message).items()
    }
    lines = Path(str(context.node_config["data-path"])).read_bytes().splitlines()
    seen = {
        "num-examples": len(lines),
        "heldout-examples": sum(b"heldout" in line for line in lines),
        "steps": config["steps"],
        "base-files": len(list(Path(str(context.node_config["base-path"])).iterdir())),
        "secrets": sum("hush" in value for value in os.environ.values()),
        "keys-here": len(list(Path.cwd().glob("**/*.pem"))),
    }
    return _reply(message, {n: v.astype(np.float32) for n, v in arrays.items()}, seen)


@crash.train()
def _crash(message: Message, context: Context) -> Message:
    print("loading the examples")
    raise RuntimeError("the wells are dry")


@garbage.train()
def _garbage(message: Message, context: Context) -> Message:
    arrays = _start(message)
    first = next(iter(arrays))
    match context.run_config["kind"]:
        case "names":
            arrays["other"] = arrays.pop(first)
        case "shape":
            arrays[first] = arrays[first].T.copy()
        case "dtype":
            arrays[first] = arrays[first].astype(np.float64)
        case "nan":
            arrays[first] = np.full_like(arrays[first], np.nan)
        case "size":
            arrays["more"] = np.zeros(1 << 20, np.float32)
    return _reply(message, arrays, {})


@error.train()
def _error(message: Message, context: Context) -> Message:
    return Message(Error(code=7, reason="not today"), reply_to=message)


@endless.train()
def _endless(message: Message, context: Context) -> Message:
    """Say who runs, with a child of its own, and never end."""
    child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    print(f"running {os.getpid()} {child.pid} .", flush=True)
    threading.Event().wait()
    return message
