"""`cluster.yaml` is what `ray up` accepts, and keeps what makes it safe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

FILE = Path(__file__).parents[1] / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    loaded = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def test_it_meets_the_schema_of_the_installed_ray(cluster: dict[str, Any]) -> None:
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "worker_start_ray_command": []}, schema)


def test_ray_up_takes_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster)
    validate_config(prepared)
    hosts = len(cluster["provider"]["worker_ips"])
    assert prepared["max_workers"] == hosts


def test_every_ray_asks_for_the_token_and_the_dashboard_stays_on_loopback(
    cluster: dict[str, Any],
) -> None:
    starts = [
        command
        for part in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in cluster[part]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_no_secret_is_in_it() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert "ssh_private_key" not in text
    assert "PRIVATE KEY" not in text
    assert not re.search(r"RAY_AUTH_TOKEN\s*=", text)
    assert not re.search(r"\b[0-9a-fA-F]{32,}\b", text)


def test_setup_installs_this_package(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/clsearch"] == "."
    assert any("pip install" in c and c.endswith("~/clsearch") for c in cluster["setup_commands"])
