#!/usr/bin/env bash
# VILA's second phase at 13B: the language model and the connector learn from interleaved documents and
# image-text pairs. Recipe: examples/pretrain_13b.yaml
#
#   bash examples/pretrain_13b.sh --mmc4 PREFIX --coyo PREFIX --tokenizer FILE.model \
#        --load ALIGNED_CHECKPOINTS --output DIR [--section.option VALUE ...]
#   bash examples/pretrain_13b.sh --smoke
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/recipe/run.sh"
run_recipe pretrain_13b 8 "weight: 1" mmc4=interleaved coyo=pairs -- "$@"
