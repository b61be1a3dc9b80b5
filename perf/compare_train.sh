#!/usr/bin/env bash
# Alpha beside PyTorch on one GPU, in turn: whole training steps.
#   perf/compare_train.sh --python=PYTHON_WITH_TORCH [--dtype=bf16] [--mode=MODE] [--rounds=5] [--json=FILE] [MODEL]...
# Options and models: perf/compare.py --help. PYTHON=... names the interpreter that Alpha runs in.
set -euo pipefail
# shellcheck source=perf/library.sh
source "$(dirname "$0")/library.sh"
answer_help "$@"
find_python
exec "$python" "$perf/compare.py" train "$@"
