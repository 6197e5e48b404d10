#!/usr/bin/env bash
# Makes .venv in this checkout, ready to train and test; does nothing when it is up to date.
#
#   bash tools/setup_venv.sh              make or update .venv
#   bash tools/setup_venv.sh --with-te    the same, then Transformer Engine, compiled against its torch
#   source tools/setup_venv.sh            the first, and sets VENV_PYTHON to its interpreter
#
# VILA_MC_PYTHON=/path/to/python takes the environment of that interpreter instead, whose torch is not
# touched: what else is missing there is installed, vila_mc among it (not what tests and checks need).
# In NVIDIA's PyTorch containers that is python3 unless it says otherwise.
#
# What is installed stands in requirements.lock, with the hash of every file. LOCK=no takes what the
# ranges of pyproject.toml allow instead, where torch or another package comes from a mirror of one's
# own builds. PYTHON=/path/to/python3.12 chooses the interpreter. Exit status 2: the machine lacks
# something.

_setup_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
_setup_venv="$_setup_root/.venv"
_setup_log="$_setup_venv/setup.log"
_setup_stamp="$_setup_venv/setup.stamp"           # key and path of the set-up that finished
_setup_unfinished="$_setup_venv/setup.unfinished" # there while a first set-up runs
_setup_extras="hf,examples,dev"
_setup_patience=10 # seconds without a line of pip after which the number of packages is said
VENV_PYTHON="$_setup_venv/bin/python"
if [[ -n ${NVIDIA_PYTORCH_VERSION:-} ]]; then # set by the containers
    VILA_MC_PYTHON="${VILA_MC_PYTHON:-python3}"
fi

_setup_fail() {
    printf 'error: %s\n' "$1" >&2
    return 2
}

# Everything that decides what is installed, and where.
_setup_key() {
    (
        cd "$_setup_root" || exit
        printf '%s\n' "$_setup_root" "$_setup_extras" "${LOCK:-yes}"
        find pyproject.toml requirements.lock transformer_engine.lock setup.py csrc -type f ! -name '*.md' ! -path 'csrc/emulation/*' \
            -exec sha256sum {} + | sort -k 2
    ) | sha256sum | cut -d ' ' -f 1
}

_setup_is_current() {
    [[ -x $VENV_PYTHON && -r $_setup_stamp && $(<"$_setup_stamp") == "$1"* ]]
}

# Whether .venv is whole and only wants updating. A moved one is not: its scripts name the old path.
_setup_can_update() {
    [[ ! -e $_setup_unfinished ]] || return
    [[ ! -r $_setup_stamp || $(<"$_setup_stamp") == *" $_setup_root" ]] || return
    _setup_suits "$VENV_PYTHON" pip
}

# Whether a command starts, is 3.12 or 3.13, and has the modules named after it. A version
# manager's shim can exist and still start nothing. The bounds are requires-python's.
_setup_suits() {
    local python="$1"
    shift
    "$python" - "$@" >/dev/null 2>&1 <<'PYTHON'
import importlib, sys
if not (3, 12) <= sys.version_info[:2] < (3, 14):
    sys.exit(1)
for name in sys.argv[1:]:
    importlib.import_module(name)
PYTHON
}

_setup_candidates() {
    [[ -n ${PYTHON:-} ]] && printf '%s\n' "$PYTHON"
    printf '%s\n' python3.12 python3.13 python3
    local versions="${PYENV_ROOT:-${HOME:-}/.pyenv}/versions" minor
    [[ -d $versions ]] || return 0
    for minor in 3.12 3.13; do
        find "$versions" -maxdepth 1 -name "$minor.*" | sort -rV | sed 's|$|/bin/python|'
    done
}

# Starts over with an empty .venv, but for the lock that this process holds.
_setup_start_over() {
    echo "Setting up .venv with $1 (once; about 6 GB, a few minutes) ..."
    find -H "$_setup_venv" -mindepth 1 -maxdepth 1 ! -name setup.lock -exec rm -rf {} +
    : >"$_setup_unfinished"
}

