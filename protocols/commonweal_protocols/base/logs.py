"""How every daemon writes its log: a line each on stderr, with time, level and who says it."""

import logging


def log_to_stderr() -> None:
    """Begin to log; called once, by a process's command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # It tells of every request of the hub's client.
    logging.getLogger("httpx").setLevel(logging.WARNING)
