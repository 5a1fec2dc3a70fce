"""What every family promises, on a small random model of the exact class, saved and loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from tests.models_for_tests import (
    CHATML,
    QWEN_WINDOW,
    TEXT_KINDS,
    save_small_llava,
    save_small_siglip_llava,
    save_small_text,
)
from tests.vision_models_for_tests import KINDS, save_small_vision
from vlmoe.adapter import MoELoraConfig, RoutingRecorder, load_adapter
from vlmoe.adapter.layer import adapted_layers
from vlmoe.adapter.sites import find_sites
from vlmoe.adapter.targets import target_pattern
from vlmoe.adapter.towers import block_of, path_tower, unread_layers
from vlmoe.choices import TARGETS
from vlmoe.data.example import Example
from vlmoe.data.turn import Turn
from vlmoe.errors import UserError
from vlmoe.models.decode import ROWS_AT, begin, keeps_all, only
from vlmoe.models.family import FAMILIES, Family, Reader, family_of
from vlmoe.models.forward import followed_by, following, logits_at, next_logits
from vlmoe.models.load import checkpoint_activations, load_base
from vlmoe.models.random import random_batch
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.predict import Predictor
from vlmoe.tasks.readings import make_predictor
from vlmoe.tasks.score import score
from vlmoe.train import ranks
from vlmoe.train.imagined import imagined
from vlmoe.train.loop import answer_loss
from vlmoe.train.memory import piece_peak, random_piece
from vlmoe.train.settings.config import TrainConfig
from vlmoe.train.setup import adapt

ROOT = Path(__file__).parents[2]
BASES: dict[str, Callable[[Path], Path]] = {
    "llava": save_small_llava,
    "llava-siglip": save_small_siglip_llava,
    **{kind: lambda folder, kind=kind: save_small_text(folder, kind) for kind in TEXT_KINDS},
    "mistral-window": lambda folder: save_small_text(folder, "mistral", sliding_window=8),
    "qwen2-window": lambda folder: save_small_text(folder, "qwen2", **QWEN_WINDOW),
    **{kind: lambda folder, kind=kind: save_small_vision(folder, kind) for kind in KINDS},
    "llava_next-plain": lambda folder: save_small_vision(folder, "llava_next", template=False),
    "llama-chat": lambda folder: save_small_text(folder, "llama", CHATML),
}


@pytest.fixture(scope="module", params=BASES)
def folder(request, tmp_path_factory):
    return BASES[request.param](tmp_path_factory.mktemp("families") / request.param)


@pytest.fixture(scope="module")
def base(folder):
    return load_base(str(folder))


OF_PICTURES = ("pixel_values", "image_sizes", "pixel_attention_mask", "image_grid_thw")
TYPES = {"gemma3": "token_type_ids", "qwen2_5_vl": "mm_token_type_ids",
         "qwen3_vl": "mm_token_type_ids"}  # fmt: skip
"""By what the stock forward pass is told which tokens are a picture's."""


def questions(base, count: int = 3) -> list[Example]:
    """Some about two pictures of two sizes where the base sees; without one, orders of one."""
    pictures: list[Image.Image | None] = [None]
    if family_of(base.model.config).sees:
        pictures = [Image.new("RGB", (40, 20), "red"), Image.new("RGB", (30, 50), "blue"), None]
    return [
        Example(
            f"{at}-{number}",
            picture,
            "What colour is the ring?" + " Which?" * number * (picture is not None),
            ("Red.", "A blue star.", "Green.", "No.")[number : number + 2 + number % 2],
            number % 2,
        )
        for at, picture in enumerate(pictures)
        for number in range(max(1, count - (at == 1)))  # unequally many about the two
    ]


def test_members_are_few():
    for protocol in (Family, Reader):
        members = {name for name in vars(protocol) if not name.startswith("_")}
        assert len(members | set(protocol.__annotations__)) <= 9


@pytest.mark.parametrize("prompt", ["llava", "paper"])
def test_loss_is_transformers_own(base, prompt):
    """Each question alone through the stock forward pass, its answer behind it."""
    collator = Collator.of(base.reader, prompt=prompt)
    expected = 0.0
    for example in questions(base):
        alone = collator.training([example])
        # As a user of transformers has it: no position, no mask of ours.
        inputs = {name: alone[name] for name in ("input_ids", *OF_PICTURES) if name in alone}
        kind = base.model.config.model_type
        if kind in TYPES and "pixel_values" in alone:
            inputs[TYPES[kind]] = (alone["input_ids"] == base.reader.image_token).long()
        logits = base.model(**inputs).logits[0]
        expected += cross_entropy(logits[alone["read_at"][0]], alone["labels"][0], reduction="sum")
    batch = collator.training(questions(base))
    torch.testing.assert_close(answer_loss(base.model, batch), expected, rtol=1e-5, atol=1e-5)


