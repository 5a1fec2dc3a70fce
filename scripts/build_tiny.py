"""Build the built-in base `tiny` from nothing: tokenizer, weights, processor.

    python scripts/build_tiny.py                  # the shipped weights, about 1.5 h on 2 cores
    python scripts/build_tiny.py --steps 20 20 20 20 --out /tmp/tiny

The same classes as LLaVA-1.5 at toy size, and taught in the same order: the language model learns
to recall and to read by itself, the vision tower learns to see by itself, then both together learn
to talk about pictures. Same steps, seed, threads and library versions give the same bytes. Rebuild
rarely: every version stays in the repository's history.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlmoe.data.prompt import IMAGE, chat
from vlmoe.data.scenes import (
    CANVAS,
    COLOURS,
    GROUNDS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    random_scene,
    render,
)
from vlmoe.models.tiny.lessons import (
    Lesson,
    choice_drill,
    line_drill,
    picture_lesson,
    sample_text,
    talk_drill,
    text_lesson,
    word_drill,
)

PATCH = 8
WIDTH = 128
MEAN = [0.5, 0.5, 0.5]
STD = [0.25, 0.25, 0.25]
IGNORED = -100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_out = Path(__file__).parents[1] / "vlmoe" / "models" / "tiny"
    parser.add_argument("--out", type=Path, default=default_out, help="directory to write")
    parser.add_argument(
        "--steps",
        type=int,
        nargs=4,
        default=[3000, 6000, 1500, 5000],
        metavar=("RECALL", "READ", "SEE", "TALK"),
        help="optimizer steps of the four stages (default 3000 6000 1500 5000)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--stages", type=Path, help="keep finished stages here, and do not do them again"
    )
    args = parser.parse_args()

    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    processor = build_processor()
    model = build_model(processor.tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    classroom = Classroom(processor.tokenizer)
    for name, stage, steps in zip(
        ("recall", "read", "see", "talk"),
        (Recalling, Reading, Seeing, Talking),
        args.steps,
        strict=True,
    ):
        kept = args.stages / f"{name}.safetensors" if args.stages else None
        if kept and kept.exists():
            model.load_state_dict(load_file(kept))
            continue
        # Each stage has randomness of its own: one that is kept, or changed, moves no other.
        torch.manual_seed(args.seed)
        rng = random.Random(f"{args.seed}/{name}")
        learn(stage(model, classroom, rng, steps))
        if kept:
            save_file(model.state_dict(), kept)
    save(model, processor, args.out)


def build_tokenizer() -> LlamaTokenizer:
    """A Llama tokenizer (byte-pair merges, byte fallback) of the words the base is taught in."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learner = Tokenizer(models.BPE())
    # Merges stay inside words, so that a letter or a full stop is always a token of its own.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Punctuation(),
        ]
    )
    printable = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=1400,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=printable,
        show_progress=False,
    )
    always = [" USER: ASSISTANT: A B C D E F G H I J", "USER:"] * 2  # the letters and the roles
    learner.train_from_iterator([*always, *sample_text()], trainer)
    learned = json.loads(learner.to_str())["model"]
    tokenizer = LlamaTokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        pad_token="<pad>",
        extra_special_tokens={"image_token": IMAGE},
    )
    tokenizer.model_max_length = 1024
    return tokenizer


