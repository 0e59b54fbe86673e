"""calque carries a pretrained language model over into a language it does not serve yet.

Public names are imported on first use, so that `import calque` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Checkpoint": "calque.model.checkpoint",
    "Corpus": "calque.data.corpus",
    "Example": "calque.data.example",
    "Language": "calque.language",
    "Lexicon": "calque.data.lexicon",
    "Rewrite": "calque.merge.rewrite",
    "Slot": "calque.model.slots",
    "Table": "calque.evaluate.table",
    "Tokens": "calque.vocab.tokens",
    "VocabMap": "calque.vocab.map",
    "adapt": "calque.adapt",
    "method": "calque.registry",
    "profile": "calque.profile",
    "run": "calque.runner",
}
__all__ = ["__version__", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'calque' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
