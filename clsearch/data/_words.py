"""Word vectors from a file of the user's: text as word2vec and GloVe have it, or NumPy arrays."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clsearch.errors import InputError

_FORM = "a text file of `word v1 … vD`, or an .npz file of `words` and `vectors` [N, D]"
Vectors = dict[str, Tensor]


def words_of(part: str) -> list[str]:
    """The words of a part of a fact: `tennis racket` and `tennis_racket` have two."""
    return part.replace("_", " ").split()


def word_vectors(path: Path, wanted: Collection[str], field: str) -> Vectors:
    """The vectors, float64 `[D]`, of those of `wanted` words that the file has.

    Of a word that stands in it twice, the first counts. Raises `InputError` at `field` for a file
    of another form, vectors of several lengths, and numbers that are not finite.
    """
    read = _arrays if path.suffix == ".npz" else _text
    try:
        found = read(path, wanted)
    except (*(OSError, ValueError, KeyError, EOFError), zipfile.BadZipFile, zlib.error) as error:
        said = " ".join(str(error).split())
        raise InputError(field, str(path), _FORM, f"The reader said: {said}") from error
    for word, vector in found.items():
        if not vector.float().isfinite().all() or (len(vector) and not vector.any()):
            step = f"The vector of {word!r} is otherwise."
            raise InputError(field, str(path), "finite numbers, not all of them 0", step)
    lengths = {len(vector) for vector in found.values()}
    if len(lengths) > 1 or 0 in lengths:
        found_lengths = f"There are such of {' and '.join(map(str, sorted(lengths)))} numbers."
        raise InputError(field, str(path), "vectors of one length", found_lengths)
    return found


def _text(path: Path, wanted: Collection[str]) -> Vectors:
    """From a text file, which may begin with a line of the two sizes; words have no blanks."""
    found: Vectors = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            word = "".join(line.split(maxsplit=1)[:1])
            if word not in wanted or word in found:
                continue
            try:
                numbers = [float(value) for value in line.split()[1:]]
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            found[word] = torch.tensor(numbers, dtype=torch.float64)
            if len(found) == len(wanted):
                break
    return found


def _arrays(path: Path, wanted: Collection[str]) -> Vectors:
    with np.load(path, allow_pickle=False) as content:
        words, vectors = content["words"], content["vectors"]
    if words.dtype.kind != "U" or vectors.dtype.kind != "f" or vectors.ndim != 2:
        raise ValueError(f"words {words.dtype} {words.shape}, vectors {vectors.dtype}")
    if words.shape != vectors.shape[:1]:
        raise ValueError(f"{words.size} words and {len(vectors)} vectors")
    found: Vectors = {}
    for word, vector in zip(words.tolist(), vectors, strict=True):
        if word in wanted and word not in found:
            found[word] = torch.from_numpy(vector.astype(np.float64))
    return found


def embed(parts: Collection[str], path: Path, field: str) -> Vectors:
    """The vector, float32 `[D]`, of each part of a fact: the mean of those of its words.

    A word is looked up as it is written, then in small letters. Raises `InputError` at `field`
    where a word has no vector: the first is named, all are counted.
    """
    words = {word for part in parts for word in words_of(part)}
    found = word_vectors(path, words | {word.lower() for word in words}, field)
    found |= {word: found[word.lower()] for word in words - found.keys() if word.lower() in found}
    missing = sorted(words - found.keys())
    if missing:
        part = min(part for part in parts if missing[0] in words_of(part))
        step = f"{len(missing)} of {len(words)} have none, the first is {missing[0]!r} of {part!r}."
        raise InputError(field, str(path), "a vector for every word of the facts", step)
    return {part: torch.stack([found[w] for w in words_of(part)]).mean(0).float() for part in parts}
