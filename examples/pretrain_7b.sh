#!/usr/bin/env bash
# VILA's second phase at 7B: the language model and the connector learn from interleaved documents and
# image-text pairs. Recipe: examples/pretrain_7b.yaml
#
#   bash examples/pretrain_7b.sh --mmc4 PREFIX --coyo PREFIX --tokenizer FILE.model \
#        --load ALIGNED_CHECKPOINTS --output DIR [--section.option VALUE ...]
#   bash examples/pretrain_7b.sh --smoke
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/recipe/run.sh"
run_recipe pretrain_7b 4 "weight: 1" mmc4=interleaved coyo=pairs -- "$@"
