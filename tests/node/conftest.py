"""Fixtures that several of the node's tests ask for."""

from tests.kit.town import town as town
