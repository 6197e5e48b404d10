#!/usr/bin/env bash
# Sets up .venv if need be, then repeats a table of the paper on a small world:
#     bash examples/ablations/run.sh TABLE [--output DIR] [--seeds N]      (without TABLE: which there are)
# At most an hour a table on two CPU cores. Ctrl-C is safe: the same command goes on from there.
set -euo pipefail
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
source "$checkout/tools/setup_venv.sh"
exec "$VENV_PYTHON" "$checkout/examples/ablations/run.py" "$@"
