#!/usr/bin/env bash
# Sets up .venv if need be, then trains, questions and exports a small VILA on real digits:
#     bash examples/quickstart.sh [OUT_DIR] [--smoke] [--precision P]      (default: quickstart-out)
# Takes some minutes on two CPU cores; with --smoke, which does a little of everything and learns
# nothing, about one. Ctrl-C is safe: the same command goes on from there. --precision trains in bf16, or
# in FP8, which is emulated where there is no GPU (docs/gpu.md).
set -euo pipefail
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$checkout/tools/setup_venv.sh"
exec "$VENV_PYTHON" "$checkout/examples/quickstart.py" "$@"
