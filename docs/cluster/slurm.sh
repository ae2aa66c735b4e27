#!/usr/bin/env bash
# A search on hosts that Slurm gives: a Ray cluster for the length of one job.
#
#   sbatch docs/cluster/slurm.sh CONFIG OUT [further options of `clsearch run`]
#
# OUT is a folder that all hosts see. The same command again goes on with a search that did not
# come to its end: when the time is up, when the job was preempted, when a host died.
#SBATCH --job-name=clsearch
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# With GPUs (Ray finds those that Slurm gives to a host):
##SBATCH --gpus-per-node=1

set -euo pipefail
config=$1 out=$2
shift 2
export PATH="${CLSEARCH_VENV:-$HOME/clsearch-venv}/bin:$PATH"
cpus=${SLURM_CPUS_PER_TASK:-1} nodes=$SLURM_JOB_NUM_NODES
port=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a host have a port each

# A token for this job alone. Slurm's accounting and `ps` show what stands in a command, and other
# users may read a job's environment: the token is in a file that only its owner can read.
mkdir -p "$out"
# A search begins in an OUT that is empty but for files with this ending.
token=$(umask 077 && mktemp --suffix=.tmp "$out/.ray-token-XXXXXXXX")
python3 -c 'import secrets; print(secrets.token_hex(32))' >"$token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_USAGE_STATS_ENABLED=0
trap 'rm -f "$token"; kill $(jobs -p) 2>/dev/null || true; wait' EXIT

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
address=$(getent ahostsv4 "$address" | awk '{print $1; exit}')

on() { # on HOW-MANY-NODES SRUN-OPTION COMMAND…: one process a node, until the job ends
  local count=$1 which=$2
  shift 2
  srun --overlap --nodes="$count" --ntasks="$count" "$which" --cpus-per-task="$cpus" \
    "$@" --num-cpus="$cpus" --min-worker-port=0 --max-worker-port=0 --block &
}

on 1 --nodelist="$head" ray start --head --node-ip-address="$address" --port="$port" \
  --include-dashboard=false
head_process=$! patience=300
until (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null; do
  if ! kill -0 "$head_process" 2>/dev/null || [ $((patience -= 1)) -le 0 ]; then
    echo "Ray's head does not start on $head ($address:$port)" >&2
    exit 1
  fi
  sleep 1
done
if [ "$nodes" -gt 1 ]; then
  on $((nodes - 1)) --exclude="$head" ray start --address="$address:$port"
fi

# A search counts the workers when it starts: all hosts have to be there.
timeout 300 python3 - "$address:$port" "$nodes" <<'PYTHON'
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(1)
PYTHON

# Slurm signals this script two minutes before the end: the search stops, and can be resumed.
clsearch run "$config" --out "$out" --address "$address:$port" "$@" &
search=$!
trap 'kill -TERM "$search"' TERM
code=0
wait "$search" || code=$?
if kill -0 "$search" 2>/dev/null; then wait "$search" || code=$?; fi
exit "$code"
