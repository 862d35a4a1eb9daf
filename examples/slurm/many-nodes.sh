#!/bin/bash
# Four machines with eight GPUs each under Slurm, job after job until the run is done:
#
#     sbatch examples/slurm/many-nodes.sh run.yaml out/big
#
# All machines see the data and out/big, on a file system that they share. See one-node.sh for what is not explained here.

#SBATCH --job-name=shortflow
#SBATCH --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --requeue

set -euo pipefail
run=${1:?which run file?} out=${2:?which directory for the run?}
shift 2

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100
export OMP_NUM_THREADS=8

# One torchrun on each machine starts its eight processes. They find each other at the first machine of the job (the
# rendezvous), at a port of the job's own, so that two jobs on one machine do not meet.
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
status=0
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 10000))" \
    -m shortflow train "$run" --out "$out" --resume auto "$@" || status=$?

if ((status != 0 && $(date +%s) > ${SLURM_JOB_END_TIME:-9999999999} - 300)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
