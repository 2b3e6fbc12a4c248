"""The public records that an invite leads to, as a command reads them, beside a daemon that may run there too."""

from pathlib import Path

from commonweal_node.home import NodeHome
from commonweal_protocols.base.files import write_atomic
from commonweal_protocols.records.follower import Follower
from commonweal_protocols.records.source import HttpSource
from commonweal_protocols.statements.invite import Invite


def open_records(home: Path, invite: Invite) -> tuple[Follower, HttpSource]:
    """Return a consortium's log, to be followed from what was last seen of it here, and its source; nothing is read.

    Raises:
        LocalError: The invite's authority is none, or cannot be written down.
    """
    ca = NodeHome(home).ca_of(invite.ca_pem)
    write_atomic(ca, invite.ca_pem.encode())
    source = HttpSource(invite.records, ca)
    return Follower(source, invite.consortium, NodeHome(home).memory), source
