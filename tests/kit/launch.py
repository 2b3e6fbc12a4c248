"""Processes started together: by the stock launcher, or by hand with the environment that it would give them."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCHER = str(Path(sys.executable).with_name("accelerate"))


def environment(home: Path) -> dict[str, str]:
    """This one's, without an operator's own settings of the launcher."""
    return os.environ | {"HF_HOME": str(home / "hf"), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def free_port() -> int:
    """One of those that the kernel gives away itself: no federation of the tests is about to take it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def launch(home: Path, processes: int, *module: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a module to its end with ``accelerate launch``."""
    command = [LAUNCHER, "launch", "--num_processes", str(processes), "--num_machines", "1"]
    # On a machine without several GPUs it has to be told that several processes are meant.
    command += ["--multi_gpu", "--main_process_port", str(free_port())] if processes > 1 else ["--cpu"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", *map(str, module)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(home), capture_output=True, text=True, check=False, timeout=200
    )


def start(home: Path, *modules: Sequence[str | Path]) -> list[subprocess.Popen[str]]:
    """Start one process for each module and its arguments, with nobody above them who would end one with the other."""
    port = free_port()
    started = []
    for rank, module in enumerate(modules):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(modules), "LOCAL_WORLD_SIZE": len(modules)}
        env = environment(home) | {k: str(v) for k, v in place.items()}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", *map(str, module)], cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE
            )
        )
    return started
