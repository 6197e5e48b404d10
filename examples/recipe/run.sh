# shellcheck shell=bash
# Sourced by the scripts of the recipes, examples/*_7b.sh and *_13b.sh, which call run_recipe.
#
# Options that all of them have:
#   --tokenizer FILE.model   what the datasets were made with
#   --load DIR               checkpoint that gives the first weights: of the phase before, or imported
#   --output DIR             where checkpoints and metrics go; the same command goes on from there
#   --smoke                  the recipe's layout, precision and code path at CPU size: 3 steps on synthetic
#                            data, --output (default: smoke-out) may not hold anything else
#   --dry-run GPUS           nothing is trained and no GPU is needed: the plan on that many GPUs of --gpu KIND
#                            (default: a100-80g), a rehearsal of one step on them, and a check of the paths.
#                            Sets up .venv first, as all of these do (about 6 GB, some minutes, once).
#                            With --best the first layout of the plan is rehearsed as well; --page FILE.html
#                            puts plan and last rehearsal side by side
# Each path may come from the environment instead, under its name in capitals (TOKENIZER, LOAD ...). Every
# other option goes to tools/train.py (see its --help) and wins over the recipe.
#
# Several machines: run it once per machine with NODES=8 RENDEZVOUS=host0:29500, or under SLURM, whose
# own variables are read where these are not set (examples/slurm/).

_recipe_fail() {
    echo "error: $1" >&2
    exit 2
}

# _recipe_refuse MESSAGE OPTION...: what is wrong with the options of training comes first, where what
# reads them is set up.
_recipe_refuse() {
    local message="$1" checkout python
    shift
    checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
    python="${VILA_MC_PYTHON:-$checkout/.venv/bin/python}"
    if command -v "$python" >/dev/null; then
        PYTHONPATH="$checkout${PYTHONPATH:+:$PYTHONPATH}" "$python" - "$@" <<'PYTHON' || exit
import sys
try:
    from vila_mc.commands.train import arguments_parser
    from vila_mc.config.load import load_run_from_args
    from vila_mc.errors import run_cli
except ImportError:
    sys.exit()

def main():
    load_run_from_args(arguments_parser().parse_args(sys.argv[1:]))

run_cli(main)
PYTHON
    fi
    _recipe_fail "$message"
}

# _recipe_run COMMAND...: run it, so that a signal ends it at once: a shell waits for what it runs in front.
# What it runs is ended by SIGTERM, as it is deaf to Ctrl-C.
_recipe_run() {
    local status=0
    "$@" &
    _recipe_running=$!
    wait "$_recipe_running" || status=$?
    _recipe_running=""
    return "$status"
}

# _recipe_end STATUS: what a signal ends.
_recipe_end() {
    trap '' TERM INT HUP
    if [[ -n ${_recipe_running:-} ]]; then
        kill "$_recipe_running" 2>/dev/null || true
        wait "$_recipe_running" || true
    fi
    exit "$1"
}

# _recipe_dry_run NAME GPUS BEST PAGE OPTION...: plan, and rehearsal of the recipe's own layout and, if BEST is
# 1, of the plan's first; PAGE is written unless it is empty. Options are those of training.
_recipe_dry_run() {
    local checkout name="$1" count="$2" best="$3" page="$4" gpu="${GPU:-a100-80g}" first status=0
    local write=() keep=() layout=()
    checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
    shift 4
    local plan=("$checkout/tools/plan_cluster.py" --config "$checkout/examples/$name.yaml")
    local rehearse=("$checkout/tools/train.py" --config "$checkout/examples/$name.yaml")
    local on=(--gpus "$count" --gpu "$gpu") as=(--rehearse --as-ranks "$count" --gpu "$gpu")
    first="$(mktemp -d)"
    _recipe_folder="$first"
    export TMPDIR="$first" # what a program that is ended leaves behind goes with it
    trap 'rm -rf "$_recipe_folder"' EXIT
    trap '_recipe_end 143' TERM
    trap '_recipe_end 130' INT
    trap '_recipe_end 129' HUP
    ((!best)) || write=(--write "$first/layout.yaml")
    [[ -z $page ]] || keep=(--rehearsal "$first/rehearsal.json")
    _recipe_run "$VENV_PYTHON" "${plan[@]}" "${on[@]}" "${write[@]}" "$@" >"$first/said" || status=$?
    grep -vxF "wrote $first/layout.yaml" "$first/said" || true # it is ours, and goes again
    echo
    _recipe_run "$VENV_PYTHON" "${rehearse[@]}" "${as[@]}" "${keep[@]}" "$@" || status=$?
    if [[ -f $first/layout.yaml ]]; then
        printf '\nthe first layout of the plan:\n'
        layout=(--config "$first/layout.yaml")
        _recipe_run "$VENV_PYTHON" "${rehearse[@]}" "${layout[@]}" "${as[@]}" "${keep[@]}" "$@" || status=$?
    fi
    if [[ -n $page ]]; then
        [[ -f $first/rehearsal.json ]] || keep=()
        _recipe_run "$VENV_PYTHON" "${plan[@]}" "${layout[@]}" "${on[@]}" --html "$page" "${keep[@]}" "$@" \
            >"$first/said" || status=$?
        printf '\n%s\n' "$(tail -n 1 "$first/said")"
    fi
    return "$status"
}

# The comment at the head of a script.
_recipe_head() {
    sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$1"
}

