"""Which language a text is in, by py3langid (Lui and Baldwin 2012): 139 languages, a model that comes with the package.

Offline and without chance: the same text gets the same answer, on one machine and with one version of the package. A
sentence or two is enough; a single word often is not, and its confidence says so. Needs the extra ``data``.
"""

from collections.abc import Callable
from importlib.metadata import version

MAX_CHARACTERS = 2000
"""What is looked at; more changes no answer and costs time."""
UNDETERMINED = "und"

Identify = Callable[[str], tuple[str, float]]
"""Text to language (ISO 639-1 or -3, or ``zxx`` for what is no language) and the confidence in it, 0 to 1."""


def load_identifier() -> Identify:
    """Load the model; takes about a second.

    Raises:
        ModuleNotFoundError: The extra ``data`` is not installed.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def identify(text: str) -> tuple[str, float]:
        language, confidence = identifier.classify(text[:MAX_CHARACTERS])
        return str(language), float(confidence)

    return identify


def identifier_version() -> str:
    """Name what tells languages apart: another version may tell otherwise."""
    return f"py3langid {version('py3langid')}"
