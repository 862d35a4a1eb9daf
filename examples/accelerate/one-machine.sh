#!/bin/bash
# Eight GPUs of one machine by accelerate; what `accelerate config` has asked about devices is said here instead.
# Precision stays a setting of the run (train.precision).
#
#     bash examples/accelerate/one-machine.sh run.yaml out/photos

set -euo pipefail
run=${1:?which run file?} out=${2:?which directory for the run?}
shift 2

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 # seconds to save in, before the launcher kills
exec accelerate launch --multi_gpu --num_machines 1 --num_processes 8 --mixed_precision no --dynamo_backend no \
    -m shortflow train "$run" --out "$out" --resume auto "$@"
