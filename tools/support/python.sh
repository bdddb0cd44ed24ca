# Sourced by the launchers in tools/: answers --help with the comment at the launcher's head, and sets
# `tools`, that folder, and `python`: .venv's where neither PYTHON nor an active environment says.
case ${1:-} in
-h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[1]}"
    exit 0
    ;;
esac
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
if [ -z "${PYTHON:-}${VIRTUAL_ENV:-}" ] && [ -x "$tools/../.venv/bin/python" ]; then
    python=$tools/../.venv/bin/python
fi
