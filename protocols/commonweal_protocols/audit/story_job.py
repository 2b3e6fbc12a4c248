"""Reading a log for its story, and writing the story down so that every claim can be checked by itself.

A claim comes with its entry (the DSSE envelope as it stands in the log) and a tlog-proof of it under the log's newest
cosigned checkpoint: anyone who knows the log's key and its witnesses needs nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from commonweal_protocols.audit.page_style import STYLE
from commonweal_protocols.audit.story import Claim, tell
from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import Json
from commonweal_protocols.base.html import Html, el, facts, foreign, page
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.source import Source, read_checkpoint, read_entries, unverified_size
from commonweal_protocols.statements.statement import Entry
from commonweal_protocols.tlog.proof import format_proof

FORMAT = "urn:commonweal:story:v1"


@dataclass(frozen=True, slots=True)
class Story:
    """A verified log, and what it tells."""

    replica: Replica
    note: bytes
    """The signed checkpoint of exactly these entries."""
    entries: tuple[bytes, ...]
    claims: tuple[Claim, ...]

    def proof(self, claim: Claim) -> bytes:
        """Return the tlog-proof of a claim's entry."""
        return format_proof(claim.index, self.replica.tree.inclusion_path(claim.index, self.replica.size), self.note)


def read_story(source: Source) -> Story:
    """Replay a log from its public records, verified as an audit does, and tell what happened.

    Raises:
        PeerError: The log breaks its compact or its signatures; or there is none.
        LocalError: The records cannot be read now.
    """
    note, replica = read_checkpoint(source), Replica()
    entries: list[bytes] = []
    history: list[tuple[Entry, State]] = []
    # The size is only a bound on how much to read: the signed root decides whether it was true.
    for data in read_entries(source, 0, unverified_size(note)):
        entry = replica.add(data)
        entries.append(data)
        history.append((entry, replica.state))
    replica.check_checkpoint(replica.policy.open(note).checkpoint)
    return Story(replica, note, tuple(entries), tuple(tell(history)))


def story_json(stories: Iterable[Story]) -> bytes:
    """Return some logs' stories in one encoding (RFC 8785), and a line end."""
    logs: list[Json] = [_log(story) for story in stories]
    return canonical.encode({"format": FORMAT, "logs": logs}) + b"\n"


def _log(story: Story) -> Json:
    state, checkpoint = story.replica.state, story.replica.checkpoint()
    claims: list[Json] = [
        {
            "index": c.index,
            "leaf": c.leaf,
            "kind": c.kind,
            "sentence": c.sentence,
            "routine": c.is_routine,
            "entry": story.entries[c.index].decode(),
            "proof": story.proof(c).decode(),
        }
        for c in story.claims
    ]
    return {
        "consortium": state.consortium,
        "name": state.compact.consortium,
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": checkpoint.root.hex(),
        "claims": claims,
    }


def story_html(stories: Iterable[Story]) -> bytes:
    """Return some logs' stories as one page that loads nothing: each claim opens to its entry and its proof."""
    told = [_section(story) for story in stories]
    return page("The story of a consortium", STYLE, el("main", *told))


def _section(story: Story) -> Html:
    state, checkpoint = story.replica.state, story.replica.checkpoint()
    items = [
        el(
            "li",
            el("p", foreign(c.sentence)),
            el(
                "details",
                el("summary", f"Proof: entry {c.index}"),
                facts(("Leaf hash", el("code", c.leaf))),
                el("pre", foreign(story.entries[c.index].decode()), tabindex="0"),
                el("pre", story.proof(c).decode(), tabindex="0"),
            ),
        )
        for c in story.claims
        if not c.is_routine
    ]
    head = f"{checkpoint.size} entries under the root {checkpoint.root.hex()} of the log {checkpoint.origin}"
    return el("section", el("h1", foreign(state.compact.consortium)), el("p", foreign(head)), el("ol", *items))