_setup_make_venv() {
    local python
    while IFS= read -r python; do
        if _setup_suits "$python" venv ensurepip; then
            _setup_start_over "$python"
            "$python" -m venv "$_setup_venv" >>"$_setup_log" 2>&1 && return
        elif [[ $python == "${PYTHON:-}" ]]; then
            echo "PYTHON=$python is not a working Python 3.12 or 3.13; looking for another." >&2
        fi
    done < <(_setup_candidates)
    if command -v uv >/dev/null; then
        _setup_start_over "uv's Python 3.12"
        uv venv --seed --allow-existing --python 3.12 "$_setup_venv" >>"$_setup_log" 2>&1 && return
    fi
    _setup_fail "no working Python 3.12 or 3.13 with the venv module was found. Install one \
(Debian, Ubuntu: apt install python3.12 python3.12-venv), or install uv, or name one with \
PYTHON=/path/to/python3.12."
}

# Shows the few lines of pip's output that take long, and how many packages are unpacked meanwhile.
_setup_progress() {
    local line part="" said="" packages=0 since=0
    while :; do
        if IFS= read -r -t "$_setup_patience" line; then
            line="$part$line"
            part=""
        elif (($? > 128)); then # nothing came for so long, or but a part of a line
            part+="$line"
            ((packages == 0)) || echo "  unpacked $(_setup_unpacked "$since") of $packages ..."
            continue
        else
            break
        fi
        printf '%s\n' "$line" >>"$_setup_log"
        case "$line" in
            *"Downloading "*"("[1-9][0-9][0-9]*" MB)"*) echo "  downloading ${line##* Downloading }" ;;
            "Building csrc") echo "  building csrc (20 s) ..." ;;
            *" library, for there is no "*) # pip runs setup.py more than once
                [[ $line == "$said" ]] || echo "  ${line#"${line%%[![:space:]]*}"}"
                said="$line"
                ;;
            *"Installing collected packages: vila_mc"*) ;;
            *"Installing collected packages:"*)
                packages=$(wc -w <<<"${line#*:}") since=$(date +%s)
                echo "  unpacking $packages packages ..."
                ;;
            *"Successfully installed"*) packages=0 ;;
        esac
    done
}

# Packages that were unpacked since a time in seconds: the last that pip writes of each.
_setup_unpacked() {
    find "$_setup_venv"/lib/python3*/site-packages -maxdepth 1 -name '*.dist-info' \
        -newermt "@$1" | wc -l
}

# What vila_mc needs to be built and to run, one requirement a line, as pyproject.toml says.
_setup_requirements() {
    "$VENV_PYTHON" - "$_setup_root/pyproject.toml" "$_setup_extras" <<'PYTHON'
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    said = tomllib.load(file)
extras = said["project"]["optional-dependencies"]
needed = [extras[name] for name in sys.argv[2].split(",")]
print(*said["build-system"]["requires"], *said["project"]["dependencies"], *sum(needed, []), sep="\n")
PYTHON
}

# _setup_emulation FOLDER PIP...: Transformer Engine's pure Python wheel (1 MB), which emulation executes.
# In a folder of its own: on the path Megatron-Core would take it for a whole one, and fail.
_setup_emulation() {
    local pip=("${@:2}" --no-deps --no-compile --upgrade --target "$1")
    if [[ ${LOCK:-yes} != no ]]; then
        "${pip[@]}" --require-hashes -r transformer_engine.lock
    elif ! "${pip[@]}" -r <(sed -E 's/ *\\$//; /--hash/d' transformer_engine.lock); then
        echo "no wheel of Transformer Engine on this mirror: it cannot be emulated here"
    fi
}

