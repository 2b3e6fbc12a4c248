"""A home in which a node can train by itself: settings, rows, a charter with an anchor, and terms for the tiny base."""

import json
from pathlib import Path

import torch

from tests.kit.tiny_model import base_and_adapter


def make_home(home: Path) -> Path:
    """Write it into a folder, which is given back."""
    (home / "terms.toml").write_text(
        base_and_adapter(home) + "[recipe]\nsteps = 3\nbatch_size = 2\nlearning_rate_micros = 5000\nmax_tokens = 160\n"
        "[rule]\nname = 'for others to read'\n"
    )
    rows = [
        {
            "messages": [{"role": "user", "content": f"what of {i}?"}, {"role": "assistant", "content": f"{i * 7}"}],
            "split": "train" if i < 8 else "heldout",
        }
        for i in range(16)
    ]
    (home / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (home / "charter.toml").write_text(
        'community = "three wells"\nversion = 1\nprinciples = ["ask first"]\ndata_policy = "ours"\n'
        "[objectives]\nsupervised_millis = 900\nbase_kl_millis = 100\n"
    )
    (home / "node.toml").write_text(
        f'institution = "clinic"\ndata = "rows.jsonl"\ncharter = "charter.toml"\nthreads = {torch.get_num_threads()}\n'
    )
    return home
