"""docs/cluster/slurm.sh as a job of a real Slurm: three hosts made of namespaces, each with its
own munged and slurmd, the first with slurmctld. Slurm is Debian's; the folder that all hosts see is
one on this machine."""

from __future__ import annotations

import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import ROOT, clsearch, journal, write_config
from hosts import NETWORK, PATH, SHARED, Host, hosts

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

PATIENCE = 600.0
CONF = f"""
ClusterName=test
SlurmctldHost=host10({NETWORK}.10)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
StateSaveLocation=/tmp/slurmctld
SlurmdSpoolDir=/tmp/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
"""
NODES = "PartitionName=all Nodes=ALL Default=YES State=UP\n"


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[list[Host], dict[str, str]]]:
    shared = tmp_path / "shared"
    programs = ("slurmctld", "slurmd", "sbatch", "munged")
    with hosts(3, shared, *programs) as made:
        (shared / "key").write_bytes(secrets.token_bytes(64))
        (shared / "key").chmod(0o400)
        names = [f"host{host.address.rpartition('.')[2]}" for host in made]
        given = zip(names, made, strict=True)
        nodes = [f"NodeName={n} NodeAddr={h.address} CPUs=1 State=UNKNOWN\n" for n, h in given]
        (shared / "slurm.conf").write_text(CONF + "".join(nodes) + NODES)
        variables = {
            "SLURM_CONF": f"{SHARED}/slurm.conf",
            "CLSEARCH_VENV": sys.prefix,
            "PATH": f"{sys.prefix}/bin:{PATH}",
            "PYTHONPATH": str(ROOT),
            "RAY_raylet_start_wait_time_s": "240",
        }
        for host in made:
            munge = "munged --force --key-file=/tmp/key --log-file=/tmp/munged.log"
            host.run(f"cp {SHARED}/key /tmp/key && mkdir -p -m 755 /run/munge && {munge}")
        made[0].run("mkdir -p /tmp/slurmctld && slurmctld", **variables)
        for name, host in zip(names, made, strict=True):
            host.run(f"mkdir -p /tmp/slurmd && slurmd -N {name}", **variables)
        yield made, variables


def test_a_search_as_a_job_of_slurm(
    machines: tuple[list[Host], dict[str, str]], tmp_path: Path
) -> None:
    (desk, *_), variables = machines
    shared = tmp_path / "shared"
    config = write_config(shared / "config.yaml", name="slurm", resources={"pack": 1})
    shutil.copy(ROOT / "docs" / "cluster" / "slurm.sh", shared)
    submit = f"sbatch --parsable --cpus-per-task=1 --time=30 --output={SHARED}/said"
    job = desk.run(f"{submit} {SHARED}/slurm.sh {SHARED}/config.yaml {SHARED}/out", **variables)
    end, state = time.monotonic() + PATIENCE, ""
    while not state.startswith(("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")):
        assert time.monotonic() < end, desk.run("squeue; sinfo", **variables)
        time.sleep(1)
        shown = desk.run(f"scontrol show job {job.strip()}", **variables)
        state = shown.partition("JobState=")[2]
    said = (shared / "said").read_text()
    assert state.startswith("COMPLETED"), said
    assert "8 trials trained" in said
    out, local = shared / "out", tmp_path / "local"
    assert len(journal(out)) == 8
    assert list(out.glob(".ray-token*")) == []
    done = clsearch("run", config, "--out", local, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert (out / "selections.json").read_bytes() == (local / "selections.json").read_bytes()
