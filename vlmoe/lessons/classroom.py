"""Lessons as batches of tokens, and how well the base answers them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaTokenizer, LlavaForConditionalGeneration

from vlmoe.data.scenes import CANVAS, Scene, render
from vlmoe.lessons.lessons import Lesson, meaning
from vlmoe.lessons.network import MEAN, PATCH, STD, image_id
from vlmoe.models.families.llava import chat

IGNORED = -100

Thought = tuple[int, int, Sequence[str]]  # layer, position, words


class Batch(NamedTuple):
    """Conversations as the model takes them, and what it should say and think.

    Attributes:
        inputs: input_ids, attention_mask (B, T), right-padded; pixel_values where scenes are shown.
        labels: (B, T), the assistant's tokens at their own positions; ``IGNORED`` elsewhere.
        thinking: layers, rows and columns (3, N) of tokens at which something should come to mind.
        thoughts: (N, vocabulary), the words of it, equal shares that sum to 1.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    thinking: torch.Tensor
    thoughts: torch.Tensor


class Classroom:
    """A language model's teacher.

    Besides what to say, it teaches what to think on the way (deep supervision, arXiv 1409.5185):
    half-way up the layers the question mark predicts all words for the thing asked about, and
    two thirds up the token before a reply predicts the words of the answer, also where the reply
    is a mere letter. To find the thing, to know the answer and to find its letter are then three
    short problems in place of a long one, whose loss stays flat for thousands of steps.
    """

    def __init__(self, model: LlavaForConditionalGeneration, tokenizer: LlamaTokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.image_id = image_id(tokenizer)
        self.question_mark = tokenizer.get_vocab()["?"]
        layers = len(model.model.language_model.layers)
        self.finding, self.knowing = layers // 2, 2 * layers // 3
        self.known: dict[str, list[int]] = {}

    def teach(
        self, make: Callable[[random.Random], Lesson], rng: random.Random, count: int
    ) -> tuple[torch.Tensor, str]:
        """The loss on so many lessons of one kind; the shares of right tokens and thoughts."""
        batch = self.batch([make(rng) for _ in range(count)])
        outputs = self.model.model(**batch.inputs, output_hidden_states=True)
        target = batch.labels[:, 1:]
        chosen = target != IGNORED
        logits = self.model.lm_head(outputs.last_hidden_state[:, :-1][chosen])
        loss = cross_entropy(logits, target[chosen])
        right = (logits.argmax(-1) == target[chosen]).float().mean()
        report = f"{make.__name__} {loss:.3f} said {right:.3f}"
        for layer, name in ((self.finding, "found"), (self.knowing, "knew")):
            chosen = batch.thinking[0] == layer
            if chosen.any():
                _, row, column = batch.thinking[:, chosen]
                wanted = batch.thoughts[chosen]
                hidden = outputs.hidden_states[layer][row, column]
                logits = self.model.lm_head(self.model.model.language_model.norm(hidden))
                loss = loss + cross_entropy(logits, wanted)
                report += f" {name} {_recalled(logits, wanted):.3f}"
        return loss, report

    def batch(self, lessons: list[Lesson]) -> Batch:
        rows = [self.encode(lesson) for lesson in lessons]
        width = max(len(tokens) for tokens, _, _ in rows)
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), IGNORED)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        thinking, thoughts = [], []
        for row, (tokens, targets, minded) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, : len(tokens)] = torch.tensor(targets)
            mask[row, : len(tokens)] = 1
            for layer, column, words in minded:
                thinking.append((layer, row, column))
                thoughts.append(self.share(words))
        inputs = {"input_ids": ids, "attention_mask": mask}
        scenes = [lesson.scene for lesson in lessons if lesson.scene is not None]
        if scenes:
            inputs["pixel_values"] = pixels_of(scenes)
        return Batch(
            inputs,
            labels,
            torch.tensor(thinking, dtype=torch.long).reshape(-1, 3).T,
            torch.stack(thoughts) if thoughts else torch.empty(0, len(self.tokenizer)),
        )

    def encode(self, lesson: Lesson) -> tuple[list[int], list[int], list[Thought]]:
        """Tokens, labels, and what should come to mind where."""
        tokens, labels = [self.tokenizer.bos_token_id], [IGNORED]
        thoughts: list[Thought] = []
        for number, turn in enumerate(lesson.turns):
            if lesson.plain:
                asked, said = self.ids(turn.user), self.ids(turn.reply) if turn.reply else []
            else:
                if number == 0:
                    asked = self.ids(chat(turn.user, picture=lesson.scene is not None))
                else:  # as it is read behind the end of the turn before: no leading space
                    end = self.tokenizer.eos_token
                    asked = self.ids(end + chat(turn.user, picture=False))[1:]
                said = [*self.ids(turn.reply), self.tokenizer.eos_token_id]
            if self.image_id in asked:  # one <image> becomes one token per patch
                at = asked.index(self.image_id)
                patches = [self.image_id] * (CANVAS // PATCH) ** 2
                asked = asked[:at] + patches + asked[at + 1 :]
            if turn.stands_for or not lesson.plain:
                if words := meaning(turn):
                    thoughts.append((self.knowing, len(tokens) + len(asked) - 1, words))
                if turn.about:
                    mark = asked.index(self.question_mark)
                    thoughts.append((self.finding, len(tokens) + mark, turn.about))
            tokens += asked + said
            labels += [IGNORED] * len(asked) + said
        return tokens, labels, thoughts

    def ids(self, text: str) -> list[int]:
        if text not in self.known:
            if len(self.known) > 200_000:
                self.known.clear()
            self.known[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.known[text]

    def share(self, words: Sequence[str]) -> torch.Tensor:
        """The tokens of some words as a distribution over the vocabulary."""
        tokens = [token for word in words for token in self.ids(word)]
        share = torch.zeros(len(self.tokenizer))
        share[tokens] = 1.0
        return share / share.sum()


def _recalled(logits: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of n wanted words, how many are among the n likeliest; the mean share."""
    words = (wanted > 0).sum(1)
    likeliest = logits.topk(int(words.max())).indices
    hit = wanted.gather(1, likeliest) > 0
    counts = torch.arange(likeliest.shape[1]) < words[:, None]
    return float(((hit & counts).sum(1) / words).mean())


def pixels_of(scenes: list[Scene]) -> torch.Tensor:
    """Rendered and normalised as the processor does it: (scenes, 3, CANVAS, CANVAS)."""
    pixels = np.stack([np.asarray(render(scene), np.float32) for scene in scenes])
    return torch.from_numpy(((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2)).float()
