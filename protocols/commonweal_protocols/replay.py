"""Replaying a whole log from its public records: for a look at a consortium, where an audit's report is not wanted."""

from commonweal_protocols.records import Source, read_checkpoint, read_entries, unverified_size
from commonweal_protocols.replica import Replica


def replay(source: Source) -> Replica:
    """Return the replica of all published entries, verified one by one and against the signed checkpoint.

    Raises:
        PeerError: The log breaks its compact or its signatures; or there is none.
        LocalError: The records cannot be read now.
    """
    note = read_checkpoint(source)
    replica = Replica()
    # The size is only a bound on how much to read: the signed root decides whether it was true.
    for data in read_entries(source, 0, unverified_size(note)):
        replica.add(data)
    replica.check_checkpoint(replica.policy.open(note).checkpoint)
    return replica
