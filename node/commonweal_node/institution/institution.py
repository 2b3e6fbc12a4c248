"""What an institution says, and when: answers to rounds, ratifications, adoptions.

The log is the invitation: who follows it sees that a round is open. One thread owns an institution, because statements
form one chain. Nothing is signed that was not checked here: a round against compact and charter, a release by computing
it again, an adoption by this community's own held-out rows. What was once answered is answered the same again.
"""

# Long because one class owns the chain in which an institution signs; what it decides is in its neighbours.

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from commonweal_adapters.files.delta import GridTensors, make_delta, read_adapter
from commonweal_adapters.recompute import recompute_release, recompute_start
from commonweal_node.charter.charter import Charter
from commonweal_node.connection.keyring import KeyRing
from commonweal_node.home import NodeHome
from commonweal_node.institution.adoption import Deciding, Evaluator
from commonweal_node.institution.answer_store import Answers, Kept
from commonweal_node.institution.choice import SHARED, CandidateKey, Pool
from commonweal_node.institution.delta_out import spell_delta
from commonweal_node.institution.masked_round import MaskedRound, forget_rounds
from commonweal_node.institution.submission import submit
from commonweal_node.probes.probe import Probe
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import BlobError, RuleError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.authors import describe_end
from commonweal_protocols.fold.membership import LEFT
from commonweal_protocols.fold.state import LoggedRelease, RoundState, State
from commonweal_protocols.records.follower import Follower
from commonweal_protocols.statements.adoption import Adoption
from commonweal_protocols.statements.compact import Recipe
from commonweal_protocols.statements.data_manifest import DataManifest
from commonweal_protocols.statements.envelope import format_envelope, sign, sign_envelope
from commonweal_protocols.statements.members import Identity, Rotation
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.rounds import ForeignRelease, Ratification, Refusal, Release, Update
from commonweal_protocols.statements.rules import AnyRule, FrozenA
from commonweal_protocols.statements.statement import Statement, open_entry
from commonweal_protocols.statements.values import Blob, Digest, Name
from commonweal_protocols.tlog.merkle import leaf_hash

log = logging.getLogger(__name__)

MAX_RELEASES = 8
"""How many of the newest releases a node chooses among, beside the one that serves; each costs a pass over its rows."""
OWN_PATIENCE = 2
"""After how many own checkpoints without a new best a community stops to train alone."""


class Learner(Evaluator, Protocol):
    """The model side: all that needs torch, and all that touches the community's rows."""

    @property
    def num_examples(self) -> int:
        """How many training rows the community has."""

    @property
    def manifest(self) -> DataManifest | None:
        """What the rows went through, where they were curated."""

    @property
    def release(self) -> ForeignRelease | None:
        """The release that ``train`` gave last, where it speaks for a consortium (``delegate``)."""

    def objection(self, state: State, start: GridTensors, frozen: Literal["A", "B"] | None) -> str:
        """Return why the open round, which starts from there, gets nothing from here; empty if it gets something."""

    def membership(self, adapter: GridTensors) -> int | None:
        """Return how well an attack tells an adapter's training rows from others, in millionths; None if not known."""

    def train(
        self, start: GridTensors, recipe: Recipe, what: str, frozen: Literal["A", "B"] | None = None
    ) -> GridTensors:
        """Train from ``start`` by ``recipe``, all but one factor, and return the trained adapter, on the grid."""


class Consortium(Protocol):
    """The way to the coordinator. Every call has a deadline and may be repeated."""

    def submit(self, envelope: bytes) -> bytes:
        """Have an envelope logged; returns its proof."""

    def put_blob(self, data: bytes) -> Blob:
        """Store bytes in the exchange."""

    def get_blob(self, blob: Blob) -> bytes:
        """Fetch bytes from the exchange, checked against their name."""


class _OthersWaitError(Exception):
    """Something is due that others wait for."""


