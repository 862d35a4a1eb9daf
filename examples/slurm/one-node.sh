#!/bin/bash
# One machine with eight GPUs under Slurm, job after job until the run is done:
#
#     shortflow show esc --data ./photos --resolution 64 > run.yaml
#     sbatch examples/slurm/one-node.sh run.yaml out/photos
#
# What comes after the two goes to `shortflow train`, such as --set train.trackers=wandb. `shortflow train run.yaml --out
# out/photos --dry-run` says beforehand what it would be, `shortflow status out/photos --watch` how far it is.

#SBATCH --job-name=shortflow
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log --open-mode=append
# Two minutes before the end every process gets SIGTERM: the run saves its state and stops.
#SBATCH --signal=TERM@120
# Where Slurm needs the machine for something more urgent, it may start this job again later.
#SBATCH --requeue

set -euo pipefail
run=${1:?which run file?} out=${2:?which directory for the run?}
shift 2

# torchrun kills what is still there half a minute after SIGTERM, and a large state takes longer to write.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100
export OMP_NUM_THREADS=8

# --resume auto begins the run, and goes on with it whenever the job starts again.
status=0
srun torchrun --standalone --nproc-per-node 8 \
    -m shortflow train "$run" --out "$out" --resume auto "$@" || status=$?

# A run that the end of its time has stopped goes back into the queue; one that has failed by itself does not.
if ((status != 0 && $(date +%s) > ${SLURM_JOB_END_TIME:-9999999999} - 300)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
