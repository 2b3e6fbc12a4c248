"""Another's text on a terminal or in a log of our own. Pure."""


def printable(text: str) -> str:
    """Return a text as one line that cannot move its reader's cursor: white space as spaces, else ``?``."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
