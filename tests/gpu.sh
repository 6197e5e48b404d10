#!/usr/bin/env bash
# What to run on the first machine with a GPU: tests, sanitizers and figures, in at most 8 minutes.
#
#   bash tests/gpu.sh [--only STEP,...] [--minutes N] [--wheels DIR] [--out DIR]
#
# Needs torch 2.11 or newer with CUDA, numpy and pytest. .venv of this checkout is used where it is set
# up, otherwise python3 (VILA_MC_PYTHON or PYTHON names another). Without a GPU it says so and ends.
#
# --only STEPS    some of: kernels attention engine layers memory runs memcheck racecheck speed steps
#                 saves. The library is built for all of them, where it is missing.
# --minutes N     what is not done by then is stopped (default: 8).
# --wheels DIR    what a machine without network lacks. If DIR has no wheels, they are downloaded and
#                 nothing else happens: do that where there is a network, with the same version of
#                 Python, and bring DIR along.
# --out DIR       where logs and table.md go (default: $OUT, or a new temporary folder).
#
# A step that fails spares the others. Exit status 1: some step failed or was stopped.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

all="kernels attention engine layers memory runs memcheck racecheck speed steps saves"
only="" minutes=8 wheels="" out="${OUT:-}"
while (($#)); do
    case "$1" in
        --only) only="${2:?--only wants steps}" && shift 2 ;;
        --minutes) minutes="${2:?--minutes wants a number}" && shift 2 ;;
        --wheels) wheels="${2:?--wheels wants a folder}" && shift 2 ;;
        --out) out="${2:?--out wants a folder}" && shift 2 ;;
        *) echo "error: $1 is not an option; see the head of tests/gpu.sh." >&2 && exit 2 ;;
    esac
