"""Between the log and the witnesses that its compact names: what :mod:`log` calls between apply and publish.

A log's own post-quantum line (ML-DSA-44, C2SP tlog-cosignature under the log's name) is made here too, since it states
a time as cosignatures do. Witnesses are not sent it: they know the log by its Ed25519 key.
"""

import logging
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from commonweal_protocols.base.errors import UnavailableError
from commonweal_protocols.tlog.checkpoint import Checkpoint
from commonweal_protocols.tlog.cosignature import cosign
from commonweal_protocols.tlog.policy import Policy
from commonweal_protocols.witness.client import Collector

log = logging.getLogger(__name__)

DEADLINE_SECONDS = 5.0
"""The most that a batch waits for its quorum; after that its senders are told, and may send again."""
LINGER_SECONDS = 0.05
"""How much longer witnesses beyond the quorum get: their lines count in stricter policies than ours."""


class Cosigner:
    """Has checkpoints cosigned under a policy; satisfies ``log.Cosign``. One call at a time.

    A policy without a quorum wants nobody, and the note comes back with what its witnesses have given in time. Before
    there is a policy, nobody knows who would have to sign, and nothing is published.
    """

    def __init__(
        self, policy: Policy | None, second: MLDSA44PrivateKey | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            policy: Whose cosignatures are wanted; None: that is not known yet.
            second: The log's own post-quantum key, if it has one.
            clock: Seconds since the epoch; its line states this time.

        Raises:
            ConfigError: A witness's address cannot be used.
        """
        self._collector = Collector(policy) if policy else None
        self._second = second
        self._clock = clock
        self._missing: frozenset[str] = frozenset()

    def __call__(self, checkpoint: Checkpoint, note: bytes, path_from: Callable[[int], list[bytes]]) -> bytes:
        """Return the note with its cosignatures.

        Raises:
            UnavailableError: The quorum is not met in time; says which witness answered what.
        """
        if self._collector is None:
            raise UnavailableError("witnesses: wanted the compact in force first, which names them; it is not read yet")
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
        if self._second is not None:
            note += cosign(checkpoint, checkpoint.origin, self._second, at=int(self._clock())).encode()
        return collected.append_to(note)

    def set_policy(self, policy: Policy) -> None:
        """Ask under another policy from the next call on. Thread-safe.

        Raises:
            ConfigError: An address in it cannot be used; the policy is as it was.
        """
        if self._collector is None:
            self._collector = Collector(policy)
        else:
            self._collector.set_policy(policy)

    def close(self) -> None:
        """Close the connections."""
        if self._collector is not None:
            self._collector.close()
