#!/usr/bin/env bash
# usage: tools/dist_train.sh CONFIG [GPUS] [options of tools/train.py]
# All visible GPUs by default. Several machines: NNODES, NODE_RANK, MASTER_ADDR, PORT on each.
source "$(dirname "${BASH_SOURCE[0]}")/support/python.sh"
exec "$python" "$tools/support/launch.py" "$tools/train.py" "$@"