def build_processor() -> LlavaProcessor:
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": CANVAS},
        crop_size={"height": CANVAS, "width": CANVAS},
        image_mean=MEAN,
        image_std=STD,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def build_model(tokenizer: LlamaTokenizer) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=CANVAS,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.08,  # the usual 0.02 suits wider layers; here attention starts flat
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_id(tokenizer),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    positions = model.model.vision_tower.embeddings.position_embedding.weight
    with torch.no_grad():  # row 0 is the class token's
        positions[1:] = sine_positions(CANVAS // PATCH, WIDTH)
        for layer in model.model.language_model.layers:
            # Heads that look for the same word again, from the start (mimetic initialization,
            # arXiv 2305.09828): options need them, and they are slow to form by themselves.
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
            layer.self_attn.o_proj.weight.copy_(layer.self_attn.v_proj.weight.T)
    return model


def sine_positions(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of both coordinates (side * side, width), to start the vision tower from.

    Small random positions drown in the patches: "where" is then learned long after "what".
    """
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (row, column)]
    waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    return 0.2 * torch.cat(waves, dim=1)


def image_id(tokenizer: LlamaTokenizer) -> int:
    return tokenizer.get_vocab()[IMAGE]


class Classroom:
    """Turns lessons into batches: right-padded tokens, labels on the assistant's words only."""

    def __init__(self, tokenizer: LlamaTokenizer):
        self.tokenizer = tokenizer
        self.image_id = image_id(tokenizer)
        self.known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        if text not in self.known:
            if len(self.known) > 200_000:
                self.known.clear()
            self.known[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.known[text]

    def encode(self, lesson: Lesson) -> tuple[list[int], list[int]]:
        tokens = [self.tokenizer.bos_token_id]
        labels = [IGNORED]
        if lesson.plain:
            for text, reply in lesson.turns:
                given, said = self.ids(text), self.ids(reply) if reply else []
                tokens += given + said
                labels += [IGNORED] * len(given) + said
            return tokens, labels
        for turn, (user, reply) in enumerate(lesson.turns):
            asked = self.ids(chat(user, picture=turn == 0 and lesson.scene is not None))
            if turn > 0:  # as it is read behind the end of the turn before: no leading space
                asked = self.ids(self.tokenizer.eos_token + chat(user, picture=False))[1:]
            said = [*self.ids(reply), self.tokenizer.eos_token_id]
            tokens += asked + said
            labels += [IGNORED] * len(asked) + said
        return tokens, labels

    def batch(self, lessons: list[Lesson]) -> dict[str, torch.Tensor]:
        rows = [self.encode(lesson) for lesson in lessons]
        scenes = [lesson.scene for lesson in lessons if lesson.scene is not None]
        if scenes:  # one <image> becomes one token per patch
            patches = (CANVAS // PATCH) ** 2
            rows = [self.expand(tokens, labels, patches) for tokens, labels in rows]
        width = max(len(tokens) for tokens, _ in rows)
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), IGNORED)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for row, (tokens, targets) in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, : len(tokens)] = torch.tensor(targets)
            mask[row, : len(tokens)] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if scenes:
            batch["pixel_values"] = pixels_of(scenes)
        return batch

    def expand(self, tokens: list[int], labels: list[int], patches: int):
        at = tokens.index(self.image_id)
        tokens = tokens[:at] + [self.image_id] * patches + tokens[at + 1 :]
        return tokens, labels[:at] + [IGNORED] * patches + labels[at + 1 :]


def answer_loss(model: LlavaForConditionalGeneration, batch: dict[str, torch.Tensor]):
    """Cross-entropy and accuracy on the assistant's tokens; other positions get no logits."""
    labels = batch.pop("labels")
    hidden = model.model(**batch).last_hidden_state[:, :-1]
    target = labels[:, 1:]
    chosen = target != IGNORED
    logits = model.lm_head(hidden[chosen])
    right = (logits.argmax(-1) == target[chosen]).float().mean()
    return cross_entropy(logits, target[chosen]), right


class Stage:
    """A loss over the model, made of lessons that ``rng`` draws."""

    lr: float

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        classroom: Classroom,
        rng: random.Random,
        steps: int,
    ):
        self.model, self.classroom, self.rng, self.steps = model, classroom, rng, steps

    def lessons(self, make: Callable[[random.Random], Lesson], count: int):
        """Loss and share of right answer tokens on so many lessons of one kind."""
        return answer_loss(self.model, self.classroom.batch([make(self.rng) for _ in range(count)]))

    def parameters(self) -> list[torch.nn.Parameter]:
        raise NotImplementedError

    def __call__(self) -> tuple[torch.Tensor, str]:
        """The loss of one step, and what to print of it."""
        raise NotImplementedError


class Recalling(Stage):
    """Stage one: lettered lists, and which letter a text had."""

    lr = 1e-3

    def parameters(self) -> list[torch.nn.Parameter]:
        return [*self.model.model.language_model.parameters(), *self.model.lm_head.parameters()]

    def __call__(self) -> tuple[torch.Tensor, str]:
        loss, right = self.lessons(word_drill, 32)
        return loss, f"letters {right:.3f}"


