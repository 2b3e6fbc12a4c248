"""Between the log and the witnesses that its compact names: what :mod:`log` calls between apply and publish."""

import logging
from collections.abc import Callable

from commonweal_protocols.checkpoint import Checkpoint
from commonweal_protocols.errors import UnavailableError
from commonweal_protocols.policy import Policy
from commonweal_protocols.witness_client import Collector

log = logging.getLogger(__name__)

DEADLINE_SECONDS = 5.0
"""The most that a batch waits for its quorum; after that its senders are told, and may send again."""
LINGER_SECONDS = 0.05
"""How much longer witnesses beyond the quorum get: their lines count in stricter policies than ours."""


class Cosigner:
    """Has checkpoints cosigned under a policy; satisfies ``log.Cosign``. One call at a time."""

    def __init__(self, policy: Policy) -> None:
        self._collector = Collector(policy)
        self._missing: frozenset[str] = frozenset()

    def __call__(self, checkpoint: Checkpoint, note: bytes, path_from: Callable[[int], list[bytes]]) -> bytes:
        """Return the note with its cosignatures.

        Raises:
            UnavailableError: The quorum is not met in time; says which witness answered what.
        """
        collected = self._collector.collect(
            note, lambda old, _: path_from(old), deadline_seconds=DEADLINE_SECONDS, linger_seconds=LINGER_SECONDS
        )
        errors = "; ".join(f"{name}: {e}" for name, e in sorted(collected.errors.items()))
        if not collected.is_quorum:
            raise UnavailableError(
                f"witnesses: wanted a quorum for size {checkpoint.size}, got {len(collected.cosignatures)}"
                f" ({errors or 'no answer in time'}); the same entry may be sent again"
            )
        # A witness that stays away is said once, not with every batch.
        if (missing := frozenset(collected.errors)) != self._missing:
            self._missing = missing
            log.warning("witnesses: %s", errors or "all of them answer again")
        return collected.append_to(note)

    def close(self) -> None:
        """Close the connections."""
        self._collector.close()
