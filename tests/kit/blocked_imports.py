"""Code run in a process that cannot import a heavy package."""

import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "numpy", "safetensors", "grpc", "flwr", "google.protobuf")
_BLOCKED = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == h or name.startswith(h + ".") for h in {HEAVY!r}):
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Block())
"""


def run_blocked(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _BLOCKED + code], capture_output=True, text=True, check=False)
