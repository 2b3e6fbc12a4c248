"""A policy as text: ``parse_policy`` the other way round."""

from commonweal_protocols.tlog.note import encode_vkey
from commonweal_protocols.tlog.policy import Policy


def format_policy(policy: Policy) -> str:
    """The shortest text of a policy whose logs have one key each: for the second one the format has no word."""
    lines = [_join("log", encode_vkey(x.verifier.name, x.verifier.key), x.url) for x in policy.logs]
    lines += [_join("witness", x.name, x.verifier.vkey, x.url) for x in policy.witnesses]
    for group in policy.groups:
        n = len(group.members)
        rule = "all" if group.threshold == n else "any" if group.threshold == 1 else str(group.threshold)
        lines.append(_join("group", group.name, rule, *group.members))
    return "\n".join([*lines, _join("quorum", policy.quorum)]) + "\n"


def _join(*words: str | None) -> str:
    return " ".join(w for w in words if w is not None)
