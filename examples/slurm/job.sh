# shellcheck shell=bash
# Sourced by the jobs in this folder: one launcher per machine, a stop before the time limit, and on from
# there. What each exit code means: docs/operations.md.
#
# From the environment, beside what the recipe wants (see bash examples/pretrain_7b.sh --help):
#   CONTAINER   image for pyxis and enroot, such as /images/vila_mc.sqsh of containers/Dockerfile; without it
#               the checkout's own environment is used, or that of VILA_MC_PYTHON
#   MOUNTS      with it, what it sees of the storage: /data:/data,/runs:/runs
#   PORT        where the launchers meet on the first machine (default: 29500)
#   RESTARTS    how often a run starts again by itself after a fault (default: 3)
#
# OUTPUT must be on storage that all machines share, and its user's own: a secret in it, which only that
# user can read, is how the launchers know each other (docs/security.md). To stop a job for good and save:
# scancel --signal=INT JOBID.

# run_recipe_of SCRIPT OPTION...: on all machines of the job.
run_recipe_of() {
    local hosts step status=0 container=() warned=no
    NODES="${SLURM_NNODES:?this is for sbatch}"
    hosts="$(scontrol show hostnames "${SLURM_JOB_NODELIST:?}")"
    RENDEZVOUS="${hosts%%$'\n'*}:${PORT:-29500}"
    export NODES RENDEZVOUS # a container has no scontrol
    if [[ -n ${CONTAINER:-} ]]; then
        container=(--container-image="$CONTAINER" --container-workdir=/opt/vila_mc
            --container-mounts="${MOUNTS:?what the container sees: /data:/data,/runs:/runs}")
    fi
    # A launcher that has ended leaves the others time to say why they end, and to save.
    srun --ntasks-per-node=1 --kill-on-bad-exit=0 "${container[@]}" bash "$1" \
        --max-restarts "${RESTARTS:-3}" "${@:2}" &
    step=$!
    # SLURM sends USR1 to this script some minutes before the limit (#SBATCH --signal). srun passes it on,
    # and every launcher saves after its step and ends with 85. They know the limit themselves, too.
    trap 'warned=yes; kill -USR1 "$step" 2>/dev/null || true' USR1
    while kill -0 "$step" 2>/dev/null; do
        status=0
        wait "$step" || status=$? # the signal ends it early
    done
    if ((status == 85)) || { [[ $warned == yes ]] && ((status)); }; then
        # A job that scancel ends is told to stop as well, and must not come back.
        if scontrol show job --oneliner "${SLURM_JOB_ID:?}" | grep 'JobState=RUNNING' >/dev/null; then
            echo "stopped before the time limit and back into the queue; goes on from its newest checkpoint"
            scontrol requeue "$SLURM_JOB_ID"
            return
        fi
    fi
    return "$status"
}