def test_answers_are_what_the_conversation_says(base):
    for prompt, words in (("llava", "B"), ("paper", "The answer is B.")):
        collator = Collator.of(base.reader, prompt=prompt)
        turns = [collator.style.turn(questions(base)[-1], picture=False)]
        asked, answered = (base.reader.render(turns, answer=answer) for answer in (None, words))
        assert answered == [*asked, *collator.answer(1)]
        assert answered[-1] in base.reader.ends
        assert sum(token in base.reader.ends for token in answered[len(asked) :]) == 1
        said = base.reader.tokenizer.decode(answered[len(asked) : -1])
        assert said.replace(" ", "") == words.replace(" ", "")  # Qwen's class takes spaces away
        tokenizer = base.reader.tokenizer
        begun = (
            bool(tokenizer.chat_template) or tokenizer.bos_token_id in tokenizer("a")["input_ids"]
        )
        assert answered.count(tokenizer.bos_token_id) == begun


def test_shared_is_alone_with_every_gradient(base):
    config = TrainConfig(model=base.name, experts=3, top_k=2, rank=2, dropout=0.0)
    torch.manual_seed(0)
    model = adapt(base.model, config)
    try:
        for name, parameter in model.named_parameters():
            if "moe_lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        collator = Collator.of(base.reader)
        assert collator.sharing_fault is None
        gradients, losses, tables = [], [], []
        recorder = RoutingRecorder(model)
        for fault in (None, "as a test has it"):
            if fault:  # and, on the way, that computing activations twice changes nothing
                checkpoint_activations(base.model)
                model.train()
            batch = replace(collator, sharing_fault=fault).training(questions(base))
            assert ("seen_until" in batch) == (fault is None)
            model.zero_grad()
            with recorder.record(batch["uses"], batch.get("picture_uses")) as recording:
                losses.append(answer_loss(model, batch))
            recorder.count(recording)
            tables.append(recorder.read())
            losses[-1].backward()
            gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients[0].items():
            assert gradient is not None, name
            torch.testing.assert_close(gradient, gradients[1][name], rtol=2e-5, atol=2e-5)
        for example in questions(base):
            batch = collator.training([example])
            with torch.no_grad(), recorder.record(batch["uses"]) as recording:
                answer_loss(model, batch)
            recorder.count(recording)
        # Each token as often as questions use it.
        for one, two, alone in zip(*tables, recorder.read(), strict=True):
            assert one.tokens == two.tokens == alone.tokens
            for other in (two, alone):
                assert one.share == pytest.approx(other.share, abs=2 / one.tokens)
        towers = {path_tower(name) for name in gradients[0]}
        assert ("vision" in towers) == family_of(base.model.config).sees
    finally:
        checkpoint_activations(base.model, on=False)
        model.unload().eval()


def test_the_words_for_layers(base):
    """Each names what the one before does and more, by a pattern, and nothing without gradient."""
    batch, found = Collator.of(base.reader).training(questions(base)), [set[str]()]
    for target in TARGETS:
        model = adapt(base.model, TrainConfig(experts=2, top_k=1, rank=1, target=target))
        try:
            sites = dict(adapted_layers(model))
            answer_loss(model, batch).backward()
            moved = {
                path for path, site in sites.items() if site.moe_lora_B["default"].weight.grad.any()
            }
            assert moved == sites.keys()
            pattern = model.peft_config["default"].target_modules
        finally:
            model.unload()
        found.append({path.removeprefix("base_model.model.") for path in sites})
        assert set(find_sites(base.model, pattern)) == found[-1]
        towers = {path_tower(path) for path in sites}
        assert towers >= ({"vision", "language"} if family_of(base.model.config).sees else set())
    none, attention, blocks, whole = found
    assert none < attention < blocks <= whole
    head = base.model.get_output_embeddings()
    unread = [f"{path}." for path in unread_layers(base.model)]
    assert whole == {
        path
        for path, module in base.model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
        if not any(f"{path}.".startswith(at) for at in unread)
    }


