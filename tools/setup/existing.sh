# shellcheck shell=bash disable=SC2154  # _setup_root is tools/setup_venv.sh's
# Sourced by tools/setup_venv.sh: an environment that exists is completed, and its torch left alone.

# The installed torch as a constraint for pip; then each requirement that is not met, one a line. If
# torch is missing or another than pyproject.toml allows, what is wrong, and status 3.
_setup_lacking() {
    (cd / && "$VENV_PYTHON" - "$_setup_root/pyproject.toml" "$1") <<'PYTHON'
import sys, tomllib
from importlib import metadata
try:
    from packaging.requirements import Requirement
    from packaging.version import Version
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.version import Version

def installed(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

with open(sys.argv[1], "rb") as file:
    said = tomllib.load(file)
project = said["project"]
extras = sum((project["optional-dependencies"][name] for name in sys.argv[2].split(",")), [])
missing = []
for line in [*said["build-system"]["requires"], *project["dependencies"], *extras]:
    wanted = Requirement(line)
    version = installed(wanted.name)
    if wanted.name == "torch":
        # NVIDIA's containers call what becomes 2.11.0 2.11.0a0+...: what it can do is 2.11's.
        if version is None or Version(version).base_version not in wanted.specifier:
            print(f"has {'no torch' if version is None else f'torch {version}'}; vila_mc wants torch {wanted.specifier}")
            sys.exit(3)
        torch = f"torch=={version}"
    elif version is None or not wanted.specifier.contains(version, prereleases=True):
        missing.append(line)
print(torch, *missing, sep="\n")
PYTHON
}

# Whether the environment takes vila_mc from this checkout.
_setup_is_installed() {
    (cd / && "$VENV_PYTHON" - "$_setup_root") <<'PYTHON'
import importlib.util, pathlib, sys
found = importlib.util.find_spec("vila_mc")
root = pathlib.Path(sys.argv[1])
sys.exit(found is None or not found.origin or root not in pathlib.Path(found.origin).resolve().parents)
PYTHON
}

# Whether a library that this machine can use is missing or older than its sources.
_setup_wants_build() {
    local name library names=(cpu)
    nvidia-smi --list-gpus >/dev/null 2>&1 && names+=(cuda)
    for name in "${names[@]}"; do
        library="$_setup_root/vila_mc/kernels/libvila_mc_$name.so"
        [[ -e $library ]] || return 0
        [[ -z $(find "$_setup_root"/{setup.py,csrc} -type f -newer "$library" ! -name '*.md' \
            ! -path '*/emulation/*' -print -quit) ]] || return 0
    done
    return 1
}

# What pip or setup.py says, where it fails.
_setup_quietly() {
    local log status=0
    log="$(mktemp)" || return
    (cd "$_setup_root" && "$@") >"$log" 2>&1 </dev/null || status=$?
    if ((status)); then
        tail -n 15 "$log" >&2
    else
        grep -E '^ *vila_mc: no .* library, for there is no ' "$log" | sort -u
    fi
    rm -f "$log"
    return "$status"
}

# Where emulation looks for Transformer Engine's wheel: nowhere, if a whole one is there.
_setup_wheel_folder() {
    (cd / && "$VENV_PYTHON" -) <<'PYTHON'
import importlib.metadata, pathlib, sys
try:
    importlib.metadata.version("transformer-engine-torch")
except importlib.metadata.PackageNotFoundError:
    print(pathlib.Path(sys.prefix, "transformer_engine_wheel"))
PYTHON
}

# Asked for once, when vila_mc is installed: training can do without, and there may be no network.
_setup_existing_emulation() {
    local folder
    [[ -z ${VILA_MC_TE_FOLDER:-} ]] || return 0
    folder="$(_setup_wheel_folder)"
    [[ -n $folder && ! -d $folder/transformer_engine ]] || return 0
    _setup_quietly _setup_emulation "$folder" "$@" 2>/dev/null || echo "Transformer Engine's wheel was not \
fetched into $folder, so FP8 cannot be emulated here; docs/gpu.md says how to do that by hand."
}

_setup_existing() {
    local said lines pip status=0
    if ! _setup_suits "$VENV_PYTHON"; then
        _setup_fail "VILA_MC_PYTHON=$VENV_PYTHON is not a working Python 3.12 or 3.13."
        return
    fi
    said="$(_setup_lacking hf,examples)" || status=$?
    if ((status)); then
        _setup_fail "the environment of VILA_MC_PYTHON=$VENV_PYTHON ${said:-cannot be read}. Name \
another, or unset VILA_MC_PYTHON for a .venv of its own."
        return
    fi
    mapfile -t lines <<<"$said"
    pip=("$VENV_PYTHON" -m pip install --progress-bar off --disable-pip-version-check)
    if ((${#lines[@]} > 1)); then
        echo "Installing what the environment of $VENV_PYTHON lacks, beside ${lines[0]}: ${lines[*]:1}"
        if ! _setup_quietly "${pip[@]}" -c <(printf '%s\n' "${lines[0]}") "${lines[@]:1}"; then
            _setup_fail "the environment of $VENV_PYTHON could not be completed. In a container, make \
a layer above it: python3 -m venv --without-pip --system-site-packages DIR, and VILA_MC_PYTHON=DIR/bin/python."
            return
        fi
    fi
    if ! _setup_is_installed; then
        echo "Installing vila_mc from $_setup_root into the environment of $VENV_PYTHON ..."
        if _setup_quietly "${pip[@]}" --no-build-isolation --no-deps -v -e .; then
            _setup_existing_emulation "${pip[@]}"
            return
        fi
    elif _setup_wants_build; then
        echo "Building csrc for $VENV_PYTHON ..."
        _setup_quietly "$VENV_PYTHON" setup.py build_ext --inplace && return
    else
        return 0
    fi
    _setup_fail "vila_mc could not be built with $VENV_PYTHON; the end of what was said is above."
}
