"""A compact signed by members, and another coordinator that continues the log."""

from commonweal_coordinator.succession.draft_signatures import Draft
from commonweal_protocols.statements.compact import Coordinator
from commonweal_protocols.statements.envelope import format_envelope, sign
from commonweal_protocols.tlog.note import format_vkey
from tests.kit.federation import key_of

OTHER = "log.test/other"
LOG_KEY = key_of("other log")


def signed(founding: Draft, *names: str) -> bytes:
    return format_envelope(founding.payload, [sign(founding.payload, key_of(n)) for n in names])


def heir(name: str = "heir") -> Coordinator:
    log = format_vkey(OTHER, LOG_KEY.public_key().public_bytes_raw())
    key = key_of(name).public_key().public_bytes_raw().hex()
    return Coordinator(name=name, key=key, log=log)
