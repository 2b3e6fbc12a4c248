"""A signature worker that is another program than the one that should run."""

import sys
from pathlib import Path

import pytest


def worker_that(does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have another program run where the worker should."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport sys\n{does}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
