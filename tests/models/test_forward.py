"""Questions that share a picture's tokens: loss, gradients and logits of each one alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch
from PIL import Image
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    Gemma3TextConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.models_for_tests import llava_text, save_small_llava, small_llava
from tests.reference import reference_answer_loss
from vlmoe.adapter import RoutingRecorder
from vlmoe.data.example import Example
from vlmoe.data.turn import PICTURE, Turn
from vlmoe.errors import UserError
from vlmoe.models import flex
from vlmoe.models.causal import check_logits, longest, sharing_fault, tree_mask
from vlmoe.models.flex import FLEX
from vlmoe.models.forward import logits_at, use_attention
from vlmoe.models.load import Base, load_base, load_reader
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.prompt import LLAVA, PROMPTS, PromptStyle
from vlmoe.train.loop import answer_loss
from vlmoe.train.settings.config import TrainConfig
from vlmoe.train.setup import adapt

GROUPS = (1, 2, 5, 7)
WORDS = ("Which", "What", "Where", "is", "it", "red", "at", "the", "left", "of", "blue", "ring")


def groups(sizes: tuple[int, ...] = GROUPS, seed: int = 0) -> list[Example]:
    """Questions of many lengths about pictures, and about none; siblings do not stand together."""
    rng = random.Random(seed)
    made = []
    for size in sizes:
        colours = tuple(rng.randrange(256) for _ in range(3))
        picture = Image.new("RGB", (40, 30), colours)
        picture.paste((255, 255, 255), (5, 5, 5 + size, 9))
        # As a dataset gives it: decoded anew for every question.
        made += [(picture.copy(), rng.randrange(2, 12)) for _ in range(size)]
    made += [(None, 3), (None, 7)]
    rng.shuffle(made)
    return [
        Example(
            str(at),
            picture,
            " ".join(rng.choice(WORDS) for _ in range(words)) + "?",
            tuple(rng.sample(("Red.", "A blue ring.", "At the left.", "No."), 2 + at % 3)),
            rng.randrange(2),
        )
        for at, (picture, words) in enumerate(made)
    ]


def texts(examples: list[Example], style: PromptStyle) -> list[tuple]:
    return [
        (
            example.image,
            llava_text(style, example, picture=example.image is not None),
            " " + style.answer(example.letter) + "</s>",
        )
        for example in examples
    ]


@dataclass
class Made:
    base: Base
    model: torch.nn.Module
    collator: Collator

    def gradients(self, loss: torch.Tensor, but: str = "none") -> dict[str, torch.Tensor]:
        """Of all that trains; ``but`` is in the names of those that the loss does not reach."""
        self.model.zero_grad()
        loss.backward()
        found = {
            name: parameter.grad
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        assert [n for n, grad in found.items() if grad is None] == [n for n in found if but in n]
        return {name: grad.clone() for name, grad in found.items() if grad is not None}


def in_float64(model: torch.nn.Module) -> None:
    """All of it: transformers' Llama norm works in float32 whatever the model is in.

    Its gradients would be rounded for each question alone, and shared ones after adding them up.
    """
    model.double()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):

            def norm(x, module=module):
                mean = x.pow(2).mean(-1, keepdim=True)
                return module.weight * x * torch.rsqrt(mean + module.variance_epsilon)

            module.forward = norm


def make(folder, *, checkpointing=False, quantize="none", dtype=torch.float64, **settings) -> Made:
    base = load_base(str(save_small_llava(folder / "model")), quantize=quantize)
    defaults = {"experts": 4, "top_k": 2, "rank": 2, "dropout": 0.0}
    config = TrainConfig(
        model=base.name, gradient_checkpointing=checkpointing, **(defaults | settings)
    )
    torch.manual_seed(0)
    model = adapt(base.model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "moe_lora_B" in name:
                parameter.normal_(std=0.05)
            if "moe_lora_gate" in name:
                parameter.mul_(3)
    if dtype == torch.float64:
        in_float64(model)
    model.train()
    return Made(base, model, Collator.of(base.reader, prompt=settings.get("prompt", "llava")))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("prompt", ["llava", "paper"])
def test_loss_and_gradients_are_those_of_each_question_alone(tmp_path, prompt, checkpointing):
    made = make(tmp_path, prompt=prompt, checkpointing=checkpointing)
    asked = groups()
    batch = made.collator.training(asked)
    assert batch["pixel_values"].shape[0] == len(GROUPS)
    assert batch["picture_uses"].sum() == sum(GROUPS)
    loss = answer_loss(made.model, batch)
    found = made.gradients(loss)
    # One sequence after the other, without checkpoints.
    for module in made.base.model.modules():
        module.gradient_checkpointing = False
    rows = texts(asked, PROMPTS[prompt])
    wanted_loss = reference_answer_loss(made.base.model, made.base.reader.processor, rows)
    wanted = made.gradients(wanted_loss)
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-12, atol=0)
    towers = {"vision_tower" in name for name in wanted}
    assert towers == {True, False}
    for name, gradient in wanted.items():
        assert gradient.any(), name
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14)


def test_in_float32(tmp_path):
    made = make(tmp_path, dtype=torch.float32)
    asked = groups()
    loss = answer_loss(made.model, made.collator.training(asked))
    found = made.gradients(loss)
    rows = texts(asked, LLAVA)
    wanted_loss = reference_answer_loss(made.base.model, made.base.reader.processor, rows)
    wanted = made.gradients(wanted_loss)
    assert float(loss.detach()) == pytest.approx(float(wanted_loss.detach()), rel=1e-6)
    for name, gradient in wanted.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_over_a_quantized_base(tmp_path, quantize):
    pytest.importorskip("bitsandbytes")
    made = make(tmp_path, quantize=quantize, dtype=torch.float32)
    asked = groups((1, 3))
    shared = answer_loss(made.model, made.collator.training(asked))
    found = made.gradients(shared)
    alone = reference_answer_loss(made.base.model, made.base.reader.processor, texts(asked, LLAVA))
    wanted = made.gradients(alone)
    # 8 bit rounds activations as well, and a bit of noise can fall to either side.
    tolerance = {"4bit": 1e-4, "8bit": 2e-2}[quantize]
    assert float(shared.detach()) == pytest.approx(float(alone.detach()), rel=tolerance)
    for name, gradient in wanted.items():
        assert gradient.any(), name
        off = (found[name] - gradient).norm() / gradient.norm()
        assert off < 10 * tolerance, name


@pytest.mark.parametrize("rows", [100, 150, 400])
def test_the_budget_and_the_way_without_sharing_change_nothing(tmp_path, rows):
    made = make(tmp_path)
    asked = groups()
    shared = made.collator.training(asked)
    loss = answer_loss(made.model, shared)
    for collator in (
        replace(made.collator, row_tokens=rows),
        replace(made.collator, sharing_fault="as a test has it"),
    ):
        batch = collator.training(asked)
        torch.testing.assert_close(answer_loss(made.model, batch), loss, rtol=1e-12, atol=0)
        assert len(batch["pixel_values"]) == len(GROUPS)  # each still once
    assert batch["input_ids"].shape[0] == len(asked)
    assert batch["attention_mask"].sum() > 1.25 * shared["attention_mask"].sum()


def test_balance_and_statistics_are_those_of_each_question_alone(tmp_path):
    """A token that questions share counts as often as they use it."""
    made = make(tmp_path, experts=[3, 5])
    recorder = RoutingRecorder(made.model)
    asked = groups()
    found = []
    for collator in (made.collator, replace(made.collator, sharing_fault="as a test has it")):
        batch = collator.training(asked)
        with recorder.record(batch["uses"], batch["picture_uses"]) as recording:
            answer_loss(made.model, batch)
        balance = recording.balance_loss()
        recorder.count(recording)
        gradients = made.gradients(
            balance, but="language_model.layers.1.self_attn.o_proj.moe_lora_B"
        )
        found.append((balance, gradients, recorder.read()))
    # And by hand: every question with its picture, through both towers.
    for example in asked:
        if example.image is not None:
            prompt = f"{llava_text(LLAVA, example, picture=True)} {example.letter}</s>"
            inputs = made.base.reader.processor(
                images=example.image, text=prompt, return_tensors="pt"
            )
            with recorder.record(inputs["attention_mask"]) as recording:
                made.model(**inputs)
            recorder.count(recording)
    (shared, gradients, table), (alone, wanted, wanted_table) = found
    torch.testing.assert_close(shared, alone, rtol=1e-12, atol=0)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-13, msg=name)
    for one, two in zip(table, wanted_table, strict=True):
        assert one.tokens == two.tokens
        assert one.share == pytest.approx(two.share, abs=1e-12)
        assert one.gate == pytest.approx(two.gate, abs=1e-12)
    for one, two in zip(table, recorder.read(), strict=True):
        if one.tower == "vision":
            assert one.tokens == two.tokens == sum(GROUPS) * 17
            assert one.share == pytest.approx(two.share, abs=1e-12)


def test_the_vision_tower_sees_each_picture_once(tmp_path):
    made = make(tmp_path)
    seen = []
    made.base.model.model.vision_tower.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs.get("pixel_values", *args))),
        with_kwargs=True,
    )
    asked = groups()
    for collator in (made.collator, replace(made.collator, sharing_fault="as a test has it")):
        seen.clear()
        logits_at(made.model, collator.scoring(asked))
        assert seen == [len(GROUPS)]


def test_only_the_logits_that_are_read_are_made(tmp_path):
    made = make(tmp_path)
    sizes = []
    made.base.model.lm_head.register_forward_hook(
        lambda module, args, out: sizes.append(out.shape[:-1])
    )
    asked = groups()
    answer_loss(made.model, made.collator.training(asked))
    logits_at(made.model, made.collator.scoring(asked))
    assert sizes == [(len(asked), len(made.collator.answer)), (len(asked),)]


@pytest.mark.parametrize("attention", ["eager", FLEX])
def test_other_attentions(tmp_path, attention, monkeypatch):
    """FlexAttention has no backward pass on the CPU; its mask can be held to SDPA's there."""
    # Traced as on a GPU and run as plain PyTorch: the code made for a CPU is not for all sizes.
    plain = torch.compile(flex_attention, backend="eager", dynamic=True, fullgraph=True)
    monkeypatch.setattr(flex, "compiled", lambda: plain)
    made = make(tmp_path, dtype=torch.float32)
    batch = made.collator.scoring(groups())
    with torch.no_grad():
        wanted = logits_at(made.model, batch)
        made.base.model.model.language_model.set_attn_implementation(attention)
        found = logits_at(made.model, batch)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 512}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        MistralConfig(**TEXT, sliding_window=None), MistralConfig(**TEXT, sliding_window=9),
        Qwen2Config(**TEXT), Qwen2Config(**TEXT, use_sliding_window=True, sliding_window=9,
                                         max_window_layers=1),
    ],
    ids=["mistral", "mistral-window", "qwen2", "qwen2-window"],
)  # fmt: skip
def test_language_models_that_are_let_through(tmp_path, text):
    """Each question of a picture has the logits of a sequence of its own."""
    tiny = load_reader("tiny")
    config = small_llava(image_size=64, patch_size=16).config
    config.text_config = text.__class__(**{**text.to_dict(), "vocab_size": 1067})
    config.image_token_index = config.image_token_id = 1066
    assert sharing_fault(config) is None
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval().double()
    asked = groups((3, 1))
    for fault in (None, "as a test has it"):
        reader = replace(tiny, config=model.config, image_tokens=16)
        collator = replace(Collator.of(reader), sharing_fault=fault)
        with torch.no_grad():
            logits = logits_at(model, collator.scoring(asked))
        if fault is None:
            shared = logits
    torch.testing.assert_close(shared, logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (Qwen2Config(**TEXT, layer_types=["full_attention", "chunked_attention"]),
         "layers of chunked_attention"),
        (MistralConfig(**TEXT, sliding_window=None, is_causal=False), "tokens that come after"),
        (MistralConfig(**TEXT, sliding_window=None, rope_parameters={
            "rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), "longest sequence"),
        (MistralConfig(**TEXT, sliding_window=None, attn_implementation="flash_attention_2"),
         "flash_attention_2 takes no mask"),
    ],
    ids=["chunked", "bidirectional", "dynamic positions", "flash"],
)  # fmt: skip
def test_models_in_which_it_is_not_exact_are_named(text, fault):
    config = small_llava().config
    config.text_config = text
    assert fault in sharing_fault(config)


def test_lengths_at_which_positions_would_change_for_a_whole_batch_are_too_long():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8,
            "long_factor": [3.0] * 8, "original_max_position_embeddings": 24}  # fmt: skip
    special = {"pad_token_id": 0, "original_max_position_embeddings": 24}
    assert longest(Phi3Config(**TEXT, **special, rope_parameters=rope)) == 24
    assert longest(Phi3Config(**TEXT, pad_token_id=0)) == TEXT["max_position_embeddings"]
    assert longest(Gemma3TextConfig(**TEXT)) == TEXT["max_position_embeddings"]


def test_logits_that_the_head_alone_does_not_make_are_refused():
    check_logits(Gemma3TextConfig(**TEXT))
    with pytest.raises(UserError, match="bends its logits"):
        check_logits(Gemma3TextConfig(**TEXT, final_logit_softcapping=30.0))


def test_a_picture_behind_the_question_is_shared_by_none(tmp_path):
    """What differs comes first; each question still gets its own picture and its own logits."""
    made = make(tmp_path)
    behind = PromptStyle("behind", "{question}\n{options}")
    object.__setattr__(behind, "turn", lambda example, picture: Turn(
        behind.ask(example.question, example.choices) + (PICTURE if picture else "")))  # fmt: skip
    asked = groups((3, 2))
    logits = [
        logits_at(
            made.model, replace(made.collator, style=behind, sharing_fault=fault).scoring(asked)
        )
        for fault in (None, "as a test has it")
    ]
    torch.testing.assert_close(*logits, rtol=1e-10, atol=1e-10)


def test_other_models_are_named():
    from transformers import GPTNeoXConfig

    config = small_llava().config
    config.text_config = GPTNeoXConfig()
    assert "type gpt_neox" in sharing_fault(config)


def test_a_model_that_must_not_share_gets_a_row_for_each_question(tmp_path):
    base = load_base(str(save_small_llava(tmp_path / "model")))
    base.model.config.text_config.is_causal = False
    collator = Collator.of(base.reader)
    assert "tokens that come after" in collator.sharing_fault
    batch = collator.training(groups((3,)))
    assert batch["input_ids"].shape[0] == 5
    assert "seen_until" not in batch


def test_attention_by_name(tmp_path):
    base = load_base("tiny")
    use_attention(base.model, "sdpa")
    with pytest.raises(UserError, match="flex needs a CUDA device, and the model is on cpu"):
        use_attention(base.model, "flex")
    with pytest.raises(UserError, match="unknown attention 'fast'"):
        use_attention(base.model, "fast")


@pytest.mark.parametrize("window", [None, 2])
def test_block_mask_of_flex_attention_is_the_same(window):
    seen_until = torch.tensor([[6, 3, 3, 6, 6, 6, 7], [2, 2, 5, 5, 5, 6, 7]])
    along = window, torch.tensor([[0, 1, 2, 1, 2, 3, 0], [0, 1, 0, 1, 2, 0, 0]])
    blocks = tree_mask(seen_until, FLEX, torch.float32, *along)
    dense = tree_mask(seen_until, "sdpa", torch.float32, *along)[:, 0] == 0
    assert bool(dense[0, 4, 0]) == (window is None)  # two steps away, though
    assert bool(dense[0, 3, 0])  # a step away, with others between them
    for row in range(2):
        for t in range(7):
            for s in range(7):
                sees = blocks.mask_mod(*map(torch.tensor, (row, 0, t, s)))
                assert bool(sees) == bool(dense[row, t, s])
