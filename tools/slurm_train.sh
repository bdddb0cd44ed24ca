#!/usr/bin/env bash
# usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# GPUS (8), GPUS_PER_NODE (8 at most), CPUS_PER_TASK (5) and SRUN_ARGS come from the environment.
set -eu
source "$(dirname "${BASH_SOURCE[0]}")/support/python.sh"
if [ $# -lt 3 ]; then
    echo "usage: slurm_train.sh PARTITION JOB_NAME CONFIG [options]" >&2
    exit 2
fi
partition=$1 job=$2 config=$3
shift 3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# shellcheck disable=SC2086  # SRUN_ARGS holds several arguments
exec srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} "$python" -u "$tools/train.py" "$config" --launcher=slurm "$@"
