"""MATLAB files (.mat, up to version 7.2), by SciPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def read_mat(path: Path, *names: str) -> list[np.ndarray]:
    """The variables of these names.

    Raises `ValueError` for a file that is none, damaged, of another version or without them.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=names)
        return [np.asarray(content[name]) for name in names]
    except (MatReadError, OSError, TypeError, LookupError, NotImplementedError) as error:
        raise ValueError(f"{path.name}: {error}") from error
