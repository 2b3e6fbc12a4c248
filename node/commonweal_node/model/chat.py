"""Conversations as text and as tokens, by a base model's own chat template. No torch, no clock.

Guarantees: what somebody wrote never becomes a control token, so no row can forge a turn or end one; a template that
writes the day writes one and the same day always; whatever a template raises names the row.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jinja2 import TemplateError

from commonweal_node.rows.row import Message
from commonweal_protocols.base.errors import BaseModelError, ConfigError
from commonweal_protocols.base.text import printable

DAY = datetime(2024, 7, 26, tzinfo=UTC)
"""For templates that write the day: a real one would change rows, losses and checkpoints at midnight."""
_CODES = "aAbBdmyYHIMSpjUwWxXcZ"
_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('%{c}', '{DAY.strftime('%' + c)}')" for c in _CODES)
    + f" | replace('%-d', '{DAY.day}') | replace('%-m', '{DAY.month}') }}}}{{%- endmacro %}}\n"
)
"""Before a template it takes the place of transformers' clock; the line's end is the one that it takes away."""
_BREAK = "\ufdd0"
"""No character (Unicode keeps it free for programs): between what stands before and after it no token is made."""
_SAID_CHARACTERS = 200
_RAISED = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What the language of templates has, and what Python raises in it."""


class ChatTokenizer(Protocol):
    """The part of a Hugging Face fast tokenizer that is used here."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Tokens beside the vocabulary, by id: ``content``, and whether it is ``special``."""

    def get_chat_template(self) -> str:
        """Return the template for conversations without tools."""

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        chat_template: str,
    ) -> Any:  # noqa: ANN401 (text, with tokenize=False)
        """Write a conversation as one text."""

    def __call__(self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool) -> Any:  # noqa: ANN401 (a BatchEncoding)
        """Token ids and their character spans."""


class Encoded(NamedTuple):
    """Token ids, and where in the text each begins and ends."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


class ChatWriter:
    """Writes conversations and texts for one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and len(t.content) > 1]
        # Wherever one begins, also within another one.
        self._control = re.compile(f"(?=(?:{'|'.join(map(re.escape, special))})).") if special else None

    def guard(self, text: str) -> str:
        """Return somebody's text, as :meth:`encode` takes it: no control token will be made of it."""
        text = text.replace(_BREAK, "")
        return self._control.sub(lambda m: m[0] + _BREAK, text) if self._control else text

    def write(self, messages: Sequence[Message], where: str, *, prompt: bool) -> str:
        """Write a conversation by the template, for :meth:`encode`; with ``prompt`` up to where the assistant begins.

        Raises:
            ConfigError: The template refuses this conversation; says which by ``where``, and what the template says.
        """
        turns = [{"role": m.role, "content": self.guard(m.content)} for m in messages]
        try:
            template = _CLOCK + self._tokenizer.get_chat_template()
            return str(
                self._tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=prompt, chat_template=template
                )
            )
        except _RAISED as e:
            raise ConfigError(
                f"{where}: wanted a conversation that the base model's chat template can write, got "
                f"{type(e).__name__}: {printable(str(e))[:_SAID_CHARACTERS]}; change the row, or leave it out"
            ) from None

    def encode(self, text: str, borders: Sequence[int] = ()) -> Encoded:
        """Return the tokens of a text, of which none goes across what :meth:`guard` put into it, nor across a border.

        Args:
            text: With what is guarded in it.
            borders: Places in it, ascending. Where a token would go across one, the parts are encoded apart, as they
                are when a model is asked and then answers.
        """
        whole = self._parts(text, (0,))
        crossed = [x for x in borders if any(a < x < b for a, b in whole.spans)]
        return self._parts(text, (0, *crossed)) if crossed else whole

    def _parts(self, text: str, starts: Sequence[int]) -> Encoded:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for first, end in pairwise((*starts, len(text))):
            for piece in re.finditer(f"[^{_BREAK}]+", text[first:end]):
                found = self._tokenizer(piece[0], add_special_tokens=False, return_offsets_mapping=True)
                start = first + piece.start()
                ids += found["input_ids"]
                spans += [(start + a, start + b) for a, b in found["offset_mapping"]]
        return Encoded(tuple(ids), tuple(spans))


def load_tokenizer(directory: Path) -> Any:  # noqa: ANN401 (a Hugging Face fast tokenizer)
    """Load the tokenizer of what ``fetch_base`` returned.

    Raises:
        BaseModelError: The folder does not hold a fast tokenizer with a chat template.
    """
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{directory}: wanted a tokenizer, got {error}") from error
    if not tokenizer.is_fast or not tokenizer.chat_template:
        raise BaseModelError(f"{directory}: wanted a fast tokenizer with a chat template, got none (use a chat model)")
    return tokenizer
