"""The files that make a folder a model of MLflow, written without importing it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from datetime import UTC, datetime
from pathlib import Path

import yaml


def write_mlmodel(folder: Path, run_id: str, model_id: str, at: int) -> None:
    """Writes what makes `folder`, with its `data/model.pt2` and `example.npy`, an MLflow model.

    The format is documented and small. `mlflow.models` would write it too, but importing that takes
    a second and warns on the terminal.
    """
    import numpy as np
    import torch

    example = np.load(folder / "example.npy", allow_pickle=False)
    tensor = {"dtype": example.dtype.name, "shape": [-1, *example.shape[1:]]}
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
        "model_id": model_id,
        "model_uuid": model_id.removeprefix("m-"),
        "run_id": run_id,
        "signature": {"inputs": json.dumps([{"type": "tensor", "tensor-spec": tensor}])},
        "utc_time_created": str(datetime.fromtimestamp(at / 1000, UTC).replace(tzinfo=None)),
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(model))
    names = ("mlflow", "torch", "numpy")
    lines = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}\n" for name in names]
    (folder / "requirements.txt").write_text("".join(lines))
    python = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(yaml.safe_dump(python))
