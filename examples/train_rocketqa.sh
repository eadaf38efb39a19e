#!/usr/bin/env bash
# Train a retriever in the four steps of RocketQA, on one process or on many.
#
#   examples/train_rocketqa.sh                                  the demo
#   examples/train_rocketqa.sh --config FILE|PRESET [--key value ...]  your own data
#   fleetrun --nproc_per_node 2 examples/train_rocketqa.sh ...  two processes on this machine
#   fleetrun --gpus 0,1,2,3 examples/train_rocketqa.sh --use_cuda true ...
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/train.sh"
run rocketqa "$@"
