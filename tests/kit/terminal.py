"""The program, run in the test's own process: ``tests/conftest.py`` gives the fixture to all."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from commonweal_protocols.cli import run


@dataclass
class Terminal:
    """The program run in this process, and what it has printed."""

    capsys: pytest.CaptureFixture[str]
    out: str = ""
    err: str = ""

    def __call__(self, *args: str | Path) -> int:
        self.capsys.readouterr()
        code = run([str(a) for a in args])
        self.out, self.err = self.capsys.readouterr()
        return code


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "500")
    return Terminal(capsys)
