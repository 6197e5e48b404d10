#!/usr/bin/env bash
# VILA's second phase at 7B: the language model and the connector learn from interleaved documents and
# image-text pairs. Recipe: examples/pretrain_7b.yaml
#
#   bash examples/pretrain_7b.sh --mmc4 PREFIX --coyo PREFIX --tokenizer FILE.model \
#        --load ALIGNED_CHECKPOINTS --output DIR [--section.option VALUE ...]
#   bash examples/pretrain_7b.sh --smoke        the same recipe at CPU size, 3 steps, synthetic data
#
# Each path may come from the environment instead: MMC4, COYO, TOKENIZER, LOAD, OUTPUT.
# Every other option goes to tools/train.py (see its --help) and wins over the recipe.
#
# Several machines: run it once per machine with NODES=8 RENDEZVOUS=host0:29500, or under SLURM:
#   sbatch --nodes=8 --ntasks-per-node=1 --gpus-per-node=8 --wrap 'srun bash examples/pretrain_7b.sh'
set -euo pipefail
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

fail() {
    echo "error: $1" >&2
    exit 2
}

smoke=0
others=()
while (($#)); do
    case "$1" in
        --smoke) smoke=1 ;;
        --mmc4 | --coyo | --tokenizer | --load | --output)
            (($# > 1)) || fail "$1 needs a value."
            name="${1#--}"
            declare "${name^^}=$2"
            shift
            ;;
        -h | --help)
            sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) others+=("$1") ;;
    esac
    shift
done

recipe=(--config "$checkout/examples/pretrain_7b.yaml")

if ((smoke)); then
    source "$checkout/tools/setup_venv.sh"
    OUTPUT="${OUTPUT:-$checkout/smoke-out}"
    export CUDA_VISIBLE_DEVICES=""  # CPU size, CPU ranks
    "$VENV_PYTHON" "$checkout/examples/synthetic_corpus.py" "$OUTPUT"
    exec "$VENV_PYTHON" "$checkout/tools/train.py" --ranks 4 "${recipe[@]}" \
        --config "$checkout/examples/smoke.yaml" \
        --data.tokenizer "$OUTPUT/tokenizer.model" \
        --data.blend "[{path: '$OUTPUT/interleaved'}, {path: '$OUTPUT/pairs'}]" \
        --train.output "$OUTPUT/checkpoints" "${others[@]}"
fi

gpus="$( (nvidia-smi --list-gpus 2>/dev/null || true) | grep -c . || true)"
((gpus)) || fail "no NVIDIA GPU here: the 7B recipe needs a multiple of 4 of them. To try it on a CPU, add --smoke."
for name in MMC4 COYO TOKENIZER LOAD OUTPUT; do
    [[ -n "${!name:-}" ]] || fail "no path for ${name,,}. Give --${name,,} PATH or set $name; see --help."
done

if [[ -n "${SLURM_JOB_NODELIST:-}" ]]; then
    NODES="${SLURM_NNODES:?}"
    RENDEZVOUS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):${PORT:-29500}"
fi

source "$checkout/tools/setup_venv.sh"
exec "$VENV_PYTHON" "$checkout/tools/train.py" --ranks "$gpus" \
    --nodes "${NODES:-1}" --rendezvous "${RENDEZVOUS:-localhost:0}" "${recipe[@]}" \
    --data.tokenizer "$TOKENIZER" \
    --data.blend "[{path: '$MMC4', weight: 1}, {path: '$COYO', weight: 1}]" \
    --train.load "$LOAD" --train.output "$OUTPUT" "${others[@]}"
