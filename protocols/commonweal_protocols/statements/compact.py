"""The compact: a consortium's rules, and the records that only a compact is made of.

What may change from one version to the next, and who must sign, is in ``fold.amendment``.
"""

import math
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from commonweal_protocols.base.schema import Closed, is_absent
from commonweal_protocols.statements.delta_encoding import EXACT, Encoding
from commonweal_protocols.statements.fact import Fact
from commonweal_protocols.statements.privacy_budget import PrivacyTerms
from commonweal_protocols.statements.rules import MultiKrum, Rule, ShareA, TrimmedMean
from commonweal_protocols.statements.secure_terms import SecureTerms, objection
from commonweal_protocols.statements.values import (
    MAX_BLOB_BYTES,
    Blob,
    Count,
    Digest,
    Name,
    Natural,
    PublicKey,
    Reason,
    Seen,
    Subject,
)


class LoraModule(Closed):
    """One adapted linear layer of each transformer block: A is (rank, in_features), B is (out_features, rank)."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]{1,80}$")]
    in_features: Annotated[int, Field(ge=1, le=1 << 20)]
    out_features: Annotated[int, Field(ge=1, le=1 << 20)]


class AdapterSpec(Closed):
    """The one shape that every adapter of a consortium has.

    Tensors are named ``{prefix}.{layer}.{module}.lora_{A,B}.weight`` for layer 0 … layers − 1, as PEFT writes them.
    ``seed`` fixes the first round's start.
    """

    rank: Annotated[int, Field(ge=1, le=1024)]
    alpha: Annotated[int, Field(ge=1, le=1 << 16)]
    scaling: Literal["lora", "rslora"] = "lora"
    """See :attr:`scale`."""
    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]{1,120}$")]
    layers: Annotated[int, Field(ge=1, le=1024)]
    modules: Annotated[tuple[LoraModule, ...], Field(min_length=1, max_length=64)]
    # Values up to 2^(24 - grid_bits) in size are exact in float32, which is how a release is stored.
    grid_bits: Annotated[int, Field(ge=8, le=23)] = 20
    seed: Natural = 0

    @model_validator(mode="after")
    def _distinct(self) -> "AdapterSpec":
        if len({m.name for m in self.modules}) != len(self.modules):
            raise ValueError("modules: a name is repeated")
        return self

    @property
    def scale(self) -> float:
        """What B A is multiplied by: alpha / rank (arXiv 2106.09685), or alpha / √rank (rsLoRA, arXiv 2312.03732).

        No merge needs it: a mean of products has the factor that each has, and in an error against one it cancels.
        """
        return self.alpha / (self.rank if self.scaling == "lora" else math.sqrt(self.rank))

    @property
    def masked_bytes(self) -> int:
        """What a masked vector takes: 8 bytes for each element of every A and B."""
        return 8 * self.layers * self.rank * sum(m.in_features + m.out_features for m in self.modules)


class BaseModelRef(Closed):
    """A base model: where it can be had, and the digest that decides.

    ``reference`` is ``pypi:NAME==VERSION/FILE``, ``hf:OWNER/NAME@REVISION`` or ``path:DIRECTORY``.
    """

    reference: Annotated[str, StringConstraints(pattern=r"^(pypi|hf|path):[^\s]{1,400}$")]
    sha256: Digest


MIN_STEPS = 5
"""Of a round whose length is stated in passes: with few rows, rounds of fewer steps end worse."""


class Recipe(Closed):
    """How every cohort member trains in a round.

    With ``passes_millis``, a member takes as many steps as so many passes over its own training rows are, in
    thousandths, and at least :data:`MIN_STEPS`; but never more than ``steps``. Without it, exactly ``steps``.
    """

    steps: Annotated[int, Field(ge=1, le=10**6)]
    passes_millis: Annotated[int, Field(ge=1, le=10**6)] | None = Field(default=None, exclude_if=is_absent)
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    learning_rate_micros: Count
    max_tokens: Annotated[int, Field(ge=8, le=1 << 20)]

    def steps_for(self, rows: int) -> int:
        """Return how many steps a member with that many training rows takes."""
        if self.passes_millis is None:
            return self.steps
        whole = -(-rows * self.passes_millis // (1000 * self.batch_size))
        return min(self.steps, max(MIN_STEPS, whole))


class Quorum(Closed):
    """The fewest updates that may be merged, ratifications that make a release valid, and witnesses of a checkpoint.

    ``amendments`` is how many members must sign the next version of the compact, and how many of its own members it
    must be signed by. More than half, so that no two versions can follow one without a member who signed both.
    """

    updates: Annotated[int, Field(ge=1, le=1000)]
    ratifications: Annotated[int, Field(ge=1, le=1000)]
    amendments: Annotated[int, Field(ge=1, le=1000)]
    witnesses: Annotated[int, Field(ge=0, le=64)] = 0


class Member(Closed):
    """An institution of the consortium."""

    institution: Name
    key: PublicKey
    expires_at_index: Natural | None = None
    """The first index of the log at which this key may sign no more; None: it does not expire."""
    consortium: Digest | None = None
    """Where the member is a consortium: anyone who holds the key speaks for that one, and gives its releases alone."""


class Coordinator(Closed):
    """Who sequences. ``key`` signs its statements; ``log`` is the vkey that signs checkpoints. One key, one role.

    Where ``post_quantum`` names an ML-DSA-44 vkey of the log too, checkpoints must bear its line as well.
    """

    name: Name
    key: PublicKey
    log: Annotated[str, StringConstraints(min_length=10, max_length=500)]
    post_quantum: Annotated[str, StringConstraints(min_length=10, max_length=3000)] | None = None


class Witness(Closed):
    """Who cosigns the log's checkpoints: a C2SP cosigner's vkey, and the address where it takes them."""

    name: Name
    vkey: Annotated[str, StringConstraints(min_length=10, max_length=3000)]
    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s#]{1,255}$")]


class Fork(Closed):
    """Where a consortium comes from that others left: what they had in common ends at this checkpoint.

    ``release_leaf`` is the entry of the release that is this consortium's start; none for the old one's own start.
    """

    consortium: Digest
    log: Annotated[str, StringConstraints(min_length=10, max_length=500)]
    at: Seen
    release_leaf: Digest | None


class Revocation(Closed):
    """A key that is no longer its owner's alone. It signs nothing more, and what it signed from an index on is suspect.

    Earlier entries stand: they were made while the key was its owner's.
    """

    key: PublicKey
    from_index: Natural
    reason: Reason


class Compact(Fact):
    """The consortium's rules. The first version founds it and is signed by every member.

    Version N + 1 names version N by digest and follows TUF's root rule (specification, section 5.3): it is signed by
    the thresholds of both. What may change, and who must sign, is in ``amendment``.
    """

    URI = "urn:commonweal:compact:v1"
    TITLE = "the rules, or their next version"
    AUTHOR = "several keys"
    consortium: Name
    version: Count
    previous: Digest | None = None
    """The digest of the statement that was version N - 1; None for the first."""
    base: BaseModelRef
    adapter: AdapterSpec
    recipe: Recipe
    rule: Rule
    quorum: Quorum
    members: Annotated[tuple[Member, ...], Field(min_length=1, max_length=400)]
    coordinator: Coordinator
    witnesses: Annotated[tuple[Witness, ...], Field(max_length=64)] = ()
    """Whose cosignatures ``quorum.witnesses`` counts. The coordinator's own key never does."""
    start: Blob
    """The first round's start, as ``adapter.seed`` makes it: every founder checks that before signing."""
    round_deadline_seconds: Annotated[int, Field(ge=10, le=30 * 86_400)]
    max_update_bytes: Annotated[int, Field(ge=1024, le=MAX_BLOB_BYTES)]
    stop_after: Annotated[int, Field(ge=1, le=100)] | None = Field(default=None, exclude_if=is_absent)
    """After how many rounds in a row whose start most members found no better than those before, rounds stop: until the
    compact changes, or a member states other rows. None: they do not."""
    encoding: Encoding | None = None
    """How deltas are encoded in the exchange; None: as plain integers. What is merged is on the grid all the same."""
    privacy: PrivacyTerms | None = None
    """The clip and the noise that each member puts on its delta, and how much of that it may spend."""
    secure: SecureTerms | None = None
    """Members mask their deltas, so that only the sum is ever known; None: every delta is public."""
    revocations: Annotated[tuple[Revocation, ...], Field(max_length=400)] = ()
    """Keys that this version revokes; they stay revoked without being named again."""
    successors: Annotated[tuple[Coordinator, ...], Field(max_length=8)] = ()
    """Who is to coordinate should this one fail, the first that can."""
    succeeds: Seen | None = None
    """Where this version changes the log: the last checkpoint of the one before, of which all is carried over."""
    forked_from: Fork | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Compact":
        if (self.version == 1) != (self.previous is None):
            raise ValueError("previous: wanted the digest of the version before, and none for version 1")
        if self.version == 1 and (self.revocations or self.succeeds):
            raise ValueError("revocations, succeeds: wanted none in version 1, which comes after nothing")
        if len({r.key for r in self.revocations}) != len(self.revocations):
            raise ValueError("revocations: a key is repeated")
        keys = [m.key for m in self.members] + [self.coordinator.key]
        # A threshold counts distinct keys and distinct institutions; a repeat of either would count one voice twice.
        if len(set(keys)) != len(keys):
            raise ValueError("members: a public key is repeated")
        if len({m.institution for m in self.members}) != len(self.members):
            raise ValueError("members: an institution is repeated")
        if self.coordinator.name in {m.institution for m in self.members}:
            raise ValueError(f"coordinator.name: wanted a name that no member has, got {self.coordinator.name}")
        for name in ("updates", "ratifications", "amendments"):
            if (wanted := getattr(self.quorum, name)) > len(self.members):
                raise ValueError(f"quorum.{name}: wanted at most {len(self.members)} (the members), got {wanted}")
        if isinstance(self.rule, ShareA):
            raise ValueError("rule: share-a keeps each B at home, which rounds do not carry; wanted another rule")
        hostile = self.rule.hostile if isinstance(self.rule, TrimmedMean | MultiKrum) else 0
        if self.quorum.updates <= 2 * hostile:
            raise ValueError(
                f"rule.hostile: wanted fewer than half of the {self.quorum.updates} updates that are enough for a "
                f"release, got {hostile}"
            )
        if self.secure is not None:
            updates, members = self.quorum.updates, len(self.members)
            size, most = self.adapter.masked_bytes, self.max_update_bytes
            if why := objection(self.secure, self.rule, self.encoding, updates, members, size, most):
                raise ValueError(f"secure: {why}")
        nested = [m.institution for m in self.members if m.consortium is not None]
        exact = self.secure is None and self.privacy is None and (self.encoding or EXACT) == EXACT
        if nested and not exact:
            raise ValueError(
                f"members: {nested[0]} is a consortium, whose updates must be its releases; wanted no secure and "
                "no privacy terms, and an encoding that keeps every bit"
            )
        if self.quorum.witnesses > len(self.witnesses):
            raise ValueError(
                f"quorum.witnesses: wanted at most {len(self.witnesses)} (those named), got {self.quorum.witnesses}"
            )
        for name in ("ratifications", "amendments"):
            if 2 * (wanted := getattr(self.quorum, name)) <= len(self.members):
                raise ValueError(f"quorum.{name}: wanted more than half of {len(self.members)} members, got {wanted}")
        return self

    def subject(self) -> Subject:
        """The base model that is to be adapted."""
        return Subject(name=self.base.reference[:200], sha256=self.base.sha256)
