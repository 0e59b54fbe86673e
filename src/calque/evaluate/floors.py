"""What no network would reach: every token equally likely, general compressors, counts of n-grams.

A compressor is given the training text as a dictionary, so it may copy from all that the model has learned
from. A model that does not beat it has learned less than copying. Bits are those by which a document makes
the compressed form longer:

    xz:   bits = 8 (|xz(training + document)| - |xz(training)|), LZMA without headers, dictionary = all of it
    zstd: bits = 8 |zstd(document; dictionary = training)|, level 19, window over the whole dictionary

A trigram model (absolute discounting, interpolated) over the tokens of a system's own tokenizer, counted on
the training text, is the floor that says most: it is what statistics without a network know of the text.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

from annotated_types import Ge

from calque import __version__
from calque.data.corpus import Corpus
from calque.data.ngram import Ngrams
from calque.evaluate.documents import Document, documents, fingerprint, sides, words
from calque.evaluate.table import Table, signature
from calque.machine import threads
from calque.progress import bar
from calque.vocab.tokens import Tokens

Compressor = Literal["zstd", "xz"]
_ZSTD_LEVEL = 19
_COUNTED_BYTES = 100_000_000  # of the training text, for n-grams


def floors(
    texts: Mapping[str, Corpus],
    training: Corpus | None = None,
    tokenizers: Mapping[str, Tokens] | None = None,
    *,
    compressors: Sequence[Compressor] = ("zstd", "xz"),
    max_bytes: Annotated[int, Ge(1)] | None = None,
    dictionary_bytes: Annotated[int, Ge(1)] = 1_000_000,
) -> Table:
    """Score what needs no model, on the same documents and bytes as `evaluate/lm`.

    Args:
        texts: Held-out corpora by name, as for `evaluate/lm`.
        training: The training text, the compressors' dictionary; a text in a language that it does not
            have gets no such floor. Without it the compressors start from nothing.
        tokenizers: Tokenizers by system name, each for a floor "uniform, NAME": log2 V bits for a token,
            and, with a training text, for a floor "trigram, NAME".
        compressors: Which ones; xz compresses the dictionary once for each document and takes seconds each.
        max_bytes: As for `evaluate/lm`; give both the same.
        dictionary_bytes: Only the last so many bytes of the training text are given to the compressors.

    Returns:
        A table with the metrics bits, bytes and words; task "lm/NAME", so that it joins that of
        `evaluate/lm`; systems "zstd", "xz", "uniform, NAME", "trigram, NAME".

    Raises:
        DataError: A text without any text.

    Relations: the uniform floor is what `evaluate/lm` gives a model whose logits are all equal. A document
    that stands in the training text costs a compressor next to nothing.
    """
    rows: list[dict[str, Any]] = []
    ngrams = _ngrams(training, tokenizers or {})
    for name, language, corpus in sides(texts):
        held = documents(corpus, language, max_bytes)
        if training is None or language in training.languages:
            dictionary = _dictionary(training, language, dictionary_bytes)
            for compressor in compressors:
                nbytes = _compressed(compressor, dictionary, held, f"{compressor}, {name}")
                bits = [8.0 * size for size in nbytes]
                made_by = {"dictionary": len(dictionary), "level": _level(compressor)}
                rows.extend(_rows(compressor, name, language, held, bits, made_by))
        for system, tokens in (tokenizers or {}).items():
            encoded = tokens.encode_batch([document.text for document in held])
            made_by = {"tokens": len(tokens)}
            bits = [len(ids) * math.log2(len(tokens)) for ids in encoded]
            rows.extend(_rows(f"uniform, {system}", name, language, held, bits, made_by))
            if (system, language) in ngrams:
                bits = [ngrams[system, language].surprise(ids) for ids in encoded]
                rows.extend(_rows(f"trigram, {system}", name, language, held, bits, made_by))
    return Table.of(rows)


def _ngrams(training: Corpus | None, tokenizers: Mapping[str, Tokens]) -> dict[tuple[str, str], Ngrams]:
    """Counts by (system, language) of the training text."""
    if training is None:
        return {}
    return {
        (system, language): Ngrams.of_documents(
            tokens.encode_batch(list(_first(training, language, _COUNTED_BYTES))), len(tokens)
        )
        for language in training.languages
        for system, tokens in tokenizers.items()
    }


def _first(training: Corpus, language: str, limit: int) -> Iterator[str]:
    for _, text in training.documents(language):
        if limit <= 0:
            return
        yield text
        limit -= len(text.encode())


def _dictionary(training: Corpus | None, language: str, limit: int) -> bytes:
    """The end of the training text, as the documents would follow it."""
    if training is None:
        return b""
    return "\n".join(training.texts(language)).encode()[-limit:] + b"\n"


def _compressed(compressor: Compressor, dictionary: bytes, held: Sequence[Document], label: str) -> list[int]:
    """Bytes that each document adds."""
    measure = _zstd(dictionary) if compressor == "zstd" else _xz(dictionary)
    with bar(f"floor: {label}", len(held), "documents") as shown, ThreadPoolExecutor(threads()) as pool:
        sizes = []
        for size in pool.map(measure, [document.text.encode() for document in held]):
            sizes.append(size)
            shown.update(1)
    return sizes


def _xz(dictionary: bytes) -> Callable[[bytes], int]:
    def size(data: bytes) -> int:
        room = max(4096, len(dictionary) + len(data))
        chain = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": room}]
        return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=chain))

    alone = size(dictionary) if dictionary else 0
    return lambda document: size(dictionary + document) - alone


def _zstd(dictionary: bytes) -> Callable[[bytes], int]:
    import zstandard

    window = max(10, math.ceil(math.log2(len(dictionary) + (1 << 20))))
    made: Any = zstandard.ZstdCompressionParameters.from_level(
        _ZSTD_LEVEL,
        window_log=min(window, zstandard.WINDOWLOG_MAX),
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_dict_id=False,
    )
    given = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    if dictionary:
        given.precompute_compress(compression_params=made)

    def size(document: bytes) -> int:
        return len(zstandard.ZstdCompressor(dict_data=given, compression_params=made).compress(document))

    return size


def _level(compressor: Compressor) -> int:
    return _ZSTD_LEVEL if compressor == "zstd" else 6


def _rows(
    system: str,
    name: str,
    language: str,
    held: Sequence[Document],
    bits: Sequence[float],
    made_by: Mapping[str, object],
) -> Iterator[dict[str, Any]]:
    said = {**made_by, "text": fingerprint(held), "version": __version__}
    for document, amount in zip(held, bits, strict=True):
        counted = {"bits": amount, "bytes": document.nbytes, "words": words(document.text, language)}
        for metric, value in counted.items():
            yield {
                "system": system,
                "task": f"lm/{name}",
                "language": language,
                "item": document.item,
                "metric": metric,
                "value": value,
                "signature": signature("floors", said),
            }