@pytest.mark.parametrize("scoring", ["letter", "option", "generate"])
def test_answers_do_not_depend_on_the_batch(base, scoring):
    predictor = make_predictor(scoring, base.model, Collator.of(base.reader), 4)
    asked = questions(base)
    found = [score(predictor, asked, batch_size=size) for size in (1, 3, len(asked))]
    for one, three, all_ in zip(*found, strict=True):
        assert one.prediction.choice == three.prediction.choice == all_.prediction.choice
        assert one.prediction.text == all_.prediction.text
        assert all_.prediction.probabilities == pytest.approx(
            one.prediction.probabilities, abs=1e-5
        )
        assert all_.prediction.scores == pytest.approx(one.prediction.scores, abs=1e-5)


def test_what_prompts_share_is_exact(base):
    """The first logits, and those behind another token, are of each prompt in a row of its own."""
    collator = Collator.of(base.reader)
    asked = questions(base)
    batches = [
        each.asking(asked, room=2)
        for each in (collator, replace(collator, sharing_fault="as a test has it"))
    ]
    exact = collator.sharing_fault is None and keeps_all(base.reader.config)
    assert [ROWS_AT in batch for batch in batches] == [exact, False]
    if exact and family_of(base.model.config).sees:
        assert len(batches[0]["input_ids"]) < len(asked)
    found = []
    with torch.inference_mode():
        for batch in batches:
            first, cache, rows = begin(base.model, batch)
            after = following(rows, first.argmax(-1)[:, None])
            second, _ = next_logits(base.model, after, cache)
            kept = torch.tensor([0, len(asked) - 1])
            fewer, cache = only(after, cache, kept)
            third, _ = next_logits(
                base.model, following(fewer, second[kept].argmax(-1)[:, None]), cache
            )
            found.append((first, second, third))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_visitors_who_stream_at_once_hear_what_generating_says(base):
    asked = questions(base, 1)
    predictor = make_predictor("generate", base.model, Collator.of(base.reader), 5)
    collator = predictor.collator
    streams = []
    for example in asked:
        turns = [collator.style.turn(example, picture=False)]
        streams.append(
            predictor.stream(collator.talking(example.image, turns, 5), max_new_tokens=5)
        )
    *_, last = zip_longest(*streams)
    ended = {id(stream): said for stream, said in zip(streams, last, strict=True)}
    texts = [prediction.text for prediction in predictor.choose_all(asked)]
    for at, example in enumerate(asked):
        turns = [collator.style.turn(example, picture=False)]
        *_, alone = predictor.stream(collator.talking(example.image, turns, 5), max_new_tokens=5)
        assert alone.text == texts[at]
        said = ended[id(streams[at])]
        assert said is None or said == alone


def test_the_next_token_is_that_of_the_whole_sequence(base):
    """With what was kept of the tokens before it, and without."""
    collator = Collator.of(base.reader)
    for example in questions(base, 1):
        batch = collator.talking(example.image, [Turn("Which colour?")], 5)
        cache, logits, more = None, [], torch.tensor([[7, 11, 13]])
        now = batch
        with torch.inference_mode():
            for token in more[0]:
                found, cache = next_logits(base.model, now, cache)
                logits.append(found)
                now = following(now, token.view(1, 1))
            whole = followed_by(batch, more)
            at = torch.arange(3) + batch["input_ids"].shape[1] - 1
            expected = logits_at(base.model, {**whole, "read_at": at})
        torch.testing.assert_close(torch.cat(logits), expected, rtol=1e-4, atol=2e-5)


def test_experts_of_a_question(base):
    """Of every token of both towers; on a map where a picture is seen."""
    torch.manual_seed(0)
    config = TrainConfig(model=base.name, experts=3, top_k=2, rank=2)
    model = adapt(base.model, config)
    try:
        collator = Collator.of(base.reader)
        image = questions(base)[0].image
        batch = collator.talking(image, [Turn("Which colour?")], 5)
        found = Predictor(model, collator).experts(batch, [7, 11])
        assert len(found.tokens) == batch["input_ids"].shape[1] + 2
        for layer in found.layers:
            if layer.tower == "language":
                assert len(layer.leading) == len(found.tokens)
            elif layer.tower == "vision":
                assert found.patches is not None
                assert len(found.leading(layer)) == found.patches.rows * found.patches.columns
        seen = found.tokens[found.picture.start : found.picture.stop]
        mark = base.reader.tokenizer.convert_ids_to_tokens(base.reader.image_token or 0)
        assert (mark in seen) == (image is not None)
    finally:
        model.unload()