# run_recipe NAME MODEL_RANKS SHARE DATASET=KIND... -- OPTION...
#
#   NAME         of examples/NAME.yaml
#   MODEL_RANKS  ranks that hold one copy of the model
#   SHARE        how often data.blend takes each dataset: "weight: 1" or "epochs: 1"
#   DATASET      an option that names a dataset, and the kind of synthetic one that stands for it
run_recipe() {
    local name="$1" model_ranks="$2" share="$3" checkout dataset entry gpus hosts blend="" data=()
    checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
    shift 3
    local -A kinds=()
    local datasets=() others=() smoke=0 dry=0 best=0 page="" lacking="" status=0
    for (( ; ; )); do
        entry="$1" && shift
        [[ $entry != -- ]] || break
        datasets+=("${entry%=*}")
        kinds[${entry%=*}]="${entry#*=}"
    done
    while (($#)); do
        entry="${1#--}"
        if [[ $1 == --smoke ]]; then
            smoke=1
        elif [[ $1 == --dry-run ]]; then
            [[ ${2:-} =~ ^[1-9][0-9]{0,4}$ ]] || _recipe_fail "--dry-run needs a number of GPUs."
            dry="$2"
            shift
        elif [[ $1 == --best ]]; then
            best=1
        elif [[ $1 == --page ]]; then
            (($# > 1)) || _recipe_fail "--page needs a file."
            page="$2"
            shift
        elif [[ $1 == -h || $1 == --help ]]; then
            _recipe_head "$checkout/examples/$name.sh"
            _recipe_head "${BASH_SOURCE[0]}" | sed 1d # what sources it
            exit 0
        elif [[ $1 == --* && " ${datasets[*]} tokenizer load output gpu " == *" $entry "* ]]; then
            (($# > 1)) || _recipe_fail "$1 needs a value."
            declare -g "${entry^^}=$2"
            shift
        else
            others+=("$1")
        fi
        shift
    done
    ((dry || !best)) || _recipe_fail "--best goes with --dry-run GPUS."
    ((dry)) || [[ -z $page ]] || _recipe_fail "--page goes with --dry-run GPUS."
    local train=("$checkout/tools/train.py" --config "$checkout/examples/$name.yaml")

    if ((smoke)); then
        source "$checkout/tools/setup_venv.sh"
        OUTPUT="${OUTPUT:-$checkout/smoke-out}"
        export CUDA_VISIBLE_DEVICES="" # CPU size, CPU ranks
        "$VENV_PYTHON" "$checkout/examples/synthetic_corpus.py" "$OUTPUT"
        for dataset in "${datasets[@]}"; do
            blend+="{path: '$OUTPUT/${kinds[$dataset]}', $share}, "
        done
        [[ " ${others[*]} " != *_fp8.yaml* ]] || others+=(--train.fp8.emulation true)
        exec "$VENV_PYTHON" "${train[@]}" --config "$checkout/examples/smoke.yaml" \
            --ranks $((model_ranks < 2 ? 2 : model_ranks)) \
            --data.tokenizer "$OUTPUT/tokenizer.model" --data.blend "[$blend]" \
            --train.output "$OUTPUT/checkpoints" ${LOAD:+--train.load "$LOAD"} "${others[@]}"
    fi

    if ((dry)); then
        source "$checkout/tools/setup_venv.sh"
        for dataset in "${datasets[@]}" tokenizer; do
            entry="${dataset^^}"
            [[ -n ${!entry:-} ]] || lacking+=" --$dataset"
            [[ $dataset == tokenizer ]] || blend+="{path: '${!entry:-}', $share}, "
        done
        [[ -n $lacking ]] || data=(--data.tokenizer "$TOKENIZER" --data.blend "[$blend]")
        for dataset in load output; do
            entry="${dataset^^}"
            [[ -n ${!entry:-} ]] || lacking+=" --$dataset"
        done
        _recipe_dry_run "$name" "$dry" "$best" "$page" "${data[@]}" "${others[@]}" || status=$?
        echo
        if [[ -n $lacking ]]; then
            echo "data and checkpoint are not checked: no path for$lacking."
            exit "$status"
        fi
        _recipe_run "$VENV_PYTHON" "${train[@]}" --check --ranks "$dry" "${data[@]}" \
            --train.load "$LOAD" --train.output "$OUTPUT" "${others[@]}" || status=$?
        exit "$status"
    fi

    gpus="${SLURM_GPUS_ON_NODE:-$( (nvidia-smi --list-gpus 2>/dev/null || true) | grep -c . || true)}"
    ((gpus)) || _recipe_refuse "no NVIDIA GPU here: this recipe needs a multiple of $model_ranks. \
To try it on a CPU, add --smoke." "${train[@]:1}" "${others[@]}"
    [[ " ${others[*]} " != *" --data.blend "* ]] || datasets=()
    for dataset in "${datasets[@]}" tokenizer load output; do
        entry="${dataset^^}"
        [[ -n ${!entry:-} ]] || _recipe_refuse "no path for $dataset. Give --$dataset PATH or set \
$entry; see --help." "${train[@]:1}" "${others[@]}"
    done
    for dataset in "${datasets[@]}"; do
        entry="${dataset^^}"
        blend+="{path: '${!entry}', $share}, "
    done
    [[ -z $blend ]] || data=(--data.blend "[$blend]")
    if [[ -n ${SLURM_JOB_NODELIST:-} && -z ${RENDEZVOUS:-} ]]; then
        NODES="${SLURM_NNODES:?}"
        hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
        RENDEZVOUS="${hosts%%$'\n'*}:${PORT:-29500}"
    fi
    source "$checkout/tools/setup_venv.sh"
    exec "$VENV_PYTHON" "${train[@]}" --ranks "$gpus" \
        --nodes "${NODES:-1}" --rendezvous "${RENDEZVOUS:-localhost:0}" \
        --data.tokenizer "$TOKENIZER" "${data[@]}" \
        --train.load "$LOAD" --train.output "$OUTPUT" "${others[@]}"
}