class Reading(Recalling):
    """Stage two: recall in longer forms; facts, and scenes told in words; options about these."""

    def __call__(self) -> tuple[torch.Tensor, str]:
        drills = ((word_drill, 4), (line_drill, 4), (talk_drill, 6), (choice_drill, 10))
        return self.read(*drills, (text_lesson, 6))

    def read(self, *kinds) -> tuple[torch.Tensor, str]:
        losses, report = [], []
        for make, count in kinds:
            loss, right = self.lessons(make, count)
            losses.append(loss)
            report.append(f"{make.__name__} {loss:.3f} {right:.3f}")
        return torch.stack(losses).sum(), " ".join(report)


class Seeing(Stage):
    """Stage three: every patch says what lies in its quadrant, and keeps its own colours.

    This stands in for CLIP's own training. The heads that read the answers off are thrown away.
    """

    lr = 1e-3

    pictures = 64  # in a step

    def __init__(self, model, classroom: Classroom, rng: random.Random, steps: int) -> None:
        super().__init__(model, classroom, rng, steps)
        self.tower = self.model.model.vision_tower
        self.scenes = [random_scene(self.rng) for _ in range(min(12_000, steps * self.pictures))]
        self.pixels = pixels_of(self.scenes)
        self.labels = torch.tensor([quadrant_labels(scene) for scene in self.scenes])
        classes = [len(words) for words in (COLOURS, SHAPES, SIZES)]
        self.heads = torch.nn.ModuleList(torch.nn.Linear(WIDTH, count + 1) for count in classes)
        self.ground = torch.nn.Linear(WIDTH, len(GROUNDS))
        self.colours = torch.nn.Linear(WIDTH, 3 * 4 * 4)

    def parameters(self) -> list[torch.nn.Parameter]:
        heads = [self.heads, self.ground, self.colours]
        return [p for module in (self.tower, *heads) for p in module.parameters()]

    def __call__(self) -> tuple[torch.Tensor, str]:
        rows = self.rng.sample(range(len(self.scenes)), self.pictures)
        pixels = self.pixels[rows]
        hidden = self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        side = CANVAS // PATCH
        grid = torch.arange(side * side)
        quadrant = (grid // side >= side // 2) * 2 + (grid % side >= side // 2)
        labels = self.labels[rows]
        loss = cross_entropy(
            self.ground(hidden).flatten(0, 1), labels[:, :1, 3].expand(-1, side * side).flatten()
        )
        right = []
        for kind, head in enumerate(self.heads):
            logits, target = head(hidden).flatten(0, 1), labels[:, quadrant, kind].flatten()
            loss = loss + cross_entropy(logits, target)
            right.append((logits.argmax(-1) == target).float().mean())
        small = torch.nn.functional.avg_pool2d(pixels, PATCH // 4)
        own = small.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
        loss = loss + 0.5 * torch.nn.functional.mse_loss(self.colours(hidden), own.flatten(2))
        return loss, "colour {:.3f} shape {:.3f} size {:.3f}".format(*right)


class Talking(Reading):
    """Stage four: pictures with captions and open questions, and text as before."""

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.model.parameters())

    def __call__(self) -> tuple[torch.Tensor, str]:
        return self.read((picture_lesson, 16), (text_lesson, 5), (choice_drill, 2))


def pixels_of(scenes: list[Scene]) -> torch.Tensor:
    """Rendered and normalised as the processor does it: (scenes, 3, CANVAS, CANVAS)."""
    pixels = np.stack([np.asarray(render(scene), np.float32) for scene in scenes])
    return torch.from_numpy(((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2)).float()


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


def learn(stage: Stage) -> None:
    """Run one stage: AdamW, a short warm-up, cosine decay."""
    stage.model.train()
    optimizer = torch.optim.AdamW(stage.parameters(), lr=stage.lr, betas=(0.9, 0.98))
    steps = stage.steps
    warmup = min(200, steps // 10 + 1)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start = time.time()
    for step in tqdm(range(1, steps + 1), desc=type(stage).__name__, disable=None):
        loss, report = stage()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(stage.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step in (1, steps):
            passed = time.time() - start
            name = type(stage).__name__
            print(f"{name} {step} {passed:.0f}s loss {loss:.3f} {report}", flush=True)


def save(model, processor, out: Path) -> None:
    """Half precision halves the package; the loader returns to float32."""
    half = {name: value.half() for name, value in model.state_dict().items()}
    model.save_pretrained(out, state_dict=half)
    processor.save_pretrained(out)
    print(f"saved to {out}")


if __name__ == "__main__":
    main()
