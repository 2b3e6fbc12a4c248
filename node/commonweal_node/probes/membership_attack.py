"""How well a stranger with the adapter could tell which rows it was trained on: a figure, told before it is sent.

A loss-threshold attack (Yeom et al., arXiv 1709.01604) on a bounded sample of training rows and of held-out rows. A
row's score is how far the adapter lowers its loss under the base: without the base's loss subtracted, the attack would
measure which rows are easy (difficulty calibration, Watson et al., arXiv 2111.08440). The figure is the area under the
attack's ROC curve: 0.5 is chance, 1 is certainty. It bounds no attack from above, and stronger ones exist.

Deterministic; only the figure and its error leave this module. The rows stay where they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from commonweal_node.model.heldout import example_losses
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.model.tensors import AdapterTensors
from commonweal_node.model.tokens import Tokenised

MIN_ROWS = 4
"""Of each kind: with fewer a figure would be chance, and near to telling of single rows."""


@dataclass(frozen=True, slots=True)
class Membership:
    """The area under the attack's ROC curve, its standard error, and how many rows of each kind it is from."""

    auc: float
    error: float
    members: int
    others: int


class MembershipAttack:
    """One sample of rows, whose losses under the base are computed once."""

    def __init__(
        self, model: AdaptedModel, members: Sequence[Tokenised], others: Sequence[Tokenised], most: int
    ) -> None:
        """Take at most ``most`` rows of each, evenly spread."""
        self._model = model
        self._members = _spread(members, most)
        self._others = _spread(others, most)
        self._base: list[float] | None = None

    def measure(self, adapter: AdapterTensors) -> Membership:
        """Attack an adapter.

        Raises:
            BlobError: The adapter breaks the model's spec.
        """
        rows = [*self._members, *self._others]
        if self._base is None:
            self._base = example_losses(self._model, None, rows)
        adapted = example_losses(self._model, adapter, rows)
        scores = [base - loss for base, loss in zip(self._base, adapted, strict=True)]
        count = len(self._members)
        return roc_area(scores[:count], scores[count:])


def roc_area(members: Sequence[float], others: Sequence[float]) -> Membership:
    """The chance that a member's score is above another's, ties half (Mann-Whitney), with Hanley and McNeil's error."""
    m, n = len(members), len(others)
    wins = sum((a > b) + 0.5 * (a == b) for a in members for b in others)
    auc = wins / (m * n)
    # Hanley and McNeil 1982, Radiology 143(1): Q1 and Q2 for scores that are exponential.
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (auc * (1 - auc) + (m - 1) * (q1 - auc**2) + (n - 1) * (q2 - auc**2)) / (m * n)
    return Membership(auc, math.sqrt(max(variance, 0.0)), m, n)


def _spread(rows: Sequence[Tokenised], most: int) -> list[Tokenised]:
    count = min(most, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]
