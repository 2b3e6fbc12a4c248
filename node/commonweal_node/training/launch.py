"""How a process finds the others that a launcher has started with it."""

import os

from commonweal_node.training.team import ALONE, Team


def join_team() -> Team:
    """Meet the other processes that ``accelerate launch`` has started with this one; without a launcher, be alone.

    Raises:
        UnavailableError: The others cannot be met.
    """
    # The launcher says so to whatever it starts, with one process or several.
    if "ACCELERATE_MIXED_PRECISION" not in os.environ and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    # It brings torch and accelerate, which a process alone does not need for this.
    from commonweal_node.training.processes import meet

    return meet()