def test_the_map_lays_each_token_where_it_looks(base):
    """A pixel that changes changes one patch of the picture, and the token that is laid there."""
    if not family_of(base.model.config).sees:
        assert base.reader.patches({}) is None
        return
    image = Image.effect_noise((90, 60), 80).convert("RGB")
    batch = Collator.of(base.reader).training([Example("1", image, "Which?", ("A.", "B."), 0)])
    first = find_sites(base.model, target_pattern(base.model, MoELoraConfig()))
    layer = next(site for path, site in first.items() if path_tower(path) == "vision")
    entered: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: entered.append(args[0].flatten(0, -2)))
    plain = base.reader.patches(batch)
    pixels, found = batch["pixel_values"], 0
    torch.manual_seed(0)
    try:
        logits_at(base.model, batch)
        for at in torch.randint(pixels.numel(), (60,)).tolist():
            other = pixels.flatten().clone()
            other[at] = -other[at] + 0.5
            changed = {**batch, "pixel_values": other.view(pixels.shape)}
            seen = base.reader.patches(changed)
            before, after = (
                torch.tensor(np.array(one.seen)).flatten(0, 1) for one in (plain, seen)
            )
            (places,) = (before != after).any(-1).nonzero(as_tuple=True)
            if not len(places):  # of a tile, or of another moment
                continue
            row, column = divmod(int(places[0]), plain.seen.width)
            side = plain.seen.height // plain.rows
            cell = row // side * plain.columns + column // side
            logits_at(base.model, changed)
            moved = (entered[-1] != entered[0]).any(-1).nonzero().flatten().tolist()
            assert moved == [plain.tokens[cell]]
            found += 1
            if found == 4:
                break
    finally:
        hook.remove()
    assert found == 4
    assert len(set(plain.tokens)) == plain.rows * plain.columns


def test_the_layers_to_shard_are_those_of_its_towers(base):
    names = set(ranks.layers_to_shard(base.model))
    attention = target_pattern(base.model, MoELoraConfig())
    blocks = {block_of(path) for path in find_sites(base.model, attention)}
    assert names >= {type(base.model.get_submodule(path)).__name__ for path in blocks}
    assert ranks.layers_to_shard(base.model, sorted(names)[:1]) == sorted(names)[:1]
    with pytest.raises(UserError, match="names GPT2Block, which the model has not"):
        ranks.layers_to_shard(base.model, ["GPT2Block"])


def test_a_saved_adapter_fits_the_next_copy_of_its_base(base, folder, tmp_path):
    torch.manual_seed(0)
    model = adapt(base.model, TrainConfig(model=base.name, experts=3, top_k=2, rank=2))
    batch = Collator.of(base.reader).scoring(questions(base))
    try:
        for name, parameter in model.named_parameters():
            if "moe_lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        model.save_pretrained(tmp_path / "adapter")
        with torch.no_grad():
            expected = logits_at(model.eval(), batch)
    finally:
        model.unload()
    with torch.no_grad():
        bare = logits_at(base.model, batch)
        again = load_adapter(load_base(str(folder)).model, tmp_path / "adapter")
        assert torch.equal(logits_at(again, batch), expected)
    assert not torch.equal(bare, expected)


def test_random_batches_of_every_family(base):
    """What a step costs is measured on them."""
    batch = random_batch(base.model, 1, 5, questions=2)
    assert torch.isfinite(answer_loss(base.model, batch))


def test_memory_is_counted_without_any(base):
    """The peak of a piece, real and of tensors without memory, of which the sizes are known."""
    tiles = base.model.config.model_type not in {"llava", "gemma3", *TEXT_KINDS}
    most = 64 if tiles else None  # else it would take long
    config = TrainConfig(experts=3, top_k=2, rank=2, max_picture_tokens=most)
    model = adapt(base.model, config)
    try:
        real = piece_peak(model, random_piece(base.model, 2, most))
    finally:
        model.unload().eval()
    peak = imagined(base.model.config, torch.float32, config, 2).piece_bytes
    assert peak == pytest.approx(real, rel=0.06)  # what kernels keep differs


def test_no_piece_takes_more_than_the_plan_counts(base):
    """The plan counts the questions of most tokens: none of other pictures holds more."""
    if not family_of(base.model.config).sees:
        return
    collator = Collator.of(base.reader)
    sizes = [(100, 100), (1, 20), (20, 1), (3000, 2000), (640, 480)]
    asked = [
        Example(str(size), Image.new("RGB", size, "red"), "Which?", ("A.", "B."), 0)
        for size in sizes
    ]
    model = adapt(base.model, TrainConfig(experts=3, top_k=2, rank=2))
    try:
        counted, held = [], []
        for example in asked:
            batch = collator.training([example])
            counted.append(collator.length(example, picture=True))
            assert batch["input_ids"].shape[1] == counted[-1]
            held.append(piece_peak(model, batch))
    finally:
        model.unload().eval()
    assert max(held) <= 1.05 * held[counted.index(max(counted))]


