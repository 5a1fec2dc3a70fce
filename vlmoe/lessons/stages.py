"""The stages in which the built-in base is taught, each a loss to be stepped on.

The same order as LLaVA's own parts: language by itself, vision by itself, the projector alone,
then language about pictures, first what is where, then conversations; at last letters for what is
known without being read.
"""

from __future__ import annotations

import random

import torch
from torch.nn.functional import avg_pool2d, cross_entropy, mse_loss
from transformers import LlavaForConditionalGeneration

from vlmoe.data.scenes import (
    CANVAS,
    COLOURS,
    GROUNDS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    random_scene,
)
from vlmoe.lessons.classroom import Classroom, pixels_of
from vlmoe.lessons.lessons import (
    choice_drill,
    choice_lesson,
    distracted_lesson,
    fact_drill,
    picture_drill,
    picture_lesson,
    text_lesson,
    word_drill,
)
from vlmoe.lessons.network import PATCH, WIDTH

SIDE = CANVAS // PATCH  # patches in a row


class Stage:
    """A loss over some parts of the model, on lessons that ``rng`` draws."""

    parts: tuple[str, ...]  # what is taught; everything else stays as it is
    lr = 1e-3

    def __init__(self, classroom: Classroom, rng: random.Random):
        self.classroom, self.rng = classroom, rng
        self.model: LlavaForConditionalGeneration = classroom.model

    def parameters(self) -> list[torch.nn.Parameter]:
        return [p for part in self.parts for p in self.model.get_submodule(part).parameters()]

    def __call__(self) -> tuple[torch.Tensor, str]:
        """The loss of one step, and what to print of it."""
        raise NotImplementedError

    def lessons(self, *kinds) -> tuple[torch.Tensor, str]:
        """The summed losses of (kind of lesson, how many) pairs."""
        taught = [self.classroom.teach(make, self.rng, count) for make, count in kinds]
        text = "; ".join(report for _, report in taught)
        return torch.stack([loss for loss, _ in taught]).sum(), text


class Recalling(Stage):
    """Lettered lists, and which letter a word had."""

    parts = ("model.language_model", "lm_head")

    def __call__(self) -> tuple[torch.Tensor, str]:
        return self.lessons((word_drill, 32))


class Reading(Recalling):
    """Facts, and scenes told in words, asked openly and with options."""

    def __call__(self) -> tuple[torch.Tensor, str]:
        return self.lessons((choice_drill, 8), (text_lesson, 12), (word_drill, 6))


