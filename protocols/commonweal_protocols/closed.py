"""The base of every record of a closed schema."""

from pydantic import BaseModel, ConfigDict


class Closed(BaseModel):
    """A frozen record of a closed schema: an unknown key is an error, and no value is coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