class Institution:
    """One institution in one consortium; owned by one thread."""

    def __init__(
        self,
        name: Name,
        keys: KeyRing,
        *,
        home: Path,
        charter: Charter,
        probes: tuple[Probe, ...],
        refuse: str,
        max_membership_auc_millis: int | None,
        follower: Follower,
        consortium: Consortium,
        learner: Learner,
        on_phase: Callable[[str, int, str], None],
    ) -> None:
        self._name = name
        self._keys = keys
        self._charter = charter
        self._refuse = refuse
        self._max_membership = max_membership_auc_millis
        self._follower = follower
        self._consortium = consortium
        self._learner = learner
        self._on_phase = on_phase
        self._deciding = Deciding(charter, probes, learner, on_phase, self._yield_to_others)
        self._home = home
        self._is_offer_due = True
        self._objected: dict[Digest, str] = {}  # why releases are not ratified here, by their entry
        self._adapters: dict[str, GridTensors] = {}

    # -- saying

    def _sign(self, state: State, predicate: Predicate) -> bytes:
        header = state.next_header(public_hex(self._keys.present), self._follower.seen)
        return sign_envelope(Statement(header, predicate).payload(), self._keys.present)

    def _say(self, predicate: Predicate) -> None:
        self._log(self._sign(self._follower.state, predicate))

    def _log(self, envelope: bytes) -> None:
        submit(envelope, self._consortium.submit, self._follower, self._home)

    # -- answering a round

    def answer(self, round_number: int) -> bytes:
        """Return this institution's signed answer to an open round: an update, or a refusal with its reason.

        Raises:
            PeerError: The round is not open in the log, or the log does not hold: nothing is signed.
            LocalError: Training or sending did not succeed. What was signed is kept, and will be the answer again.
        """
        envelope = self._answer(round_number)
        self._put_delta(envelope)
        return envelope

    def _answer(self, round_number: int) -> bytes:
        self._follower.sync()
        state = self._follower.state
        r = state.open_round
        if r is None or r.round.round != round_number:
            raise RuleError(f"round {round_number}: wanted it open in the log, found that it is not")
        answers = Answers(self._home, state.compact.adapter)
        known = answers.load_answer(r.leaf)
        if self._name in r.updates or self._name in r.refusals:
            if known is None:
                raise RuleError(
                    f"round {round_number}: wanted the answer that the log has already, got none on this disk"
                )
            # Also where the chain has gone on: the log takes one answer.
            return known
        if known is not None and self._is_next(state, known):
            return known
        reason = self._refuse or self._charter.refusal(r.round)
        if not reason and self._state_data(state):
            state = self._follower.state
        if not reason and r.masking is not None:
            reason = MaskedRound(self._home, r, r.masking, self._name).objection()
        predicate = (
            Refusal(round=round_number, round_leaf=r.leaf, reason=reason)
            if reason
            else self._contribute(state, r, answers)
        )
        envelope = self._sign(state, predicate)
        # Durable before it is said: after a crash the same bytes are said again, never others under this number.
        answers.save_answer(r.leaf, envelope)
        return envelope

    def _is_next(self, state: State, envelope: bytes) -> bool:
        """Whether a kept answer still fits at the end of this author's chain."""
        wanted, header = state.next_header(public_hex(self._keys.present), ()), open_entry(envelope).statement.header
        return header is not None and (header.seq, header.prev) == (wanted.seq, wanted.prev)

    def _contribute(self, state: State, r: RoundState, answers: Answers) -> Update | Refusal:
        spec, number = state.compact.adapter, r.round.round
        start, frozen = self._adapter(state, r.round.start), _frozen(r.round.rule)
        if reason := self._learner.objection(state, start, frozen):
            return Refusal(round=number, round_leaf=r.leaf, reason=reason)
        self._on_phase("evaluating", number, "the start")
        before = self._learner.reported(start, start, SHARED, f"round {number}: the start")
        self._on_phase("training", number, f"round {number}")
        trained = self._learner.train(start, r.round.recipe, f"round {number}", frozen)
        self._on_phase("evaluating", number, "own update")
        membership = self._learner.membership(trained)
        if reason := self._exposure(membership):
            return Refusal(round=number, round_leaf=r.leaf, reason=reason)
        after = self._learner.reported(trained, trained, SHARED, f"round {number}: own update")
        if number == 1:
            # In round 1 all start from the same fresh adapter: what was trained here is this community's own too.
            answers.save_own(number, trained)
        else:
            answers.save_update(number, trained)
        self._on_phase("sending", number, "delta")
        delta, examples = make_delta(start, trained, spec), self._learner.num_examples
        partners: tuple[Name, ...] = ()
        if r.masking is None:
            sent = spell_delta(self._home, state, r, self._name, delta)
            # Before it is sent, so that an outage costs no training.
            answers.save_delta(digest_of(sent), sent)
        else:
            masked = MaskedRound(self._home, r, r.masking, self._name)
            kept, sent = masked.mask(answers, delta, examples)
            partners, examples = kept.partners, kept.num_examples
        return Update(
            round=number,
            round_leaf=r.leaf,
            delta=Blob(sha256=digest_of(sent), size_bytes=len(sent)),
            partners=partners,
            num_examples=examples,
            heldout_before_micronats=before.micronats,
            heldout_after_micronats=after.micronats,
            improves=self._improves(state, answers, start),
            data_leaf=state.manifests[self._name].leaf if self._learner.manifest is not None else None,
            membership_auc_micros=membership,
            release=self._learner.release,
        )

    def _improves(self, state: State, answers: Answers, start: GridTensors) -> bool | None:
        """Whether a round's start is better here than every release before it; None where nobody wants to know it."""
        blobs = [logged.release.adapter for logged in self._releases(state).values()]
        if state.compact.stop_after is None or len(blobs) < 2:
            return None
        held = [self._release(answers, state, blob) for blob in blobs[-1 - MAX_RELEASES : -1]]
        losses = [self._learner.choosing(x, x, SHARED, "the releases before").mean for x in held]
        return self._learner.choosing(start, start, SHARED, "the round's start").mean < min(losses)

    def _exposure(self, membership: int | None) -> str:
        """Why an adapter tells too much of its rows to be sent; empty if it does not."""
        most = self._max_membership
        if most is None or (membership is not None and membership <= 1000 * most):
            return ""
        got = "none: there are too few rows" if membership is None else f"{membership / 1e6:.3f}"
        return f"membership: our setting wants an attack's AUC of at most {most / 1000:.3f} before sending, got {got}"

    def _adapter(self, state: State, blob: Blob) -> GridTensors:
        if blob.sha256 not in self._adapters:
            # Only the newest two are ever needed again.
            while len(self._adapters) > 1:
                self._adapters.pop(next(iter(self._adapters)))
            self._adapters[blob.sha256] = read_adapter(self._consortium.get_blob(blob), state.compact.adapter)
        return self._adapters[blob.sha256]

    # -- tending

    def tend(self, *, may_decide: bool = True) -> Adoption | None:
        """Do the next thing that is due: announce oneself, ratify, answer, or decide. Returns a decision, if one fell.

        Args:
            may_decide: Whether a decision on a release may be made now; it takes long, and holds up all else.

        Raises:
            PeerError: The log does not hold, or a release is not the merge of its inputs: nothing is signed.
            LocalError: Something did not succeed; it will be due again.
        """
        self._follower.sync()
        state = self._follower.state
        if (left := state.retired.get(public_hex(self._keys.present))) is not None and left.reason == LEFT:
            raise RuleError(f"{self._name}: has left the consortium, entry {left.at_index}; this node can be stopped")
        self._offer(state)
        if self._has_kept_answer(state):
            self._submit_answer(state)
            return None
        self._fetch_receipt(state)
        if self._rotate(state):
            return None
        if self._name not in state.identities:
            self._say(Identity(institution=self._name))
            return None
        if self._state_data(state) or self._withdraw(state) or self._mask(state):
            return None
        objections: dict[Digest, str] = {}
        for r in state.rounds:
            # Anyone who joined later need not compute the releases of all the years before.
            due = r.is_pending or (self._name in r.round.cohort and r.incident is None)
            if r.release is None or r.release.recalled_by is not None:
                continue
            if due and self._name not in r.release.ratified_by:
                if found := self._objection(state, r.round.round, r.release):
                    # Nothing is signed of this release, or on it; the other rounds are another matter.
                    objections[r.release.leaf] = found
                    continue
                self._ratify(r.round.round, r.release)
                return None
        # Before a decision on what was released: the others wait for the answer, and nobody for that.
        newest = state.ratified()
        if newest is not None and newest.leaf in objections:
            raise RuleError(objections[newest.leaf])
        if self._is_answer_due(state):
            self._submit_answer(state)
            return None
        if may_decide and newest is not None and self._is_to_decide(state, newest):
            try:
                return self._adopt(state, newest)
            except _OthersWaitError:
                log.info("round %d: the decision is taken up again later: others wait", newest.release.round)
        for objection in objections.values():
            raise RuleError(objection)
        return None

    def is_in_a_round(self) -> bool:
        """Whether a round is open, as far as the log was followed."""
        return self._follower.state.open_round is not None

    def _yield_to_others(self) -> None:
        """End a decision where others wait for this institution's answer or ratification."""
        self._follower.sync()
        state = self._follower.state
        last = state.rounds[-1]
        release = last.release
        pending = last.is_pending and release is not None and self._name not in release.ratified_by
        if (pending and release is not None and release.leaf not in self._objected) or self._is_answer_due(state):
            raise _OthersWaitError

    def _state_data(self, state: State) -> bool:
        """Have the log know what our rows went through, where the newest there is of others. Whether it was said."""
        manifest, stated = self._learner.manifest, state.manifests.get(self._name)
        if manifest is None or (stated is not None and stated.manifest == manifest):
            return False
        self._say(manifest)
        return True

    def _withdraw(self, state: State) -> bool:
        """Take what serves out of its place if its release was recalled. Whether it was."""
        answers = Answers(self._home, state.compact.adapter)
        kept = answers.serving()
        leaf = kept.release_leaf if kept else ""
        standing = (r.release for r in state.rounds if r.release is not None and r.release.recalled_by is None)
        if not leaf or any(release.leaf == leaf for release in standing):
            return False
        where = answers.withdraw_adopted(leaf)
        log.warning("the release that was adopted here was recalled by the members: it lies in %s now", where)
        self._on_phase("waiting", len(state.rounds), "the adopted release was recalled and is withdrawn here")
        return True

    def _mask(self, state: State) -> bool:
        """In an open masked round, submit the message this node owes. Returns True if one was submitted."""
        r = state.open_round
        forget_rounds(self._home, r.leaf if r else None)
        if r is None or r.masking is None or self._name not in r.round.cohort or self._name in r.refusals:
            return False
        if r.masking.stage == "advertise" and (reason := self._refuse or self._charter.refusal(r.round)):
            self._say(Refusal(round=r.round.round, round_leaf=r.leaf, reason=reason))
            return True
        said = MaskedRound(self._home, r, r.masking, self._name).due()
        if said is not None:
            self._on_phase("waiting", r.round.round, f"masking: stage {r.masking.stage}")
            self._say(said)
        return said is not None

    def _is_to_decide(self, state: State, newest: LoggedRelease) -> bool:
        """Whether the newest ratified release waits for our decision: also once what served is recalled."""
        return self._name not in newest.adoptions or Answers(self._home, state.compact.adapter).serving() is None

    def _rotate(self, state: State) -> bool:
        """Put the next key in the place of the present one, in the log and then here. Whether anything was done.

        Raises:
            RuleError: The log has neither key as ours: somebody else has rotated it, or the members have.
        """
        following, ours = self._keys.next(), state.key(self._name)
        present = public_hex(self._keys.present)
        if ours == present and following is None:
            return False
        if following is not None and ours == public_hex(following):
            self._keys.promote()
            return True
        if ours is None and (ended := state.retired.get(present)) is not None:
            raise RuleError(f"key: {self._name} is no member any more: its key {describe_end(state, ended)}")
        if following is None or ours != present:
            raise RuleError(
                f"key: wanted {present} as the key of {self._name} in the log, got {ours or 'none'}; if you know "
                "nothing of that, have the members revoke it and name a new one (commonweal node rotate-key)"
            )
        header = state.next_header(present, self._follower.seen)
        rotation = Rotation(name=self._name, key=public_hex(following), reason="a new key, by its owner")
        payload = Statement(header, rotation).payload()
        self._log(format_envelope(payload, [sign(payload, self._keys.present), sign(payload, following)]))
        self._keys.promote()
        return True

    def serving(self) -> Kept | None:
        """Return what serves this community now, and how that compares with its best alone."""
        return Answers(self._home, self._follower.state.compact.adapter).serving()

    def offer_again(self) -> None:
        """Say that the coordinator may be another one, which has yet to get the delta of our newest answer."""
        self._is_offer_due = True

    def _offer(self, state: State) -> None:
        """See to it that the exchange has what the log names and this host holds; what is there already is cheap.

        A successor that begins without its predecessor's blobs has them from the members: the start, the newest
        releases, and each member's own newest deltas.
        """
        if not self._is_offer_due:
            return
        answers, spec = Answers(self._home, state.compact.adapter), state.compact.adapter
        recent = state.rounds[-MAX_RELEASES:]
        for r in recent:
            if (answer := answers.load_answer(r.leaf)) is not None:
                self._put_delta(answer)
        named = [r.release.release.adapter for r in recent if r.release is not None]
        held = [data for blob in named if (data := answers.load_release_bytes(blob)) is not None]
        for data in (recompute_start(spec), *held) if recent else ():
            self._consortium.put_blob(data)
        self._is_offer_due = False

    def _put_delta(self, answer: bytes) -> None:
        """Put the delta that an answer names into the exchange; if it is there, this is cheap."""
        predicate = open_entry(answer).statement.predicate
        answers = Answers(self._home, self._follower.state.compact.adapter)
        if isinstance(predicate, Update) and (delta := answers.load_delta(predicate.delta.sha256)) is not None:
            self._consortium.put_blob(delta)

    def _has_kept_answer(self, state: State) -> bool:
        """Whether an answer to the open round is signed and not in the log; nothing else may be signed before it."""
        r = state.open_round
        if r is None or self._name in r.updates or self._name in r.refusals:
            return False
        kept = Answers(self._home, state.compact.adapter).load_answer(r.leaf)
        return kept is not None and self._is_next(state, kept)

    def _is_answer_due(self, state: State) -> bool:
        """Whether the open round waits for this institution's update or refusal."""
        r = state.open_round
        if r is None or self._name not in state.awaited(r):
            return False
        return r.masking is None or r.masking.stage == "mask"

    def _submit_answer(self, state: State) -> None:
        """Answer the open round. One that has ended meanwhile, without this answer, is nobody's trouble."""
        r = state.rounds[-1]
        try:
            self._log(self.answer(r.round.round))
        except RuleError:
            self._follower.sync()
            now = self._follower.state.open_round
            if now is not None and now.leaf == r.leaf:
                raise
            log.info("round %d: ended before the answer to it was in the log", r.round.round)
            return
        self._on_phase("waiting", r.round.round, "for the others")

    def _fetch_receipt(self, state: State) -> None:
        """Get the proof of an answer that was logged as this node ended: it is in the same place when sent again."""
        answers = Answers(self._home, state.compact.adapter)
        for r in state.rounds[-1:]:
            if self._name not in r.updates and self._name not in r.refusals:
                continue
            answer = answers.load_answer(r.leaf)
            if answer is not None and not answers.has_receipt(leaf_hash(answer).hex()):
                self._log(answer)

    def _objection(self, state: State, number: int, logged: LoggedRelease) -> str:
        """Why a release is not ratified here: not the merge of its inputs, or not to be recomputed; else empty."""
        if logged.leaf in self._objected:
            return self._objected[logged.leaf]
        self._on_phase("ratifying", number, "computing the release again")
        release: Release = logged.release
        named = (release.start, *release.state_before, *(i.delta for i in release.inputs))
        blobs = {b.sha256: b for b in named}
        try:
            made = recompute_release(
                state.compact.adapter,
                release,
                lambda sha256: self._consortium.get_blob(blobs[sha256]),
                state.rounds[number - 1].masking,
            )
        except BlobError as e:
            return f"release of round {number}: cannot be recomputed: {e}; not ratified"
        if made != release:
            self._objected[logged.leaf] = (
                f"release of round {number}: wanted the {release.rule.name} of its inputs ({made.adapter.sha256}, "
                f"{made.figures}), got {release.adapter.sha256}, {release.figures}; not ratified"
            )
        return self._objected.get(logged.leaf, "")

    def _ratify(self, number: int, logged: LoggedRelease) -> None:
        release = logged.release
        self._say(Ratification(round=number, release_leaf=logged.leaf, adapter_sha256=release.adapter.sha256))
        self._on_phase("waiting", number, "for the others' ratifications")

    def _adopt(self, state: State, logged: LoggedRelease) -> Adoption:
        """Decide on the newest release; what serves from then on is the best of all that there is."""
        answers, number = Answers(self._home, state.compact.adapter), logged.release.round
        kept = answers.serving()
        pool = self._pool(state, number, answers, kept)
        decided = self._deciding.decide(number, pool, kept.key if kept else None)
        serves, own = decided.serves.key, decided.choice.own
        adoption = Adoption(
            round=number,
            release_leaf=logged.leaf,
            serves=serves.serving,
            improves=decided.choice.improves,
            **dict(decided.decision),
        )
        answers.save_shared(pool.releases[number])
        is_shared = serves.serving.kind in ("release", "blend")
        release = state.rounds[serves.serving.round - 1].release if is_shared else None
        best_own = own.key.serving.round if own else 0
        best = decided.serves
        self._learner.export(best.shared, best.own, best.blend, NodeHome(self._home).adopted)
        answers.save_serving(
            Kept(
                key=serves,
                release_leaf=release.leaf if release else "",
                best_own=best_own,
                over_alone_micros=decided.over_alone.micros,
            )
        )
        self._say(adoption)
        answers.forget("own", {best_own, max(pool.owns, default=0), serves.own_round, *_round_of(serves, "own")})
        # What is trained in a round that is open by now is not decided on yet.
        answers.forget("update", {*_round_of(serves, "update"), *range(number + 1, len(state.rounds) + 1)})
        return adoption

    def _pool(self, state: State, number: int, answers: Answers, kept: Kept | None) -> Pool:
        """What there is to choose from: of the releases the newest that count, and the one that serves."""
        releases = {n: logged for n, logged in self._releases(state).items() if n <= number}
        wanted = set(sorted(releases)[-MAX_RELEASES:])
        if kept is not None and kept.release_leaf:
            wanted.add(kept.key.serving.round)
        owns, updates = self._owns(state, number, answers, kept), {}
        for n in answers.rounds_of("update"):
            if n <= number and (update := answers.load_update(n)) is not None:
                updates[n] = update
        held = {n: self._release(answers, state, releases[n].release.adapter) for n in sorted(wanted & releases.keys())}
        answers.forget_releases([releases[n].release.adapter for n in held])
        return Pool(self._adapter(state, state.compact.start), held, owns, updates)

    def _releases(self, state: State) -> dict[int, LoggedRelease]:
        """The releases that count, by round: ratified, not withdrawn, and not objected to here."""
        return {
            r.round.round: r.release
            for r in state.rounds
            if r.release is not None and r.release.is_ratified and r.release.leaf not in self._objected
        }

    def _release(self, answers: Answers, state: State, blob: Blob) -> GridTensors:
        held = answers.load_release(blob)
        if held is None:
            held = self._adapter(state, blob)
            answers.save_release(blob, held)
        return held

    def _owns(self, state: State, number: int, answers: Answers, kept: Kept | None) -> dict[int, GridTensors]:
        """This community's own adapters: of one training on its own rows alone, continued by a round's worth a round.

        It ends where the last two checkpoints were no better than one before them: "alone" is no straw man.
        """
        have = [n for n in answers.rounds_of("own") if n <= number]
        last = max(have, default=0)
        # Not while a round is open: its own training comes first, and has the one checkpoint of the two.
        if state.open_round is None and (kept is None or last - kept.best_own < OWN_PATIENCE):
            for n in range(last + 1, number + 1):
                before = answers.load_own(n - 1) if n > 1 else self._adapter(state, state.compact.start)
                if before is None:
                    break
                self._on_phase("training", n, "own adapter")
                recipe = state.rounds[n - 1].round.recipe
                answers.save_own(n, self._learner.train(before, recipe, f"own adapter, round {n}"))
        owns = {n: answers.load_own(n) for n in answers.rounds_of("own") if n <= number}
        return {n: own for n, own in owns.items() if own is not None}


def _round_of(key: CandidateKey, kind: str) -> tuple[int, ...]:
    return (key.serving.round,) if key.serving.kind == kind else ()


def _frozen(rule: AnyRule) -> Literal["A"] | None:
    """The factor that nobody may train under a rule."""
    return "A" if isinstance(rule, FrozenA) else None
