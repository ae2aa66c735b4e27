"""The files that make a folder a model of MLflow, written without importing it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

PROGRAM = "data/model.pt2"
FILES = ("MLmodel", "requirements.txt", "python_env.yaml", PROGRAM)
"""What a model that was written alone consists of."""


def write_mlmodel(folder: Path, run_id: str, model_id: str, at: int) -> None:
    """Writes what makes `folder`, with its `data/model.pt2` and `example.npy`, an MLflow model.

    The format is documented and small. `mlflow.models` would write it too, but importing that takes
    a second and warns on the terminal.
    """
    import numpy as np

    example = np.load(folder / "example.npy", allow_pickle=False)
    known = {
        "model_id": model_id,
        "model_uuid": model_id.removeprefix("m-"),
        "run_id": run_id,
        "signature": {"inputs": _tensor(example.shape[1:], example.dtype.name)},
        "utc_time_created": str(datetime.fromtimestamp(at / 1000, UTC).replace(tzinfo=None)),
    }
    _write(folder, known)


def write_alone(
    folder: Path, shape: Sequence[int], outputs: int, metadata: Mapping[str, Any]
) -> None:
    """The same for a model of no run: images `[C, H, W]` of float32 pixels to so many outputs.

    It has no time of its own, so that the same model makes the same files.
    """
    signature = {"inputs": _tensor(shape), "outputs": _tensor([outputs])}
    _write(folder, {"signature": signature, "metadata": dict(metadata)})


def _tensor(shape: Sequence[int], dtype: str = "float32") -> str:
    """A batch of any size of such tensors, as a signature says it."""
    spec = {"dtype": dtype, "shape": [-1, *shape]}
    return json.dumps([{"type": "tensor", "tensor-spec": spec}])


def _write(folder: Path, known: Mapping[str, Any]) -> None:
    import torch

    generic = {
        "loader_module": "mlflow.pytorch",
        "data": "data",
        "config": {"device": None},
        "env": {"virtualenv": "python_env.yaml"},
        "python_version": platform.python_version(),
    }
    torch_flavor = {"model_data": "data", "code": None, "pytorch_version": str(torch.__version__)}
    model = {
        "flavors": {"python_function": generic, "pytorch": torch_flavor},
        "mlflow_version": importlib.metadata.version("mlflow"),
        **known,
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(model))
    names = ("mlflow", "torch", "numpy")
    lines = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}\n" for name in names]
    (folder / "requirements.txt").write_text("".join(lines))
    python = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(yaml.safe_dump(python))
