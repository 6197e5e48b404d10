# shellcheck shell=bash disable=SC2154  # _setup_root is tools/setup_venv.sh's
# Sourced by tools/setup_venv.sh --with-te: Transformer Engine beside the torch that is there.

_setup_te_minutes=17 # of one core, for the part that is compiled against torch

# The CUDA toolkit of torch's version: CUDA_HOME, /usr/local/cuda, nvcc's own, then others beside it.
_setup_cuda_home() {
    local wanted="$1" home
    while IFS= read -r home; do
        [[ -x $home/bin/nvcc ]] || continue
        [[ $("$home/bin/nvcc" --version) =~ release\ ([0-9]+) && ${BASH_REMATCH[1]} == "$wanted" ]] || continue
        printf '%s\n' "$home"
        return
    done < <(
        printf '%s\n' "${CUDA_HOME:-}" /usr/local/cuda
        readlink -f "$(command -v nvcc)" | sed 's|/bin/nvcc$||'
        compgen -G '/usr/local/cuda-*' | sort -rV
    )
    return 1
}

# torch's version, its CUDA's first number, the folders with headers that its packages bring (cuDNN,
# NCCL), and the requirement of pyproject.toml; one a line.
_setup_te_facts() {
    (cd / && "$VENV_PYTHON" - "$_setup_root/pyproject.toml") <<'PYTHON'
import pathlib, sys, tomllib
import torch
with open(sys.argv[1], "rb") as file:
    (requirement,) = tomllib.load(file)["project"]["optional-dependencies"]["gpu"]
nvidia = pathlib.Path(torch.__file__).parents[1] / "nvidia"
print(torch.__version__)
print((torch.version.cuda or "").split(".")[0])
print(":".join(sorted(map(str, nvidia.glob("*/include")))))
print(requirement)
PYTHON
}

_setup_transformer_engine() {
    local facts home cores minutes
    if (cd / && "$VENV_PYTHON" -c 'from importlib.metadata import version as v; v("transformer-engine"); v("transformer-engine-torch")') 2>/dev/null; then
        echo "Transformer Engine is there."
        return
    fi
    mapfile -t facts < <(_setup_te_facts)
    if ((${#facts[@]} != 4)) || [[ -z ${facts[1]} ]]; then
        _setup_fail "Transformer Engine needs a torch built for CUDA; that of $VENV_PYTHON is not."
        return
    fi
    if ! home="$(_setup_cuda_home "${facts[1]}")"; then
        _setup_fail "Transformer Engine is compiled against torch, with nvcc of CUDA ${facts[1]}, \
torch's own; there is none in CUDA_HOME, /usr/local/cuda* or on the PATH. Install that toolkit, or name it \
with CUDA_HOME."
        return
    fi
    cores="$(nproc)"
    minutes=$((_setup_te_minutes / cores + 1))
    echo "Installing Transformer Engine: its part for torch ${facts[0]} is compiled with $home/bin/nvcc on \
$cores cores, which takes about $minutes minutes ..."
    # The toolkit's headers first, then those of pip's packages, which hold cuDNN and NCCL.
    if ! CUDA_HOME="$home" CPATH="$home/include${facts[2]:+:${facts[2]}}${CPATH:+:$CPATH}" \
        NVTE_FRAMEWORK=pytorch MAX_JOBS="${MAX_JOBS:-$cores}" _setup_quietly \
        "$VENV_PYTHON" -m pip install --progress-bar off --disable-pip-version-check \
        --no-build-isolation -c <(printf 'torch==%s\n' "${facts[0]}") "${facts[3]}"; then
        _setup_fail "Transformer Engine could not be built; the end of what was said is above. Everything \
else works without it."
        return
    fi
    echo "  done"
}
