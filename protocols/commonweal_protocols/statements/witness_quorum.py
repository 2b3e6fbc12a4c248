"""The tlog-policy that a compact makes: its log, its witnesses, and how many of them a checkpoint needs. Pure."""

from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.tlog.cosignature import parse_cosigner_vkey
from commonweal_protocols.tlog.note import parse_vkey
from commonweal_protocols.tlog.policy import NO_QUORUM, Group, Policy, PolicyLog, PolicyWitness

_GROUP = "quorum-of-witnesses"


def policy_of(compact: Compact) -> Policy:
    """Return the policy under which this consortium's checkpoints are believed.

    Raises:
        MalformedError: A vkey is none, a public key stands twice, or the log would be its own witness.
    """
    witnesses = tuple(PolicyWitness(w.name, parse_cosigner_vkey(w.vkey), w.url) for w in compact.witnesses)
    wanted = compact.quorum.witnesses
    groups = (Group(_GROUP, wanted, tuple(w.name for w in witnesses)),) if wanted else ()
    coordinator = compact.coordinator
    second = parse_cosigner_vkey(coordinator.post_quantum) if coordinator.post_quantum else None
    log = PolicyLog(parse_vkey(coordinator.log), post_quantum=second)
    return Policy((log,), witnesses, groups, _GROUP if wanted else NO_QUORUM)
