#!/usr/bin/env bash
# VILA's first phase at 7B: the connector learns from image-text pairs to speak the language model's
# language. Recipe: examples/align_7b.yaml
#
#   bash examples/align_7b.sh --pairs PREFIX --tokenizer FILE.model --load IMPORTED --output DIR \
#        [--section.option VALUE ...]
#   bash examples/align_7b.sh --smoke
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/recipe/run.sh"
run_recipe align_7b 1 "epochs: 1" pairs=pairs -- "$@"
