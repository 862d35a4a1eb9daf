#!/bin/bash
# Several machines without a job system: the same command on each of them, in any order.
#
#     bash examples/torchrun/many-machines.sh first-machine 2 run.yaml out/big
#
# The processes meet at port 29500 of the first machine, which all must reach (the rendezvous), and wait there until as
# many machines have come. All of them see the data and out/big, on a file system that they share.

set -euo pipefail
first=${1:?name of the first machine?} machines=${2:?how many machines?}
run=${3:?which run file?} out=${4:?which directory for the run?}
shift 4

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 # seconds to save in, before torchrun kills
exec torchrun --nnodes "$machines" --nproc-per-node gpu \
    --rdzv-id shortflow --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
    -m shortflow train "$run" --out "$out" --resume auto "$@"
