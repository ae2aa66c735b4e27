"""What packs take of a cluster: processors, shares of GPUs, GPUs of several types."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from command import environment

from clsearch.config import ResourcesConfig
from clsearch.errors import InputError
from clsearch.search.slots import _fitting, _kind, gpu_memory
from clsearch.trial import device_name


def test_a_pack_fits_on_one_node() -> None:
    nodes: list[dict[str, float]] = [{"CPU": 1, "GPU": 4}, {"CPU": 16, "GPU": 1}, {"CPU": 8}]
    assert _fitting({"CPU": 1}, nodes) == 25
    assert _fitting({"CPU": 1, "GPU": 1}, nodes) == 2  # 5 GPUs, but one processor beside four
    assert _fitting({"CPU": 1, "GPU": 0.1}, nodes) == 11
    assert _fitting({"CPU": 1, "accelerator_type:T4": 0.001}, nodes) == 1  # waits for one


def test_a_task_is_bound_to_a_type_or_to_the_node() -> None:
    typed = {"GPU": 1.0, "node:10.0.0.1": 1.0, "accelerator_type:A100": 1.0}
    assert _kind(typed) == "accelerator_type:A100"
    del typed["accelerator_type:A100"]
    assert _kind({**typed, "node:__internal_head__": 1.0}) == "node:10.0.0.1"


def test_a_type_of_gpu_for_trials_on_a_cpu_is_refused() -> None:
    with pytest.raises(InputError, match="accelerator: 'T4' is not allowed"):
        ResourcesConfig(device="cpu", accelerator="T4")


def test_the_device_of_a_record_has_a_name() -> None:
    assert device_name(torch.device("cpu")) == "cpu"
    if torch.cuda.is_available():
        assert device_name(torch.device("cuda")) == torch.cuda.get_device_properties(0).name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_torch_cannot_use_has_a_reason() -> None:
    assert isinstance(gpu_memory(), str)
    assert gpu_memory()


CLUSTER = """
import json, os, sys
from dataclasses import astuple
from clsearch.config import ResourcesConfig
from clsearch.errors import InputError
from clsearch.search._ray import ray
from clsearch.search.slots import gpu_memory, slots_of
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

(asked,) = json.loads(sys.stdin.read())

def measure():
    with open(asked, "a") as stream:
        stream.write(os.environ["GPU_TYPE"] + " ")
    return int(os.environ["GPU_MEMORY"])

def slots(probe=measure, **given):
    try:
        return astuple(slots_of(ResourcesConfig(**given), probe))
    except InputError as error:
        return str(error)

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
cluster.connect()
said = {"no gpu": [slots(device="cuda"), slots(accelerator="T4")]}
for name, count, memory in (("A100", 2, 80_000), ("T4", 1, 16_000)):
    cluster.add_node(
        num_cpus=4, num_gpus=count, resources={"accelerator_type:" + name: 1},
        env_vars={"GPU_TYPE": name, "GPU_MEMORY": str(memory)},
    )
cluster.wait_for_nodes()
said["all"] = slots()
said["half"] = slots(gpus=0.5, device="cuda")
said["A100"] = slots(accelerator="A100")
said["T4"] = slots(accelerator="T4")
said["cpu"] = slots(device="cpu")
said["unknown"] = slots(accelerator="H100")
said["unusable"] = slots(gpu_memory)
group = placement_group([said["T4"][1]])
there = PlacementGroupSchedulingStrategy(group)
ray.get(ray.remote(num_cpus=1, num_gpus=1, scheduling_strategy=there)(measure).remote())
print(json.dumps(said))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_gpus_of_several_types_in_a_cluster(tmp_path: Any) -> None:
    """Real nodes of Ray that say they have GPUs; what CUDA says of them is read from each node's
    environment, and how often it is asked is counted."""
    asked = tmp_path / "asked"
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER], input=json.dumps([str(asked)]), capture_output=True,
        text=True, timeout=280, env=environment(RAY_USAGE_STATS_ENABLED="0"), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert "Ray sees no GPU here" in said["no gpu"][0]
    assert "'T4' is not allowed. Allowed: none" in said["no gpu"][1]
    assert said["all"] == ["cuda", {"CPU": 1, "GPU": 1}, 16_000, 3]
    assert said["half"] == ["cuda", {"CPU": 1, "GPU": 0.5}, 8_000, 6]
    bound = {"CPU": 1, "GPU": 1, "accelerator_type:A100": 0.001}
    assert said["A100"] == ["cuda", bound, 80_000, 2]
    bound = {"CPU": 1, "GPU": 1, "accelerator_type:T4": 0.001}
    assert said["T4"] == ["cuda", bound, 16_000, 1]
    assert said["cpu"] == ["cpu", {"CPU": 1}, None, 8]
    assert "'H100' is not allowed. Allowed: one of A100, T4." in said["unknown"]
    assert "a GPU (A100) that torch there cannot use: " in said["unusable"]
    each = asked.read_text().split()  # twice of both, then A100, T4, and where the pack was put
    assert sorted(each[:4]) == ["A100", "A100", "T4", "T4"]
    assert each[4:] == ["A100", "T4", "T4"]
