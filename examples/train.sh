# The scripts beside it source this file; their last line is `run SYSTEM "$@"`.
#
# With arguments they run `rocketqa train SYSTEM ...` of this checkout, without an installation. Without any they run
# `rocketqa demo SYSTEM` in the checkout. `fleetrun` runs a script in every process.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
[ -n "${PYTHON:-}" ] || [ ! -x "$root/.venv/bin/python" ] || python=$root/.venv/bin/python

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

run() {
    if [ $# -gt 1 ]; then
        exec "$python" -m rocketqa_paddle train "$@"
    fi
    cd "$root"
    exec "$python" -m rocketqa_paddle demo "$1"
}
