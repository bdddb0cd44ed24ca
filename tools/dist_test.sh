#!/usr/bin/env bash
# tools/dist_test.sh CONFIG CHECKPOINT [GPUS] [options of tools/test.py]
# All visible GPUs by default. Several machines: NNODES, NODE_RANK, MASTER_ADDR, PORT on each.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
if [ -z "${PYTHON:-}${VIRTUAL_ENV:-}" ] && [ -x "$here/../.venv/bin/python" ]; then
    python=$here/../.venv/bin/python
fi
exec "$python" "$here/support/launch.py" "$here/test.py" "$@"