# First what is needed, then vila_mc itself: built in isolation it would fetch a second torch.
_setup_pip() {
    local pip=("$VENV_PYTHON" -m pip install --progress-bar off --disable-pip-version-check)
    if [[ ${LOCK:-yes} == no ]]; then
        "${pip[@]}" -r <(_setup_requirements) || return
    else
        "${pip[@]}" --require-hashes -r requirements.lock || return
    fi
    _setup_emulation "$_setup_venv/transformer_engine_wheel" "${pip[@]}" || return
    echo "Building csrc"
    "${pip[@]}" --no-build-isolation --no-deps -v -e .
}

_setup_install() {
    echo "  installing vila_mc and what it needs (log: .venv/setup.log)"
    if ! (cd "$_setup_root" && PYTHONUNBUFFERED=1 _setup_pip 2>&1 | _setup_progress
        exit "${PIPESTATUS[0]}"); then
        tail -n 15 "$_setup_log" >&2
        _setup_fail "setting up .venv failed; the whole log is $_setup_log. Check the network \
and that 12 GB of disk are free, then start again. Where packages come from a mirror with builds of its \
own, start with LOCK=no."
    fi
}

_setup_locked() {
    local key="$1" start=$SECONDS
    _setup_is_current "$key" && return # another start has done it while this one waited
    if _setup_can_update; then
        echo "Updating .venv ..."
        rm -f "$_setup_stamp"
        : >"$_setup_log"
    else
        _setup_make_venv || return
    fi
    _setup_install || return
    rm -f "$_setup_unfinished"
    printf '%s %s\n' "$key" "$_setup_root" >"$_setup_stamp"
    echo "  done in $((SECONDS - start)) s"
}

# Whether .venv is a link to a folder that holds something else than a set-up of this checkout, such
# as another one's .venv, which starting over would empty.
_setup_is_foreign() {
    [[ -L $_setup_venv && -n $(find -H "$_setup_venv" -mindepth 1 -maxdepth 1 ! -name setup.lock \
        -print -quit 2>/dev/null) ]] || return
    [[ ! -r $_setup_stamp || $(<"$_setup_stamp") != *" $_setup_root" ]]
}

setup_venv() {
    local key
    if [[ -n ${VILA_MC_PYTHON:-} ]]; then
        # shellcheck source=tools/setup/existing.sh
        source "$_setup_root/tools/setup/existing.sh"
        VENV_PYTHON="$(command -v "$VILA_MC_PYTHON" || printf '%s' "$VILA_MC_PYTHON")"
        [[ $VENV_PYTHON != */* ]] || VENV_PYTHON="$(realpath -ms "$VENV_PYTHON")"
        _setup_existing
        return
    fi
    key="$(_setup_key)"
    _setup_is_current "$key" && return
    if _setup_is_foreign; then
        _setup_fail "$_setup_venv is a link to $(readlink -f "$_setup_venv"), which is not this \
checkout's. Remove the link, or let it lead to an empty folder."
        return
    fi
    if ! mkdir -p "$_setup_venv" || [[ ! -w $_setup_venv ]]; then
        _setup_fail "$_setup_venv cannot be written. Use a checkout that you can write to."
        return
    fi
    (
        if command -v flock >/dev/null && ! flock -n 9; then
            echo "Waiting for another set-up of .venv ..."
            flock 9
        fi
        _setup_locked "$key" || exit
    ) 9>>"$_setup_venv/setup.lock" </dev/null
}

# Options of whoever sources this are none of its business.
_setup_with_te=no
if [[ ${BASH_SOURCE[0]} == "$0" && $# -gt 0 ]]; then
    if [[ $* != --with-te ]]; then
        _setup_fail "$* is not an option; there is --with-te." || exit
    fi
    _setup_with_te=yes
fi

setup_venv || exit
if [[ $_setup_with_te == yes ]]; then
    # shellcheck source=tools/setup/existing.sh
    source "$_setup_root/tools/setup/existing.sh"
    # shellcheck source=tools/setup/transformer_engine.sh
    source "$_setup_root/tools/setup/transformer_engine.sh"
    _setup_transformer_engine || exit
fi
