#!/usr/bin/env bash
# Runs the tests, after setting up .venv if need be: bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/setup_venv.sh
exec "$VENV_PYTHON" -m pytest "$@"
