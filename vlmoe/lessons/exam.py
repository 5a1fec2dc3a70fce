"""What a build of the base can do: questions about scenes it has never met, whole answers."""

from __future__ import annotations

import random

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vlmoe.data.scenes import questions, random_scene, render
from vlmoe.models.families.llava import chat


@torch.inference_mode()
def open_accuracy(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, count: int
) -> float:
    """Share of open questions about new scenes whose whole answer is the likeliest, word for word.

    The kind of question (colour, shape, number, position, size) is drawn first, so that each counts
    the same, as in the dataset ``shapes``.
    """
    rng = random.Random("exam")
    right = 0
    for _ in range(count):
        scene = random_scene(rng)
        pool = list(questions(scene))
        kind = rng.choice(sorted({question.kind for question in pool}))
        question = rng.choice([question for question in pool if question.kind == kind])
        asked = chat(question.text, picture=True)
        prompt = processor(images=render(scene), text=asked, return_tensors="pt")
        whole = processor(
            images=render(scene), text=f"{asked} {question.answer}", return_tensors="pt"
        )
        before = prompt["input_ids"].shape[1]
        predicted = model(**whole).logits[0, before - 1 : -1].argmax(-1)
        right += bool((predicted == whole["input_ids"][0, before:]).all())
    return right / count
