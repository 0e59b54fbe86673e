"""The errors a user may see: each says what is wrong, where, and what would be right.

Every one of them ends a command with exit code 2 and its message alone, never a traceback.
"""

import difflib
from collections.abc import Iterable


class CalqueError(Exception):
    """Root of the errors meant for the user; never raised itself."""


class ConfigError(CalqueError):
    """A setting, method, step or command line that can not be right."""


class DataError(CalqueError):
    """A text, parallel file, table or other material that can not be used as it is."""


class ModelError(CalqueError):
    """A checkpoint, tokenizer or adapter that can not be used as it is."""


class MissingExtra(CalqueError):
    """An optional library is needed and not installed; the message names the extra."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the library '{library}', which is not installed; "
            f"install it with: pip install 'calque[{extra}]'"
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known names as the middle of an error message, or nothing."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    near = near or [name for name in known if name.split("/")[-1] == word.split("/")[-1]][:3]
    return f", did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
