#!/usr/bin/env bash
# Train a retriever and a re-ranker as adversaries, in turns (AR2), on one process or on many.
#
#   examples/train_ar2.sh                                  the demo
#   examples/train_ar2.sh --config FILE|PRESET [--key value ...]  your own data
#   fleetrun --nproc_per_node 2 examples/train_ar2.sh ...  two processes on this machine
#   fleetrun --gpus 0,1,2,3 examples/train_ar2.sh --use_cuda true ...
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/train.sh"
run ar2 "$@"
