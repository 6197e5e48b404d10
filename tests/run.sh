#!/usr/bin/env bash
# Runs the tests, after setting up .venv if need be: bash tests/run.sh [pytest arguments]
# Without arguments it runs all, two files at a time: much of a test is ranks that wait for each other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_venv.sh
# Images often switch byte code off. Hundreds of processes would compile vila_mc anew, some of them
# Transformer Engine, too, and every worker all tests.
unset PYTHONDONTWRITEBYTECODE
if (($# == 0)); then
    set -- -n 2 --dist loadfile
fi
exec "$VENV_PYTHON" -m pytest "$@"
