"""Opinion groups: who votes alike. Principal components, then k-means, as Polis does it; without chance.

Small, Bjorkegren, Erkkilä, Shaw and Megill (2021, "Polis: Scaling Deliberation by Mapping High Dimensional Opinion
Spaces"): what somebody has not voted on counts as the mean of those who have; the first two components; a participant
who voted on v of m statements is moved outwards by sqrt(m / v), so that silence is no opinion; k-means in that plane,
with k from 2 to 5 by the greatest mean silhouette (Rousseeuw 1987).

What is fixed so that the same votes give the same groups: a component's sign (its largest loading is positive, of
equals the first), the starts of k-means (k-means++, Arthur and Vassilvitskii 2007, with draws from SHAKE-256 of k and
the attempt's number), of equal attempts the first, of equal silhouettes (to 1e-6) the fewer groups, of equal distances
the group with the lower number, and the groups' order (by size, then by place). Floating point: the same on one
machine; the last bits of a matrix product are another machine's own, and figures are rounded long before them.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from commonweal_node.charter.voices.export import UNSEEN, Votes

Plane = npt.NDArray[np.float64]
MIN_GROUP = 5
"""A smaller group is one in which people could be recognised: no division with such a group is made."""
MIN_VOTES = 7
"""Who has voted on fewer statements (or on fewer than all) is in no group, as in Polis."""
_MOST_GROUPS = 5
_ATTEMPTS = 10
_ITERATIONS = 100
_SILHOUETTE_POINTS = 2000


@dataclass(frozen=True, slots=True)
class Grouping:
    """Who is in which group, and where."""

    labels: npt.NDArray[np.int64]
    """(participants,): 0 is the largest group."""
    points: Plane
    """(participants, 2)."""
    loadings: Plane
    """(statements, 2): where a vote on a statement pulls to."""
    silhouettes: dict[int, float]
    """By the number of groups, for those numbers that single nobody out."""


def active(votes: Votes) -> npt.NDArray[np.bool_]:
    """Return who has voted on enough statements to be placed."""
    enough: npt.NDArray[np.bool_] = (votes != UNSEEN).sum(axis=1) >= min(MIN_VOTES, votes.shape[1])
    return enough


def find_groups(votes: Votes) -> Grouping:
    """Return the opinion groups; one of all where no division leaves at least :data:`MIN_GROUP` in each.

    Args:
        votes: (participants ≥ 1, statements ≥ 2), of those who are :func:`active`. Whose row is which has no influence
            as long as rows are sorted.
    """
    points, loadings = _project(votes)
    silhouettes: dict[int, float] = {}
    labels = {1: np.zeros(len(points), np.int64)}
    for k in range(2, _MOST_GROUPS + 1):
        found = _k_means(points, k)
        if np.bincount(found, minlength=k).min() >= MIN_GROUP:
            labels[k], silhouettes[k] = found, round(_silhouette(points, found), 6)
    best = min(silhouettes, key=lambda k: (-silhouettes[k], k), default=1)
    return Grouping(_ordered(labels[best], points), points, loadings, silhouettes)


def _project(votes: Votes) -> tuple[Plane, Plane]:
    """Return participants and statements in the plane of the first two components."""
    seen = votes != UNSEEN
    # To put the mean where nothing was said and then to take the mean away leaves nothing there.
    known = np.where(seen, votes, 0).astype(np.float64)
    known -= np.where(seen, known.sum(axis=0) / np.maximum(seen.sum(axis=0), 1), 0)
    people, statements = known.shape
    if statements <= people:
        axes = np.linalg.eigh(known.T @ known)[1][:, ::-1][:, :2]
    else:
        left = np.linalg.eigh(known @ known.T)[1][:, ::-1][:, :2]
        axes = known.T @ left
        axes /= np.maximum(np.linalg.norm(axes, axis=0), 1e-12)
    if axes.shape[1] < 2:
        axes = np.hstack([axes, np.zeros((statements, 1))])
    strongest = axes[np.abs(axes).argmax(axis=0), (0, 1)]
    axes = axes * np.where(strongest < 0, -1.0, 1.0)
    outwards = np.sqrt(statements / np.maximum(seen.sum(axis=1), 1))
    return known @ axes * outwards[:, None], axes


def _distances(points: Plane, centres: Plane) -> Plane:
    """Squared distances, (points, centres)."""
    found: Plane = ((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)
    return found


def _draw(k: int, attempt: int, n: int) -> float:
    """A number from 0 up to 1 that is the same for everybody."""
    seed = f"commonweal voices {k} {attempt} {n}".encode()
    return int.from_bytes(hashlib.shake_256(seed).digest(8)) / 2**64


def _k_means(points: Plane, k: int) -> npt.NDArray[np.int64]:
    best, least = np.zeros(len(points), np.int64), np.inf
    for attempt in range(_ATTEMPTS):
        centres = _starts(points, k, attempt)
        labels = _distances(points, centres).argmin(axis=1)
        for _ in range(_ITERATIONS):
            # A group that nobody is in stays where it is.
            centres = np.array([points[labels == g].mean(axis=0) if (labels == g).any() else c
                                for g, c in enumerate(centres)])  # fmt: skip
            nearest = _distances(points, centres).argmin(axis=1)
            if (nearest == labels).all():
                break
            labels = nearest
        spread = float(_distances(points, centres)[np.arange(len(points)), labels].sum())
        if spread < least:
            best, least = labels, spread
    return best


def _starts(points: Plane, k: int, attempt: int) -> Plane:
    """k-means++: each next one is drawn with a chance that grows with the squared distance to those before."""
    chosen = [int(_draw(k, attempt, 0) * len(points))]
    for n in range(1, k):
        far = _distances(points, points[chosen]).min(axis=1).cumsum()
        chosen.append(min(int(np.searchsorted(far, _draw(k, attempt, n) * far[-1], side="right")), len(points) - 1))
    return points[chosen]


def _silhouette(points: Plane, labels: npt.NDArray[np.int64]) -> float:
    """The mean over all participants, or over 2,000 of them at equal steps where there are more."""
    step = -(-len(points) // _SILHOUETTE_POINTS)
    points, labels = points[::step], labels[::step]
    apart = np.sqrt(_distances(points, points))
    groups = np.unique(labels)
    sizes = np.array([(labels == g).sum() for g in groups])
    totals = np.stack([apart[:, labels == g].sum(axis=1) for g in groups], axis=1)
    own = np.searchsorted(groups, labels)
    everyone = np.arange(len(points))
    within = totals[everyone, own] / np.maximum(sizes[own] - 1, 1)
    means = totals / sizes
    means[everyone, own] = np.inf
    between = means.min(axis=1)
    wider = np.maximum(np.maximum(within, between), 1e-12)
    # Alone in its group, somebody is neither well nor badly placed.
    return float(np.where(sizes[own] > 1, (between - within) / wider, 0.0).mean()) if len(groups) > 1 else 0.0


def _ordered(labels: npt.NDArray[np.int64], points: Plane) -> npt.NDArray[np.int64]:
    groups = sorted(
        (int(g) for g in np.unique(labels)),
        key=lambda g: (-int((labels == g).sum()), *(float(x) for x in points[labels == g].mean(axis=0))),
    )
    places = np.zeros(len(groups), np.int64)
    places[groups] = np.arange(len(groups))
    return places[labels]
