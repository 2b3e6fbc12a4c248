"""A node at rest gives back the memory that its work has left."""

import subprocess
import sys

import pytest

_PROGRAM = """
import psutil, torch
from commonweal_node.model.lora import _keep_freed_memory, give_back_memory
rss = lambda: psutil.Process().memory_info().rss >> 20
_keep_freed_memory()
torch.ones(10)
before = rss()
held = [torch.ones(1 << 20) for _ in range(64)]
at_work = rss()
del held
kept = rss()
give_back_memory()
print(at_work - before, kept - before, rss() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_work_has_freed_is_kept_for_the_next_step_and_given_back_at_rest() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    at_work, kept, at_rest = map(int, done.stdout.split())
    assert at_work >= 250, "64 tensors of 4 MiB"
    assert kept >= 250
    assert at_rest < 30
