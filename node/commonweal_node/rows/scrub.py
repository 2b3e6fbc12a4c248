"""Personal data in text, and placeholders in its place: ``[EMAIL]``, ``[IBAN]``, ``[CARD]``, ``[ID]`` and others.

What is looked for has a form that can be checked: candidates are found by patterns whose work is bounded, and kept if a
well-kept library says that they hold: phonenumbers (Google's numbering plans), python-stdnum (check digits of IBANs,
cards and national identifiers), the standard library (addresses of machines). Names, streets and stories are NOT
found; a person may be known by those alone. Anyone who needs that has people read the rows.

Guarantees: scrubbing again changes nothing; only counts come out besides the text. Pure. Needs the extra ``data``.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version

from commonweal_node.charter.data_policy import NationalId, Personal, Scrub

PLACEHOLDERS: dict[Personal, str] = {
    "email": "[EMAIL]",
    "iban": "[IBAN]",
    "card": "[CARD]",
    "national-id": "[ID]",
    "phone": "[PHONE]",
    "ip": "[IP]",
}
"""In this order: where two overlap, the earlier kind is it."""

Span = tuple[int, int]
Scrubber = Callable[[str], tuple[str, Counter[Personal]]]

_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}", re.IGNORECASE | re.ASCII)
_CARD = re.compile(r"(?<!\w)[2-6]\d(?:[ -]?\d){11,17}", re.ASCII)
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9a-f:]{0,38}:[0-9a-f:]{0,38}:)[0-9a-f:]{3,39}(?![\w:])", re.IGNORECASE | re.ASCII)

_NATIONAL: dict[NationalId, tuple[str, str]] = {
    # What each looks like, and the module of python-stdnum that checks it.
    "br-cpf": (r"\d{3}\.?\d{3}\.?\d{3}-?\d{2}", "br.cpf"),
    "es-dni": (r"\d{8}-?[A-Z]", "es.dni"),
    "es-nie": (r"[XYZ]-?\d{7}-?[A-Z]", "es.nie"),
    "fr-nir": (r"[1278] ?\d{2} ?\d{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}", "fr.nir"),
    "gb-nhs": (r"\d{3}[ -]?\d{3}[ -]?\d{4}", "gb.nhs"),
    "in-aadhaar": (r"\d{4}[ -]?\d{4}[ -]?\d{4}", "in_.aadhaar"),
    "in-pan": (r"[A-Z]{5}\d{4}[A-Z]", "in_.pan"),
    "it-codice-fiscale": (r"[A-Z]{6}[\dA-Z]{2}[A-Z][\dA-Z]{2}[A-Z][\dA-Z]{3}[A-Z]", "it.codicefiscale"),
    "mx-curp": (r"[A-Z]{4}\d{6}[A-Z]{6}[A-Z\d]\d", "mx.curp"),
    "us-ssn": (r"\d{3}-\d{2}-\d{4}", "us.ssn"),
}


def make_scrubber(policy: Scrub) -> Scrubber:
    """Return the function that scrubs one text by a policy, and counts what it found of each kind.

    Raises:
        ModuleNotFoundError: The extra ``data`` is not installed.
    """
    found = _finders(policy)

    def scrub(text: str) -> tuple[str, Counter[Personal]]:
        counts: Counter[Personal] = Counter()
        # Again until nothing is found: a placeholder may have parted what stood in the way of another match. Each
        # round takes at least one digit or @ away, so it ends.
        while spans := _spans(text, found):
            pieces, at = [], 0
            for start, end, kind in spans:
                pieces += [text[at:start], PLACEHOLDERS[kind]]
                counts[kind] += 1
                at = end
            text = "".join(pieces) + text[at:]
        return text, counts

    return scrub


def scrubber_version() -> str:
    """Name what decides whether a number holds: another version may decide otherwise."""
    return f"phonenumberslite {version('phonenumberslite')}, python-stdnum {version('python-stdnum')}"


def _spans(text: str, finders: dict[Personal, Callable[[str], Iterator[Span]]]) -> list[tuple[int, int, Personal]]:
    """Where personal data stands, in order and without overlaps; the earlier kind wins, then the earlier place."""
    spans: list[tuple[int, int, Personal]] = []
    taken = bytearray(len(text))
    for kind in PLACEHOLDERS:
        for start, end in finders[kind](text) if kind in finders else ():
            if not any(taken[start:end]):
                taken[start:end] = b"\1" * (end - start)
                spans.append((start, end, kind))
    return sorted(spans)


def _finders(policy: Scrub) -> dict[Personal, Callable[[str], Iterator[Span]]]:
    iban, luhn = import_module("stdnum.iban"), import_module("stdnum.luhn")
    all_of: dict[Personal, Callable[[str], Iterator[Span]]] = {
        "email": lambda text: (m.span() for m in _EMAIL.finditer(text)),
        "iban": lambda text: _longest_valid(_IBAN, iban.is_valid, 15, text),
        "card": lambda text: _longest_valid(_CARD, luhn.is_valid, 13, text),
        "national-id": _national(policy.national_ids),
        "phone": _phones(policy.phone_regions),
        "ip": _addresses,
    }
    return {kind: all_of[kind] for kind in policy.kinds}


def _longest_valid(pattern: re.Pattern[str], holds: Callable[[str], bool], least: int, text: str) -> Iterator[Span]:
    """Of each candidate, the longest beginning that holds: what follows a number may look like more of it."""
    for m in pattern.finditer(text):
        candidate = m.group()
        for end in range(len(candidate), 0, -1):
            compact = candidate[:end].replace(" ", "").replace("-", "")
            if len(compact) < least:
                break
            after = text[m.start() + end : m.start() + end + 1]
            # A number ends where its characters do.
            if candidate[end - 1].isalnum() and not after.isalnum() and holds(compact):
                yield m.start(), m.start() + end
                break


def _national(kinds: tuple[NationalId, ...]) -> Callable[[str], Iterator[Span]]:
    checks = [
        (re.compile(rf"(?<!\w){pattern}(?!\w)", re.IGNORECASE | re.ASCII), import_module(f"stdnum.{module}").is_valid)
        for pattern, module in (_NATIONAL[k] for k in kinds)
    ]
    return lambda text: (m.span() for pattern, holds in checks for m in pattern.finditer(text) if holds(m.group()))


def _phones(regions: tuple[str, ...]) -> Callable[[str], Iterator[Span]]:
    phonenumbers = import_module("phonenumbers")
    # Without a region, numbers with their country's code are found; that one first, as it is the surest.
    places: tuple[str | None, ...] = (None, *regions)

    def find(text: str) -> Iterator[Span]:
        if not any(c.isdigit() for c in text):
            return
        for region in places:
            for m in phonenumbers.PhoneNumberMatcher(text, region):
                yield m.start, m.end

    return find


def _addresses(text: str) -> Iterator[Span]:
    for pattern in (_IPV4, _IPV6):
        for m in pattern.finditer(text):
            try:
                ipaddress.ip_address(m.group())
            except ValueError:
                continue
            yield m.span()
