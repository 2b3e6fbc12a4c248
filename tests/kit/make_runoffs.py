"""Write profiles, and who wins each by pref-voting's instant run-off: ``python -m tests.kit.make_runoffs FILE``.

It needs pref-voting 1.18.1 or later, whose dependencies weigh more than the rest of the tests together: so what it says
is kept in ``vectors/runoffs.json``.
"""

import json
import random
import sys
from pathlib import Path

from pref_voting.iterative_methods import instant_runoff_for_truncated_linear_orders
from pref_voting.profiles_with_ties import ProfileWithTies

PROFILES = 400


def make(rng: random.Random) -> dict[str, object]:
    """A profile of few alternatives and few ballots, where ties are frequent, and its winners."""
    alternatives = rng.randint(2, 6)
    ballots = [
        rng.sample(range(alternatives), rng.randint(1, alternatives)) for _ in range(rng.choice((1, 3, 7, 12, 40)))
    ]
    ranks = [{a: place for place, a in enumerate(ballot, 1)} for ballot in ballots]
    profile = ProfileWithTies(ranks, candidates=list(range(alternatives)))
    winners = instant_runoff_for_truncated_linear_orders(profile)
    return {"alternatives": alternatives, "ballots": ballots, "winners": [int(w) for w in winners]}


if __name__ == "__main__":
    rng = random.Random(2026)
    lines = ",\n".join(json.dumps(make(rng), separators=(",", ":")) for _ in range(PROFILES))
    Path(sys.argv[1]).write_text(f"[\n{lines}\n]\n")
