#!/usr/bin/env bash
# Makes the small world Atlas: pictures, texts, a tokenizer, data sets and questions.
#     bash examples/atlas/build.sh OUT [--small] [--packages DIR] [--seed N]
# Needs npm, apt-get and dpkg-deb, which fetch four packages (25 MB) into OUT/packages; where those lie
# there already, or in DIR, nothing is fetched. --small is for two CPU cores.
set -euo pipefail
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
source "$checkout/tools/setup_venv.sh"
export PYTHONPATH="$checkout/examples${PYTHONPATH:+:$PYTHONPATH}"
exec "$VENV_PYTHON" -m atlas.build "$@"
