#!/usr/bin/env bash
# Train a retriever by passage-centric similarity (PAIR), on one process or on many.
#
#   examples/train_pair.sh                                  the demo
#   examples/train_pair.sh --config FILE|PRESET [--key value ...]  your own data
#   fleetrun --nproc_per_node 2 examples/train_pair.sh ...  two processes on this machine
#   fleetrun --gpus 0,1,2,3 examples/train_pair.sh --use_cuda true ...
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/train.sh"
run pair "$@"
