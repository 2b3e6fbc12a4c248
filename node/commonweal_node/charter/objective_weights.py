"""A charter's objectives: how much each counts in training, by name. No torch; pure.

The gradient of a step is the weighted sum of the objectives' gradients, and each objective's loss is reported under its
own name: the sum itself means nothing to anybody, and is shown to nobody.
"""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from commonweal_protocols.base.schema import Closed

ObjectiveName = Literal["supervised", "text", "dpo", "simpo", "base-kl"]
OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
"""In the order in which a step takes them: float addition is not associative."""

Weight = Annotated[int, Field(ge=0, le=100_000)]


class ObjectiveWeights(Closed):
    """Weights in thousandths; 0: that objective is not trained. By default, supervised fine-tuning alone."""

    supervised_millis: Weight = 1000
    """Cross entropy of the assistant's tokens, given the conversation."""
    text_millis: Weight = 0
    """Continued pre-training: cross entropy of every token of a text."""
    dpo_millis: Weight = 0
    """Preferences against the round's start as the reference (DPO, arXiv 2305.18290)."""
    simpo_millis: Weight = 0
    """Preferences with no reference (SimPO, arXiv 2405.14734)."""
    base_kl_millis: Weight = 0
    """The safety anchor: KL(adapted ‖ base) at the assistant's tokens of the conversations."""
    dpo_beta_millis: Annotated[int, Field(ge=1, le=100_000)] = 100
    simpo_beta_millis: Annotated[int, Field(ge=1, le=100_000)] = 2000
    simpo_margin_millis: Annotated[int, Field(ge=0, le=100_000)] = 1000

    @model_validator(mode="after")
    def _trains_something(self) -> "ObjectiveWeights":
        if not any(self.weight(name) for name in OBJECTIVES if name != "base-kl"):
            raise ValueError("objectives: wanted a weight above 0 for supervised, text, dpo or simpo, got none")
        return self

    def weight(self, name: ObjectiveName) -> float:
        """Return an objective's weight, as the gradient takes it."""
        millis: int = getattr(self, f"{name.replace('-', '_')}_millis")
        return millis / 1000


SUPERVISED = ObjectiveWeights()
"""What is trained where no charter says otherwise."""
