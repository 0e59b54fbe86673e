"""Which files of a model folder are weights, tokenizer, code or company of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
GENERATION = "generation_config.json"
BESIDE, DELTA = "delta", "delta.json"  # where a delta lies in a model's folder; the file that makes it one
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".ot"})
_CARRIED = frozenset({".json", ".txt", ".md", ".model", ".spm", ".jinja", ".tsv", ".vocab", ""})
_ELSEWHERE = frozenset({"runs", "logs", "onnx", "openvino", "original", "delta"})
TOKENIZER = frozenset(
    {
        "added_tokens.json",
        "merges.txt",
        "sentencepiece.bpe.model",
        "source.spm",
        "special_tokens_map.json",
        "spiece.model",
        "spm.model",
        "target.spm",
        "target_vocab.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
_NOT_CARRIED = frozenset(
    {INDEX, CONFIG, GENERATION, "asset.json", "manifest.json", "rewrite.json", "trainer_state.json"}
)


def companions(folder: Path) -> Iterator[Path]:
    """Files that belong to a model besides weights and configuration, as paths relative to `folder`.

    Tokenizer, chat templates, licence, card, pooling settings. Left out: weights in any format, code (a
    checkpoint that is only read with library code needs none), hidden files and what training leaves.
    """
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        left = any(part.startswith((".", "checkpoint-")) or part in _ELSEWHERE for part in path.parts)
        own = file.parent == folder and file.name in _NOT_CARRIED
        if file.is_file() and file.suffix in _CARRIED and not left and not own:
            yield path


def weight_files(folder: Path) -> list[Path]:
    """The files of a plain model folder that its weights and configuration lie in."""
    named = [folder / name for name in (CONFIG, GENERATION, INDEX, WEIGHTS)]
    return [*(file for file in named if file.is_file()), *sorted(folder.glob("model-*.safetensors"))]


def pickled_weights(folder: Path) -> list[str]:
    """Names of weight files that could only be read by unpickling."""
    return sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
