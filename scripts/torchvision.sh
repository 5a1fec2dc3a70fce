#!/usr/bin/env bash
# Puts a torchvision that can be imported into an environment: scripts/torchvision.sh ENVIRONMENT
#
# Where there is only a CUDA build of it, which does not import beside a torch for CPUs, two operators
# that none of our tests calls are declared in their place. For such environments of tests alone.
set -euo pipefail
python=$1/bin/python
if "$python" -c "import torchvision" 2>/dev/null; then exit; fi
"$python" -m pip install --quiet --no-deps torchvision
if "$python" -c "import torchvision" 2>/dev/null; then exit; fi
site=$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
cat >"$site/torchvision_operators.py" <<'END'
import torch

for name in ("nms", "qnms"):
    torch.library.define(
        f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    )
END
sed -i '1i import torchvision_operators' "$site/torchvision/__init__.py"
"$python" -c "import torchvision"
