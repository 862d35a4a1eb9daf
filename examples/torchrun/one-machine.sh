#!/bin/bash
# All GPUs of one machine, without a job system. Ctrl-C saves and stops; the same command goes on.
#
#     bash examples/torchrun/one-machine.sh run.yaml out/photos

set -euo pipefail
run=${1:?which run file?} out=${2:?which directory for the run?}
shift 2

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 # seconds to save in, before torchrun kills
exec torchrun --standalone --nproc-per-node gpu \
    -m shortflow train "$run" --out "$out" --resume auto "$@"
