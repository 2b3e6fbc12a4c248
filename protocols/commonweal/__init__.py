"""The public face: the names that a program of an auditor, a consortium or a laboratory begins with.

A name is loaded when it is first used, so that importing this package loads nothing heavy.

An auditor re-checks a log, and re-computes its releases where ``recompute`` is given::

    import commonweal
    report = commonweal.audit(commonweal.open_records(records), recompute=commonweal.load_recompute())
    assert report.verdict == "pass"
    print(report.name, report.origin)

A consortium reads its own state from its records::

    import commonweal
    replica = commonweal.replay(commonweal.open_records(records))
    members = [member.institution for member in replica.state.compact.members]
    print(members, replica.size, replica.checkpoint().text())

A laboratory computes the adapter with which a consortium of the same shape begins, to the same bytes::

    import commonweal
    compact = commonweal.replay(commonweal.open_records(records)).state.compact
    start = commonweal.recompute_start(compact.adapter)
    print(compact.adapter.rank, len(start))
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from commonweal_adapters.files.peft_files import load_adapter
    from commonweal_adapters.recompute import recompute_start
    from commonweal_adapters.rules.merge import merge
    from commonweal_protocols.audit.arithmetic import load_recompute
    from commonweal_protocols.audit.audit import audit
    from commonweal_protocols.audit.report import Report
    from commonweal_protocols.audit.verdict import open_verdict
    from commonweal_protocols.records.replay import replay
    from commonweal_protocols.records.source import open_source as open_records
    from commonweal_protocols.statements.charter import CharterRecord
    from commonweal_protocols.statements.compact import Compact
    from commonweal_protocols.statements.statement import Statement, open_entry
    from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint

__all__ = [
    "CharterRecord",
    "Checkpoint",
    "Compact",
    "Report",
    "Statement",
    "audit",
    "load_adapter",
    "load_recompute",
    "merge",
    "open_checkpoint",
    "open_entry",
    "open_records",
    "open_verdict",
    "recompute_start",
    "replay",
]

# Where each name is defined, and under which name there.
_PLACES = {
    "CharterRecord": "commonweal_protocols.statements.charter:CharterRecord",
    "Checkpoint": "commonweal_protocols.tlog.checkpoint:Checkpoint",
    "Compact": "commonweal_protocols.statements.compact:Compact",
    "Report": "commonweal_protocols.audit.report:Report",
    "Statement": "commonweal_protocols.statements.statement:Statement",
    "audit": "commonweal_protocols.audit.audit:audit",
    "load_adapter": "commonweal_adapters.files.peft_files:load_adapter",
    "load_recompute": "commonweal_protocols.audit.arithmetic:load_recompute",
    "merge": "commonweal_adapters.rules.merge:merge",
    "open_checkpoint": "commonweal_protocols.tlog.checkpoint:open_checkpoint",
    "open_entry": "commonweal_protocols.statements.statement:open_entry",
    "open_records": "commonweal_protocols.records.source:open_source",
    "open_verdict": "commonweal_protocols.audit.verdict:open_verdict",
    "recompute_start": "commonweal_adapters.recompute:recompute_start",
    "replay": "commonweal_protocols.records.replay:replay",
}


def __getattr__(name: str) -> object:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = place.partition(":")
    try:
        value: object = getattr(import_module(module), attribute)
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("commonweal"):
            raise  # a fault of ours, which no extra would fix
        wanted = f"commonweal.{name}: the package {e.name!r} is not installed; run: pip install 'commonweal[recompute]'"
        raise ModuleNotFoundError(wanted, name=e.name) from e
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return __all__