def test_in_four_bits_the_named_modules_keep_their_weights(folder):
    bnb = pytest.importorskip("bitsandbytes")
    base = load_base(str(folder), quantize="4bit")
    family = family_of(base.model.config)
    packed = [n for n, part in base.model.named_modules() if isinstance(part, bnb.nn.Linear4bit)]
    assert any("self_attn" in name for name in packed)
    assert not any(name.startswith(family.unquantized) for name in packed)
    batch = Collator.of(base.reader).training(questions(base))
    assert torch.isfinite(answer_loss(base.model, batch))


def test_a_template_without_an_end_gets_one(tmp_path):
    """GLM-4's ends nothing: the next turn's mark follows the answer."""
    template = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    template += "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    base = load_base(str(save_small_text(tmp_path / "model", "glm4", template)))
    tokenizer = base.reader.tokenizer
    ids = base.reader.render([Turn("What?")], answer="A star.")
    assert tokenizer.decode(ids) == (
        "<s><|im_start|>user\nWhat?<|im_start|>assistant\nA star.<|im_end|>"
    )


def test_thinking_is_off_and_the_date_is_pinned(tmp_path):
    template = CHATML.replace(
        "assistant\n", "assistant\n{% if enable_thinking is not false %}<think>{% endif %}"
    ).replace("{{ bos_token }}", "{{ bos_token }}{{ date_string | default('today') }} ")
    base = load_base(str(save_small_text(tmp_path / "model", "qwen3", template)))
    text = base.reader.tokenizer.decode(base.reader.render([Turn("What?")]))
    assert "think" not in text
    assert "26 Jul 2024" in text


def test_a_template_that_rewrites_the_question_is_refused(tmp_path):
    template = CHATML.replace("{{ message.content }}", "{{ messages | length }}")
    base = load_base(str(save_small_text(tmp_path / "model", "qwen2", template)))
    with pytest.raises(UserError, match="writes a question otherwise"):
        Collator.of(base.reader)


@pytest.mark.parametrize("kind", ["glm4", "llava"])
def test_every_end_of_the_generation_config_ends_an_answer(tmp_path, kind):
    folder = BASES[kind](tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7, 9]}))
    assert load_base(str(folder)).reader.ends == {2, 7, 9}


def test_a_conversation_that_would_begin_twice_is_refused(tmp_path):
    template = CHATML.replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}")
    folder = save_small_text(tmp_path / "model", "llama", template)
    with pytest.raises(UserError, match="conversations begin with <s> twice"):
        load_base(str(folder))


def test_plain_text_in_place_of_a_template_is_told(tmp_path):
    with pytest.warns(UserWarning, match="has no chat template: its conversations are plain text"):
        load_base(str(save_small_text(tmp_path / "model", "llama")))


def test_earlier_turns_and_markup_that_the_model_spelt_out(base):
    end = base.reader.tokenizer.eos_token
    turns = [Turn("What is it?", f"A {end}ring."), Turn("Which colour?")]
    plain = [replace(turns[0], answer="A ring."), turns[1]]
    assert base.reader.render(turns) == base.reader.render(plain)
    text = base.reader.tokenizer.decode(base.reader.render(turns)).replace(" ", "")
    assert text.index("Whatisit?") < text.index("ring.") < text.index("Whichcolour?")


def test_a_language_model_is_shown_no_picture(tmp_path):
    base = load_base(str(save_small_text(tmp_path / "model")))
    seen = replace(questions(base)[0], image=Image.new("RGB", (9, 9)))
    with pytest.raises(UserError, match="reads text alone"):
        Collator.of(base.reader).training([seen])
    with pytest.raises(UserError, match="reads text alone"):
        base.reader.render([Turn("<image>What?")])


def test_nobody_else_asks_for_a_models_type():
    """What depends on the kind of base stands in its family."""
    kinds = "|".join(kind for kind in FAMILIES if kind != "llava")  # a prompt's name, too
    asks = re.compile(rf"model_type|isinstance\([^)]*(Llava|Llama)|[\"']({kinds})[\"']")
    inside = ROOT / "vlmoe" / "models"
    found = []
    for path in sorted([*(ROOT / "vlmoe").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]):
        of_one_base = "lessons" in path.parts or path.name in ("build_tiny.py", "minimal.py")
        if inside in path.parents or of_one_base:
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [f"{path}: {line.strip()}" for line in lines if asks.search(line)]
    assert found == []
