"""byzfl's aggregators, where that package is installed: a second implementation of the robust rules, in floats.

Its top module imports a training benchmark, and with it torchvision and drawing. Only the aggregators are wanted, so
that module's own code is passed over. The package is no dependency of ours: ``pip install --no-deps byzfl==0.0.11``.
"""

import importlib
import importlib.util
import sys
import types
from typing import Any

import pytest


def aggregators() -> Any:  # noqa: ANN401 - untyped package
    """Return the module ``byzfl.aggregators``; skip the test where it is not installed."""
    if "byzfl" not in sys.modules:
        spec = importlib.util.find_spec("byzfl")
        if spec is None or spec.submodule_search_locations is None:
            pytest.skip("byzfl is not installed; its dependencies are larger than ours together")
        package = types.ModuleType("byzfl")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")
