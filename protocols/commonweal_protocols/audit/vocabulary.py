"""What audits call things, in plain words: one vocabulary for the page, the terminal and the story. Pure."""

from commonweal_protocols.statements.adoption import ProbeResult
from commonweal_protocols.statements.data_manifest import DataManifest
from commonweal_protocols.statements.governance import Amendment, Choice, Proposal, Question, Recall, Resolution
from commonweal_protocols.statements.rounds import ForeignRelease, Update

RESULTS = {"passed": "carried", "failed": "lost", "tied": "tied, and nothing is decided"}
"""What became of a motion."""
STAGES = {"open": "open: ballots are taken", "opening": "sealed ballots are being opened", "closed": "over"}
WEIGHTS = {
    "equal": "count equally",
    "examples": "count by their number of examples",
    "capped": "count by their number of examples, each up to a fixed share of the whole",
    "minimax-fair": "count the more, the worse the shared adapter has served their community",
}
"""How the contributions to a round weigh."""
_DID = {
    "adopt": "uses {}",
    "blend": "blends {} with its own",
    "refuse": "does not use {}",
    "contribution": "contributed {}, for that consortium",
}


def describe_deed(did: str, release: str = "it") -> str:
    """Return what an institution did with a release: what it decided, or that it contributed another consortium's."""
    return _DID[did].format(release)


def describe_proposal(proposal: Proposal) -> str:
    """Return what is proposed, in words."""
    match proposal:
        case Amendment():
            return f"that the statement {proposal.compact.sha256[:16]}… be the compact's next version"
        case Recall(institution=None):
            return f"that the release of round {proposal.round} be withdrawn"
        case Recall():
            return f"that the update of {proposal.institution} be taken out of the release of round {proposal.round}"
        case Resolution():
            return f"to resolve “{proposal.text}”"
        case Question():
            listed = "; ".join(f"{i}: {a}" for i, a in enumerate(proposal.alternatives))
            return f"to decide “{proposal.text}” ({listed})"


def describe_choice(proposal: Proposal, choice: Choice) -> str:
    """Return a choice in words."""
    if isinstance(choice, str) or not isinstance(proposal, Question):
        return str(choice)
    return " before ".join(proposal.alternatives[a] for a in choice)


def describe_training(update: Update) -> str:
    """Return what an update says of the rows behind it, in words."""
    told = f"from {update.num_examples} examples"
    if update.release is not None:
        told = f"as {describe_foreign(update.release)} made {told}"
    if update.data_leaf is not None:
        told += f" of the data manifest {update.data_leaf[:16]}…"
    if update.membership_auc_micros is not None:
        told += f", membership AUC {update.membership_auc_micros / 1e6:.3f}"
    return told


def describe_foreign(release: ForeignRelease) -> str:
    """Return where another consortium's release is, in words."""
    return (
        f"the release of round {release.round} of the consortium {release.consortium[:16]}… (entry "
        f"{release.release_leaf[:16]}… of {release.at.origin}, seen at {release.at.size} entries)"
    )


def describe_manifest(manifest: DataManifest) -> str:
    """Return what a data manifest counts, in words."""
    taken, left = manifest.taken, manifest.left
    stages = ", ".join(s.stage for s in manifest.stages)
    return (
        f"of {taken.conversations + taken.texts + taken.preferences} rows, {left.train_rows} train and "
        f"{left.heldout_rows} are held out, {left.synthetic} of them synthetic; stages: {stages}"
    )


def describe_probe(p: ProbeResult) -> str:
    """Return what a probe measured, in words."""
    measured = (
        ("base", p.base_micros),
        ("own", p.local_micros),
        ("shared", p.shared_micros),
        ("blend", p.blend_micros),
    )
    figures = ", ".join(f"{what} {micros / 1e6:.3f}" for what, micros in measured)
    return f"{p.probe} ({p.measure} of {p.items} items: {figures})"