done
for name in ${only//,/ }; do
    [[ " $all " == *" $name "* ]] || {
        echo "error: --only $name is not a step; there are: $all." >&2
        exit 2
    }
done
[[ $minutes =~ ^[1-9][0-9]?$ ]] || {
    echo "error: --minutes $minutes is not a number of minutes from 1 to 99." >&2
    exit 2
}
started=$SECONDS
ends=$((started + 60 * minutes))

python="${PYTHON:-${VILA_MC_PYTHON:-}}"
if [[ -z $python ]]; then
    if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; else python=python3; fi
fi

# Versions of what the tests want that no environment with torch can be expected to have, found without
# downloading torch. matplotlib is for reports alone.
requirements() {
    "$python" - <<'PYTHON'
import json, re, subprocess, sys, tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
wanted = [*project["dependencies"], *project["optional-dependencies"]["hf"], "pytest>=8", "setuptools>=77"]
wanted = [line for line in wanted if not line.startswith("matplotlib")]
resolve = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
found = json.loads(subprocess.run([*resolve, *wanted], check=True, stdout=subprocess.PIPE).stdout)
there = re.compile(r"(torch|triton|nvidia|cuda|numpy|sympy|mpmath|networkx)\b")
for package in (entry["metadata"] for entry in found["install"]):
    if not there.match(package["name"]):
        print(f"{package['name']}=={package['version']}")
PYTHON
}

if [[ -n $wheels ]] && ! compgen -G "$wheels/*.whl" >/dev/null; then
    list="$(requirements)" || exit
    "$python" -m pip download -q --no-deps --only-binary=:all: -d "$wheels" -r /dev/stdin <<<"$list" || exit
    du -sh "$wheels"
    exit
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
out="${out:-$(mktemp -d)}"
mkdir -p "$out" && out="$(cd "$out" && pwd)" || exit
if [[ -n $wheels ]]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" \
        "$wheels"/*.whl || exit
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Images often switch byte code off, and what uv installs has none: some hundred processes would compile
# torch and Megatron-Core anew, each for as long as its test takes. Here it is kept in one place.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$work/pycache"
# What training has compiled is compiled in tests, too, and once for all of them.
export TORCHDYNAMO_DISABLE=0 TORCHINDUCTOR_CACHE_DIR="$work/inductor" TRITON_CACHE_DIR="$work/triton"
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 # an image's plugins take seconds to start

# step NAME SECONDS COMMAND...: run if wanted, within what is left; log, and note how it ended.
step() {
    local name="$1" limit="$2" begin=$SECONDS status=0
    shift 2
    [[ -z $only || $name == build || ",$only," == *",${name%%-*},"* ]] || return 0
    ((limit < ends - begin)) || limit=$((ends - begin))
    ((limit > 0)) || limit=1
    timeout -k 10 "$limit" "$@" >"$work/$name.log" 2>&1 </dev/null || status=$?
    local how="passed"
    ((status == 124 || status == 137)) && how="stopped after $limit s"
    ((status == 0 || status == 124 || status == 137)) || how="FAILED ($status)"
    printf '| %s | %s | %d s | %s |\n' "$name" "$how" $((SECONDS - begin)) \
        "$(grep -aE '^=+ .*(passed|failed|skipped|error).* =+$|ERROR SUMMARY|RACECHECK SUMMARY' \
            "$work/$name.log" | tail -n 1 | tr -d '=' | tr '|' '/' | sed 's/^ *//; s/ *$//')" \
        >"$work/$name.done"
    cat "$work/$name.done"
}

# The library where it is missing, and meanwhile byte code, on all cores.
build() {
    "$python" - <<'PYTHON' | xargs -r -d '\n' "$python" -m compileall -q -j 0 >/dev/null 2>&1 &
import importlib.util
for name in ("torch", "numpy", "megatron", "transformers", "vila_mc", "tests"):
    spec = importlib.util.find_spec(name)
    print(*(spec.submodule_search_locations if spec else ()), sep="\n")
PYTHON
    local status=0
    if [[ ! -e vila_mc/kernels/libvila_mc_cuda.so || -n ${REBUILD:-} ]]; then
        VILA_MC_BUILD_CUDA=1 "$python" setup.py build_ext --inplace --parallel 8 || status=$?
    fi
    wait
    for turn in first second; do
        "$python" - "$turn" <<'PYTHON'
import sys, time
began = time.perf_counter()
import tests.support.preload
print(f"| {sys.argv[1]} start of Python with torch, Megatron-Core and vila_mc | {time.perf_counter() - began:.1f} s |")
PYTHON
    done
    return "$status"
}
export -f build
export python

sanitizer() {
    local file
    for file in "$(command -v compute-sanitizer)" /usr/local/cuda/{bin,compute-sanitizer}/compute-sanitizer; do
        [[ -x $file ]] && echo "$file" && return
    done
    return 1
}
pytest=("$python" -m pytest -m gpu -s -rs -p no:cacheprovider)

# Whole runs mostly wait for processes that start: each test in a process of its own, all at once.
runs() {
    local tests=() test name
    mapfile -t tests < <("${pytest[@]}" --collect-only -q tests/e2e/test_gpu.py | grep ::)
    ((${#tests[@]})) || step runs 60 "${pytest[@]}" --collect-only tests/e2e/test_gpu.py
    for test in "${tests[@]}"; do
        name="${test##*::test_}"
        step "runs-${name//[^a-z0-9]/_}" 240 "${pytest[@]}" "$test" &
    done
    wait
}

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: torch sees no GPU here. Start this on a machine with one; docs/gpu.md says what it needs." >&2
    exit 2
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

step build 240 bash -c build
# All of these are about being right, not fast: at once.
step kernels 120 "${pytest[@]}" tests/kernels/test_gpu.py &
step attention 120 "${pytest[@]}" tests/kernels/test_gpu_attention.py &
step engine 240 "${pytest[@]}" tests/parity/test_gpu.py &
step layers 240 "${pytest[@]}" tests/parity/test_gpu_layers.py &
step memory 150 "${pytest[@]}" tests/rehearsal/test_against_gpu.py tests/rehearsal/test_attention.py &
[[ -n $only && ",$only," != *,runs,* ]] || runs &
if checker="$(sanitizer)"; then
    for tool in memcheck racecheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" 150 "$checker" --tool "$tool" \
            --error-exitcode 9 "$python" -m tests.kernels.small_calls &
    done
fi
wait
# These are about being fast: alone.
step speed 60 "$python" benchmarks/gpu_kernels.py
step steps 200 "$python" benchmarks/gpu_training.py --profile
step saves 90 "$python" benchmarks/gpu_saves.py

{
    echo '| step | result | time | |'
    echo '|---|---|---|---|'
    cat "$work"/*.done
    echo
    echo '| on the GPU | |'
    echo '|---|---|'
    grep -ha '^| ' "$work"/{build,attention,engine,layers,memory,runs*}.log 2>/dev/null | sort -u
    echo
    cat "$work"/{speed,steps,saves}.log 2>/dev/null
} >"$out/table.md"
cat "$work"/runs-*.log >"$out/runs.log" 2>/dev/null
rm -f "$work"/runs-*.log
cp "$work"/*.log "$out"
echo
cat "$out/table.md"
grep -haE '^(FAILED|ERROR|SKIPPED) ' "$out"/*.log
echo "$((SECONDS - started)) s; logs and table.md are in $out"
! grep -qhE 'FAILED|stopped after' "$work"/*.done
