#!/usr/bin/env bash
# Kills, stops, fills disks and flips bits under a tiny run on CPU ranks, for as long as you like, and ends
# with a table: faults injected, recovered, lost. Not part of CI.
#
#   bash tests/soak.sh [--minutes N] [--seed N] [--only FAULT,...]
#
# Ctrl-C ends it early, with the table so far. Exit status 1: something was lost. What a lost fault has
# left behind is kept, and named.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_venv.sh
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$VENV_PYTHON" -m tests.soak "$@"
