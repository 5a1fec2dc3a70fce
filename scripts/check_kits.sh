#!/usr/bin/env bash
# Tests the evaluation kits' models: an environment with lmms-eval and lm-eval, and tests/kits in it.
#
#     scripts/check_kits.sh [ENVIRONMENT]      default: .venv-kits; kept, and used again
#
# VLMEvalKit is on no index: put the folder of a checkout into $VLMEVALKIT, its requirements come too.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${1:-.venv-kits}

if [ ! -f "$environment/ready" ]; then
  python3 -m venv "$environment"
  "$environment/bin/pip" install --quiet -c constraints.txt -e . pytest
  # Of what lmms-eval asks for, what its models and tasks import: all of it is several GB, torchvision
  # (of which there is none for a torch for CPUs) among it.
  "$environment/bin/pip" install --quiet --no-deps lmms-eval==0.7.3 lm-eval==0.4.13
  "$environment/bin/pip" install --quiet -c constraints.txt \
    dill evaluate "filelock<4" ftfy jsonlines loguru more_itertools nltk numexpr openai openpyxl pytablewriter \
    python-dotenv rouge-score sacrebleu scikit-learn sqlitedict tenacity tiktoken tqdm-multiprocess \
    word2number zstandard
  touch "$environment/ready"
fi
if [ -n "${VLMEVALKIT:-}" ] && [ ! -f "$environment/ready-vlmevalkit" ]; then
  "$environment/bin/pip" install --quiet -c constraints.txt \
    decord google-genai imageio jieba math-verify pylatexenc qwen-vl-utils rouge json_repair levenshtein matplotlib num2words omegaconf opencv-python-headless \
    pandas portalocker rich scikit-image sty tabulate termcolor timeout-decorator validators xlsxwriter
  scripts/torchvision.sh "$environment" # which the kit imports
  touch "$environment/ready-vlmevalkit"
fi

export HF_HUB_OFFLINE=1
"$environment/bin/python" -c "
from importlib.metadata import version
print(*(f'{name} {version(name)}' for name in ('lmms-eval', 'lm-eval', 'torch', 'transformers')), sep=', ')"
"$environment/bin/python" -m pytest -p no:cacheprovider --override-ini=filterwarnings= \
  ${TESTS:-tests/kits} "${@:2}"
