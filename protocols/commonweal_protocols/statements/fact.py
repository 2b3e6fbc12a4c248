"""The base of every kind of fact that an entry may state: what in-toto calls a predicate."""

from abc import abstractmethod
from typing import ClassVar, Literal, TypeAlias

from commonweal_protocols.base.schema import Closed
from commonweal_protocols.statements.values import Subject

Author: TypeAlias = Literal["a member", "the coordinator", "a member or the coordinator", "several keys"]


class Fact(Closed):
    """What an entry states. All that is true of its kind as such stands on the class."""

    URI: ClassVar[str]
    """in-toto's ``predicateType``. A released schema never changes: a change is another URI."""
    TITLE: ClassVar[str]
    """What such an entry says, in a few words for anyone."""
    AUTHOR: ClassVar[Author]
    """Whose signature the fold wants on it. Of several keys, the kind's own rule says which."""

    @classmethod
    def kind(cls) -> str:
        """The kind in one word, as reports and an auditor's memory have it."""
        return cls.__name__.lower()

    @abstractmethod
    def subject(self) -> Subject:
        """What the statement is about, which follows from the fields."""
