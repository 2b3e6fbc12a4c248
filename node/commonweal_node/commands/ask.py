"""``commonweal node ask``: a question to what serves this community, and to the base beside it. Nothing is sent."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from commonweal_node.config import load_config
from commonweal_node.home import DEFAULT_HOME, NodeHome
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.options import AsJson, Home
from commonweal_protocols.base.text import printable


def ask(
    question: Annotated[str, typer.Argument(help="What to ask; - reads it from the standard input.")],
    home: Home = DEFAULT_HOME,
    beside_base: Annotated[bool, typer.Option(help="Ask the base alone too, without any adapter.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="How long an answer may be.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Ask the model that serves this community a question.

    What serves is the adapter in HOME/adopted; before the first release is ratified, the base alone. The answer is the
    likeliest one (greedy): the same question gets the same answer on one machine.
    """
    from commonweal_node.connection.witness import signed_compact
    from commonweal_node.institution.adoption import name_of
    from commonweal_node.institution.answer_store import Answers
    from commonweal_node.model.base_model import fetch_base

    text = typer.get_text_stream("stdin").read().strip() if question == "-" else question.strip()
    if not text:
        raise ConfigError('ask: wanted a question, got none: commonweal node ask "What do we do when …?"')
    config, compact, files = load_config(NodeHome(home).settings), signed_compact(home), NodeHome(home)
    kept = Answers(home, compact.adapter).serving()
    console = Console(stderr=True, markup=False, highlight=False)
    base = fetch_base(compact.base, config.cache, lambda line: console.print(f"base model: {line}"))
    asked: list[tuple[str, Path | None]] = []
    if kept is not None:
        asked.append((name_of(kept.key), files.adopted))
    if beside_base or kept is None:
        asked.append(("the base alone", None))
    answers = [(what, _answer(base, adapter, config.threads, text, max_new_tokens)) for what, adapter in asked]
    if as_json:
        typer.echo(json.dumps([{"serves": what, "answer": answer} for what, answer in answers]))
        return
    for what, answer in answers:
        if len(answers) > 1 or kept is None:
            typer.echo(f"-- {what}")
        lines = [printable(line) for line in answer.splitlines()]
        typer.echo("\n".join(lines) or "(it has nothing to say, or the question is too long for its window)")


def _answer(base: Path, adapter: Path | None, threads: int, question: str, max_new_tokens: int) -> str:
    from commonweal_node.rows.row import Message
    from commonweal_node.training.local_model import LocalModel

    return LocalModel(base, adapter, threads or None).answer([Message("user", question)], max_new_tokens)
