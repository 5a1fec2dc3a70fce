"""Pictures for vLLM as training saw them: shrunk by Pillow, and fitted as in the adapter's run.

vLLM itself takes the processor that transformers takes first, which shrinks a little otherwise:
the letters' log-probabilities would not be those of ``vlmoe evaluate`` to within 1e-4.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

from transformers import LlavaProcessor
from transformers.image_utils import make_flat_list_of_images
from vllm.model_executor.models.llava import LlavaProcessingInfo

from vlmoe.adapter.load import find_adapter
from vlmoe.data.fit import cropped, padded
from vlmoe.models.load import load_reader
from vlmoe.train.record.finished import settings_of
from vlmoe.vllm.adapter import named


class ProcessingInfo(LlavaProcessingInfo):
    """What vLLM asks about a LLaVA's pictures."""

    @cached_property
    def _processor(self) -> LlavaProcessor:
        config = self.ctx.model_config
        reader: Any = load_reader(config.model)
        folder = find_adapter(named(config.hf_config))
        fit = settings_of(folder).get("image_fit", "crop")
        processor = copy.copy(reader.processor)
        processor.image_processor = fitting(processor.image_processor, fit)
        return processor

    def get_hf_processor(self, **kwargs: object) -> LlavaProcessor:
        """The processor of ``vlmoe.models``; whatever else is asked for."""
        return self._processor


def fitting(processor: Any, fit: str) -> Any:
    """An image processor that makes of a picture what ``LlavaReader.pixels`` makes of it.

    Args:
        processor: one of Pillow's.
        fit: ``crop`` or ``pad``.
    """
    first = padded if fit == "pad" else cropped
    kind = type(processor)

    class Fitting(kind):  # type: ignore[misc, valid-type]
        def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> Any:
            pictures: Any = make_flat_list_of_images(images)
            shown = [first(picture, processor) for picture in pictures]
            return super().preprocess(shown, *args, **kwargs)

    made = copy.copy(processor)
    made.__class__ = Fitting
    return made
