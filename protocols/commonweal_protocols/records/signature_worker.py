"""A process that checks signatures for the one that started it, until its standard input ends: no clock, no files.

It reads pickled lists of claims, and answers each with a byte for each claim: 1 if every signature holds, 0 if not.
Nothing is parsed here: only signatures and the bytes that they are on arrive, from the process that started this one.
"""

import os
import pickle
import signal
import sys
from collections.abc import Sequence

from commonweal_protocols.base.ed25519 import holds

Claim = tuple[bytes, Sequence[tuple[bytes, bytes]]]
"""A message, and who is said to have signed it: keys (32 bytes) and signatures (64 bytes)."""


def answer(claims: Sequence[Claim]) -> bytes:
    """Return the answer to a list of claims."""
    return bytes(all(holds(key, value, message) for key, value in signatures) for message, signatures in claims)


def main() -> None:
    """Answer until there is no more to read, or nobody to tell."""
    # Ctrl-C reaches the whole group of processes; anyone who started this one ends it by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # All workers wait for the one process that started them, so it comes first where they share a core.
    os.nice(1)
    try:
        while True:
            claims = pickle.load(sys.stdin.buffer)  # noqa: S301 - of the process that started this one
            sys.stdout.buffer.write(answer(claims))
            sys.stdout.buffer.flush()
    except (EOFError, pickle.UnpicklingError):
        # The end, or a list that is cut off: its writer has died.
        pass
    except BrokenPipeError:
        # Nor may the interpreter's own flush at the end complain of it.
        sys.stdout = None


if __name__ == "__main__":
    main()
