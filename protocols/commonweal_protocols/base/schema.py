"""The base of every record of a closed schema."""

from typing import Any

from pydantic import AfterValidator, BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema

SORTED = AfterValidator(lambda mapping: dict(sorted(mapping.items())))
"""For a field that is a mapping with ASCII keys: held sorted, as a record's fields are, it has one encoding."""


def is_absent(value: object) -> bool:
    """For ``Field(exclude_if=…)``: an optional field is left out, so that entries without it keep their bytes."""
    return value is None


class Closed(BaseModel):
    """A frozen record of a closed schema: an unknown key is an error, and no value is coerced.

    It holds its fields sorted by name, so that what pydantic writes in one pass is in RFC 8785's order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema that pydantic makes, with its fields sorted."""
        schema = handler(source)
        inner: Any = schema
        while inner["type"] != "model-fields":
            # Below definitions, validators and the model itself.
            inner = handler.resolve_ref_schema(inner) if inner["type"] == "definition-ref" else inner["schema"]
        inner["fields"] = dict(sorted(inner["fields"].items()))
        return schema

    def to_canonical(self) -> bytes:
        """Return the RFC 8785 bytes of a record of records, tuples, truth values, and bounded text and integers.

        Bounded text is valid Unicode: pydantic takes no other. A mapping must be :data:`SORTED`; one that is not,
        and an integer beyond ±(2^53 - 1), would be written as it is: who has such uses :func:`canonical.encode`.
        """
        return self.__pydantic_serializer__.to_json(self)
