"""`cluster.yaml` is what `ray up` accepts, in each of its sections, and keeps what makes it safe.
The files for Slurm and Kubernetes in docs/cluster are sound, as far as is seen without either."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from command import ROOT

FILE = ROOT / "cluster.yaml"
SLURM, KUBERAY = ROOT / "docs" / "cluster" / "slurm.sh", ROOT / "docs" / "cluster" / "kuberay.yaml"
SECTIONS = {"local": "On-premises hosts", "aws": "AWS", "gcp": "GCP"}


def section(kind: str) -> dict[str, Any]:
    """The file as the person edits it who wants it for this provider, as its head says."""
    text = FILE.read_text(encoding="utf-8")
    if kind != "local":
        before, rule, rest = text.partition(f"# --- {SECTIONS['local']} ")
        assert rule
        text = before + rest[rest.index("\n# --- ") :]
        text = re.sub(rf"^#{kind}:", "", text, flags=re.MULTILINE)
    loaded = yaml.safe_load(text)
    assert loaded["provider"]["type"] == kind
    return dict(loaded)


def documented() -> list[str]:
    """Every search that the documents have typed from a desk, as it is typed."""
    head = "".join(re.findall(r"^#(?: (.*\n)|\n)", FILE.read_text(encoding="utf-8"), re.MULTILINE))
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8") + head
    return re.findall(r"ray exec cluster\.yaml 'clsearch [^']*'", text)


SAID = """
ray() { bash --login -c "true && ($3)"; }
clsearch() { printf '%s\\n' "$@"; }
export -f clsearch
"""


def test_searches_that_are_typed_from_a_desk_arrive_whole() -> None:
    """As one command: `ray exec` hands its text to a shell, where a line's end would end it."""
    commands = documented()
    assert len(commands) == 4
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", f"{SAID}\n{command}"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        verb, config, *options = done.stdout.splitlines()
        assert verb == "run"
        assert config.endswith("quickstart.yaml")
        assert options[0] == "--out"
        assert options[-2:] == ["--address", "auto"]


@pytest.fixture(params=SECTIONS)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    return section(request.param)


def test_it_meets_the_schema_of_the_installed_ray(cluster: dict[str, Any]) -> None:
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "worker_start_ray_command": []}, schema)


def test_ray_up_takes_it(cluster: dict[str, Any]) -> None:
    """Its defaults filled in by Ray; what only the cloud can answer is asked there."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    if "worker_ips" in cluster["provider"]:
        assert prepared["max_workers"] == len(cluster["provider"]["worker_ips"])


@pytest.mark.parametrize("kind", ["aws", "gcp"])
def test_clouds_scale_several_kinds_of_gpus(kind: str) -> None:
    cluster = section(kind)
    types = cluster["available_node_types"]
    workers = {n: t for n, t in types.items() if n != cluster["head_node_type"]}
    assert len(workers) >= 2
    assert all(t["min_workers"] < t["max_workers"] for t in workers.values())
    assert sum(t["max_workers"] for t in workers.values()) == cluster["max_workers"]
    assert any(t["min_workers"] for t in workers.values()), "a search needs a GPU to begin"
    machine = {"aws": "InstanceType", "gcp": "machineType"}[kind]
    assert len({t["node_config"][machine] for t in types.values()}) == len(types)
    if kind == "gcp":  # nothing is known of a type there
        assert all(t["resources"]["GPU"] for t in workers.values())


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


def test_what_reaches_a_host_from_outside_is_ssh_alone() -> None:
    rules = section("aws")["provider"]["security_group"]["IpPermissions"]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in rules] == [(22, 22)]
    assert all(r["CidrIp"] != "0.0.0.0/0" for rule in rules for r in rule["IpRanges"])


@pytest.mark.parametrize("file", [FILE, SLURM, KUBERAY], ids=lambda file: file.name)
def test_no_secret_is_in_it(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert "PRIVATE KEY" not in text
    assert not re.search(r"RAY_AUTH_TOKEN\s*[=:]", text)
    assert not re.search(r"\b[0-9a-fA-F]{32,}\b", text)
    assert not re.search(r"(AKIA|ASIA)[0-9A-Z]{16}", text)


def test_keys_are_named_by_their_path_alone() -> None:
    assert section("local")["auth"]["ssh_private_key"] == "~/.ssh/clsearch"
    assert all("ssh_private_key" not in section(kind)["auth"] for kind in ("aws", "gcp"))


def test_setup_puts_the_package_and_its_data_in_place(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/clsearch"] == "."
    assert cluster["file_mounts"]["~/clsearch-data"] == "~/clsearch-data"
    assert any("pip install" in c and c.endswith("~/clsearch") for c in cluster["setup_commands"])
    assert any('CLSEARCH_DATA="$HOME/clsearch-data"' in c for c in cluster["setup_commands"])


def test_the_script_for_slurm_is_sound() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(SLURM)], check=True)


def documents() -> dict[str, dict[str, Any]]:
    """What the manifest for Kubernetes holds, by kind."""
    return {d["kind"]: d for d in yaml.safe_load_all(KUBERAY.read_text(encoding="utf-8"))}


def test_rays_own_autoscaler_reads_the_manifest_for_kuberay() -> None:
    """The part of KubeRay's autoscaler that Ray ships makes of it what it scales by."""
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )

    manifest = copy.deepcopy(documents()["RayCluster"])
    manifest["metadata"]["namespace"] = "default"
    derived = _derive_autoscaling_config_from_ray_cr(manifest)
    types = derived["available_node_types"]
    assert set(types) == {"headgroup", "l4", "a100"}
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert [types[n]["resources"]["GPU"] for n in ("l4", "a100")] == [1, 1]
    assert [types[n]["min_workers"] for n in ("l4", "a100")] == [1, 0]
    assert derived["idle_timeout_minutes"] == 10


def test_the_manifest_asks_for_the_token_and_lets_nobody_else_in() -> None:
    manifest, policy = documents()["RayCluster"], documents()["NetworkPolicy"]
    spec = manifest["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    label = {"matchLabels": {"ray.io/cluster": manifest["metadata"]["name"]}}
    assert policy["spec"]["podSelector"] == label
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": label}]}]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"]


def unknown(value: Any, schema: dict[str, Any], path: str) -> list[str]:
    """Fields that a structural schema of Kubernetes does not have; there they are dropped."""
    found = []
    if isinstance(value, list):
        for number, item in enumerate(value):
            found += unknown(item, schema["items"], f"{path}[{number}]")
    elif isinstance(value, dict) and "additionalProperties" not in schema:
        known = schema.get("properties")
        for name, item in value.items() if known else ():
            found += unknown(item, known[name], f"{path}.{name}") if name in known else [
                f"{path}.{name}"
            ]  # fmt: skip
    return found


def test_the_manifest_meets_the_schema_of_kuberay() -> None:
    """A megabyte of another project, `ray.io_rayclusters.yaml` of its chart: it is not here."""
    place = os.environ.get("CLSEARCH_KUBERAY_CRD")
    if not place:
        pytest.skip("CLSEARCH_KUBERAY_CRD does not name KubeRay's ray.io_rayclusters.yaml")
    manifest = documents()["RayCluster"]
    definition = yaml.safe_load(Path(place).read_text(encoding="utf-8"))
    (schema,) = (
        version["schema"]["openAPIV3Schema"]
        for version in definition["spec"]["versions"]
        if manifest["apiVersion"] == f"ray.io/{version['name']}"
    )
    jsonschema.validate(manifest, schema)
    assert (
        unknown(manifest, {**schema, "properties": {**schema["properties"], "metadata": {}}}, "")
        == []
    )
