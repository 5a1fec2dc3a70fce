"""Adapters in public evaluation kits: lmms-eval, lm-eval, VLMEvalKit.

Each kit asks in its own words and judges by its own rules; what the model says is said by
``vlmoe.tasks``, as for ``vlmoe evaluate``. A kit's module imports the kit, which is none of our
dependencies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def lmms_eval_manifest() -> ModelManifest:
    """What ``lmms-eval --model vlmoe`` loads: the entry point of group ``lmms_eval.models``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("vlmoe", simple_class_path="vlmoe.kits.lmms_eval.Vlmoe")
