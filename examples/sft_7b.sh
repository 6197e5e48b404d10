#!/usr/bin/env bash
# VILA's third phase at 7B: the language model and the connector learn to follow instructions, about images
# and, jointly, about text alone. Recipe: examples/sft_7b.yaml
#
#   bash examples/sft_7b.sh --instructions PREFIX --text PREFIX --tokenizer FILE.model \
#        --load PRETRAINED_CHECKPOINTS --output DIR [--section.option VALUE ...]
#   bash examples/sft_7b.sh --smoke
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/recipe/run.sh"
run_recipe sft_7b 4 "epochs: 1" instructions=conversations text=text -- "$@"
