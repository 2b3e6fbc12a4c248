"""The arithmetic of adapters, as an auditor has it: from the extra ``recompute``, where that is installed."""

from importlib.metadata import entry_points
from typing import Protocol, cast

from commonweal_protocols.audit import foreign_job, releases


class Recompute(releases.Recompute, foreign_job.Recompute, Protocol):
    """All that ``commonweal_adapters.recompute`` offers to audits."""


def load_recompute() -> Recompute:
    """Return it.

    Raises:
        ModuleNotFoundError: The extra is not installed.
    """
    (point,) = entry_points(group="commonweal.recompute")
    return cast(Recompute, point.load())
