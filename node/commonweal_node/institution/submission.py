"""Having a signed statement logged: the one way, for the daemon and for the commands beside it.

What was submitted counts as logged only with a proof that the consortium's policy accepts, and the proof is kept:
nobody can later say that it never was.
"""

from collections.abc import Callable
from pathlib import Path

from commonweal_node.institution.answer_store import Answers
from commonweal_protocols.records.follower import Follower
from commonweal_protocols.statements.values import Digest
from commonweal_protocols.tlog.merkle import leaf_hash
from commonweal_protocols.tlog.proof import open_cosigned_proof


def submit(envelope: bytes, send: Callable[[bytes], bytes], follower: Follower, home: Path) -> Digest:
    """Submit an envelope, check the proof that comes back, and keep it; returns the entry's leaf hash.

    Args:
        envelope: What was signed.
        send: Has it logged; returns its proof.
        follower: Of the log; it has seen the entry afterwards.
        home: The node's, where receipts are kept.

    Raises:
        PeerError: It is refused, or what comes back is no proof under the consortium's policy.
        LocalError: No answer; or the proof cannot be kept.
    """
    proof = send(envelope)
    # First, because the proof is to be judged by the compact that is in force at its checkpoint.
    follower.sync()
    open_cosigned_proof(proof, envelope, follower.policy)
    leaf = leaf_hash(envelope).hex()
    Answers(home, follower.state.compact.adapter).save_receipt(leaf, proof)
    return leaf