class Seeing(Stage):
    """Every patch says what lies in its quadrant, and keeps its own colours.

    This stands in for CLIP's own training. The heads that read the answers off are thrown away.
    """

    parts = ("model.vision_tower",)
    pictures = 64  # in a step
    gallery = 12_000  # in all

    def __init__(self, classroom: Classroom, rng: random.Random) -> None:
        super().__init__(classroom, rng)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        classes = [len(words) + 1 for words in (COLOURS, SHAPES, SIZES)] + [len(GROUNDS)]
        self.heads = torch.nn.ModuleList(torch.nn.Linear(WIDTH, count) for count in classes)
        self.own = torch.nn.Linear(WIDTH, 3 * 4 * 4)

    def parameters(self) -> list[torch.nn.Parameter]:
        return [*super().parameters(), *self.heads.parameters(), *self.own.parameters()]

    def __call__(self) -> tuple[torch.Tensor, str]:
        pixels, labels = self.draw()
        hidden = patches(self.model, pixels)
        losses, right = [], []
        for kind, head in enumerate(self.heads):
            logits, target = head(hidden).flatten(0, 1), labels[:, QUADRANT, kind].flatten()
            losses.append(cross_entropy(logits, target))
            right.append((logits.argmax(-1) == target).float().mean())
        small = avg_pool2d(pixels, PATCH // 4)
        colours = small.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
        losses.append(0.5 * mse_loss(self.own(hidden), colours.flatten(2)))
        text = "colour {:.3f} shape {:.3f} size {:.3f} ground {:.3f}".format(*right)
        return torch.stack(losses).sum(), text

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures and their labels; rendered as they come until the gallery is full."""
        if len(self.seen) * self.pictures < self.gallery:
            scenes = [random_scene(self.rng) for _ in range(self.pictures)]
            labels = torch.tensor([quadrant_labels(scene) for scene in scenes])
            self.seen.append((pixels_of(scenes), labels))
            return self.seen[-1]
        rows = [self.rng.choice(self.seen) for _ in range(self.pictures)]
        at = [self.rng.randrange(self.pictures) for _ in rows]
        pixels = torch.stack([batch[0][row] for batch, row in zip(rows, at, strict=True)])
        return pixels, torch.stack([batch[1][row] for batch, row in zip(rows, at, strict=True)])


class Aligning(Stage):
    """The projector alone: a patch comes to look like the words for what lies in its quadrant."""

    parts = ("model.multi_modal_projector",)
    lr = 3e-3

    def __call__(self) -> tuple[torch.Tensor, str]:
        scenes = [random_scene(self.rng) for _ in range(64)]
        embed = self.model.model.language_model.embed_tokens.weight.detach()
        tokens = [[self.classroom.ids(words) for words in said] for said in map(told, scenes)]
        wanted = torch.stack(
            [torch.stack([embed[ids].sum(0) / len(ids) ** 0.5 for ids in row]) for row in tokens]
        )[:, QUADRANT]
        with torch.no_grad():
            hidden = patches(self.model, pixels_of(scenes))
        loss = mse_loss(self.model.model.multi_modal_projector(hidden), wanted)
        explained = 1 - loss.detach() / wanted.var()
        return loss, f"explained {explained:.3f}"


class Looking(Recalling):
    """What is where in pictures; the language as before.

    The tower and the projector stay as they are, as CLIP does in LLaVA: at a rate that teaches the
    language model to look, they would forget what tells shapes apart.
    """

    def __call__(self) -> tuple[torch.Tensor, str]:
        return self.lessons((picture_drill, 24), (text_lesson, 3), (choice_drill, 1))


class Talking(Recalling):
    """Open questions about pictures; the drill and the language as before."""

    def __call__(self) -> tuple[torch.Tensor, str]:
        kinds = ((picture_lesson, 12), (picture_drill, 8), (text_lesson, 4), (choice_drill, 1))
        return self.lessons(*kinds)


class Choosing(Recalling):
    """To find the letter of what is known: by text alone, beside pictures, never about them."""

    def __call__(self) -> tuple[torch.Tensor, str]:
        drills = ((fact_drill, 16), (picture_drill, 2))
        return self.lessons(*drills, (choice_lesson, 6), (distracted_lesson, 5), (text_lesson, 2))


class Reviewing(Recalling):
    """All of it once more, so that no part fades while another is learned."""

    def __call__(self) -> tuple[torch.Tensor, str]:
        text = ((choice_lesson, 12), (fact_drill, 4), (text_lesson, 3))
        return self.lessons(*text, (picture_lesson, 5), (distracted_lesson, 6), (picture_drill, 2))


STAGES: dict[str, type[Stage]] = {
    "recall": Recalling,
    "read": Reading,
    "see": Seeing,
    "align": Aligning,
    "look": Looking,
    "talk": Talking,
    "choose": Choosing,
    "review": Reviewing,
}

_grid = torch.arange(SIDE * SIDE)
QUADRANT = (_grid // SIDE >= SIDE // 2) * 2 + (_grid % SIDE >= SIDE // 2)  # of each patch


def patches(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """What the projector is given of pictures: (pictures, patches, WIDTH)."""
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return hidden[model.config.vision_feature_layer][:, 1:]  # without the class token


def quadrant_labels(scene: Scene) -> list[list[int]]:
    """For each quadrant: colour, shape and size (0: nothing there) and the ground."""
    there = {thing.place: thing for thing in scene.things}
    ground = list(GROUNDS).index(scene.ground)
    rows = []
    for place in PLACES:
        if place not in there:
            rows.append([0, 0, 0, ground])
            continue
        thing = there[place]
        words = ((COLOURS, thing.colour), (SHAPES, thing.shape), (SIZES, thing.size))
        rows.append([*(1 + list(all_).index(word) for all_, word in words), ground])
    return rows


def told(scene: Scene) -> list[str]:
    """For each quadrant the words for what is there."""
    there = {thing.place: thing for thing in scene.things}
    return [
        f"{there[place].size} {there[place].colour} {there[place].shape} {place}"
        if place in there
        else f"{scene.ground} background {place}"
        for place in PLACES
    ]
