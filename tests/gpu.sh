#!/usr/bin/env bash
# What to run on the first machine with a GPU: tests, sanitizers and figures, in about 8 minutes.
#
#   bash tests/gpu.sh [--wheels DIR] [--out DIR]
#
# Needs torch 2.11 or newer with CUDA, numpy and pytest. .venv of this checkout is used where it is set
# up, otherwise python3 (PYTHON names another). Has not run on a GPU so far.
#
# --wheels DIR  what a machine without network lacks. If DIR has no wheels, they are downloaded and
#               nothing else happens: do that where there is a network, and bring DIR along.
# --out DIR     where logs and table.md go (default: $OUT, or a new temporary folder).
#
# A step that fails spares the others. Exit status 1: some step failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

wheels="" out="${OUT:-}"
while (($#)); do
    case "$1" in
        --wheels) wheels="${2:?--wheels wants a folder}" && shift 2 ;;
        --out) out="${2:?--out wants a folder}" && shift 2 ;;
        *) echo "error: $1 is not an option; see the head of tests/gpu.sh." >&2 && exit 2 ;;
    esac
done

python="${PYTHON:-}"
if [[ -z $python ]]; then
    if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; else python=python3; fi
fi

# What pyproject.toml wants at run time and to build, but for torch and numpy.
requirements() {
    "$python" - <<'PYTHON'
import re, tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
wanted = [*project["dependencies"], *project["optional-dependencies"]["hf"], "pytest>=8"]
print(*(line for line in wanted if re.split(r"\W", line)[0] not in ("torch", "numpy")), sep="\n")
PYTHON
}

if [[ -n $wheels ]] && ! compgen -G "$wheels/*.whl" >/dev/null; then
    # With their own needs, less what every torch brings or is too large to carry.
    "$python" -m pip download -q --only-binary=:all: -d "$wheels" -r <(requirements) \
        "setuptools>=77" || exit
    rm -f "$wheels"/{torch,triton,nvidia,cuda,numpy}[-_]*.whl
    du -sh "$wheels"
    exit
fi
if [[ -n $wheels ]]; then
    site="$(mktemp -d)"
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" \
        "$wheels"/*.whl || exit
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
out="${out:-$(mktemp -d)}"
mkdir -p "$out" && out="$(cd "$out" && pwd)" || exit
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
started=$SECONDS

# step NAME SECONDS COMMAND...: run, log, and note how it ended.
step() {
    local name="$1" limit="$2" begin=$SECONDS status=0
    shift 2
    timeout -k 10 "$limit" "$@" >"$out/$name.log" 2>&1 </dev/null || status=$?
    local how="passed"
    ((status == 124 || status == 137)) && how="stopped after $limit s"
    ((status == 0 || status == 124 || status == 137)) || how="FAILED ($status)"
    printf '| %s | %s | %d s | %s |\n' "$name" "$how" $((SECONDS - begin)) \
        "$(grep -E '^=+ .*(passed|failed|skipped|error).* =+$|ERROR SUMMARY|RACECHECK SUMMARY' \
            "$out/$name.log" | tail -n 1 | tr -d '=' | tr '|' '/' | sed 's/^ *//; s/ *$//')" \
        >"$out/.$name.done"
    cat "$out/.$name.done"
}

build() {
    [[ -e vila_mc/kernels/libvila_mc_cuda.so && -z ${REBUILD:-} ]] && echo "already built" && return
    VILA_MC_BUILD_CUDA=1 "$python" setup.py build_ext --inplace --parallel 8
}
export -f build
export python

sanitizer() {
    command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer \
        /usr/local/cuda/compute-sanitizer/compute-sanitizer 2>/dev/null | head -n 1
}
pytest=("$python" -m pytest -m gpu -s -p no:cacheprovider)

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
"$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU"' || exit

step build 300 bash -c build
# All of these are about being right, not fast: at once.
step kernels 120 "${pytest[@]}" tests/kernels/test_gpu.py &
step engine 180 "${pytest[@]}" tests/parity/test_gpu.py &
step stops 180 "${pytest[@]}" tests/e2e/test_gpu.py -k stopped &
step runs 180 "${pytest[@]}" tests/e2e/test_gpu.py -k "not stopped" &
if checker="$(sanitizer)" && [[ -n $checker ]]; then
    for tool in memcheck racecheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" 150 "$checker" --tool "$tool" \
            --error-exitcode 9 "$python" -m tests.kernels.small_calls &
    done
fi
wait
# These are about being fast: alone.
step speed 100 "$python" benchmarks/gpu_kernels.py
step steps 150 "$python" benchmarks/gpu_training.py --profile

{
    echo '| step | result | time | |'
    echo '|---|---|---|---|'
    cat "$out"/.*.done
    echo
    echo '| on the GPU | |'
    echo '|---|---|'
    grep -h '^| ' "$out"/{engine,stops,runs}.log | sort -u
    echo
    cat "$out"/{speed,steps}.log
} >"$out/table.md"
echo
cat "$out/table.md"
grep -hE '^(FAILED|ERROR) ' "$out"/{kernels,engine,stops,runs}.log
echo "$((SECONDS - started)) s; logs and table.md are in $out"
! grep -qhE 'FAILED|stopped after' "$out"/.*.done
