"""Pictures of any size: as many tokens as counted, from their height and width alone."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    Gemma3Config,
    Gemma3Processor,
    Idefics3Config,
    Idefics3Processor,
    InternVLConfig,
    LlavaNextConfig,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    SmolVLMConfig,
)

from tests.models_for_tests import save_small_text
from tests.vision_models_for_tests import KINDS, save_small_vision
from vlmoe.data.example import Example
from vlmoe.data.turn import PICTURE, Turn
from vlmoe.errors import UserError
from vlmoe.models import table
from vlmoe.models.family import Size, family_of, family_of_kind
from vlmoe.models.forward import flex_fault
from vlmoe.models.load import load_base, load_reader
from vlmoe.tasks.collator import Collator

# Small, long, a page, longer than any processor takes, and in between.
SIZES = [Size(100, 100), Size(1, 20), Size(20, 1), Size(3000, 2000), Size(2, 900), Size(48, 64),
         Size(57, 43), Size(31, 90)]  # fmt: skip


def pictures(sizes: list[Size]) -> list[Image.Image]:
    shade = 30
    made = []
    for at, (height, width) in enumerate(sizes):
        made.append(Image.new("RGB", (width, height), (shade * at, 200, 10)))
    return made


def counts(reader, sizes: list[Size]) -> list[int]:
    return [reader.picture_tokens(size).count(reader.image_token) for size in sizes]


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sized") / request.param
    return load_base(str(save_small_vision(folder, request.param)))


def test_as_many_features_as_counted(base):
    """The model's own code on the pictures' pixels, against their sizes alone."""
    family = family_of(base.model.config)
    pixels = base.reader.pixels(pictures(SIZES), "crop")
    with torch.no_grad():
        rows = family.features(base.model, pixels)
    found = counts(base.reader, SIZES)
    assert len(rows) == sum(found)
    for size, count in zip(SIZES, found, strict=True):
        alone = base.reader.pixels(pictures([size]), "crop")
        with torch.no_grad():
            assert len(family.features(base.model, alone)) == count, size
        assert count <= base.reader.picture_tokens(None).count(base.reader.image_token)


def test_a_cap_holds_and_the_model_keeps_to_it(base):
    def holds(cap: int) -> bool:
        with suppress(UserError):
            return bool(base.reader.capped(cap))
        return False

    most = base.reader.picture_tokens(None).count(base.reader.image_token)
    caps = [cap for cap in range(1, most + 1) if holds(cap)]
    if base.model.config.model_type == "gemma3":  # all pictures are equal
        assert caps == [most]
        return
    assert 1 < caps[0] < most
    with pytest.raises(UserError, match="--max-picture-tokens 1: even a small picture takes"):
        Collator.of(base.reader, max_picture_tokens=1)
    assert caps == list(range(caps[0], most + 1))
    reader = Collator.of(base.reader, max_picture_tokens=caps[0]).reader
    found = counts(reader, SIZES)
    assert max(found) <= caps[0]
    assert reader.picture_tokens(None).count(reader.image_token) <= caps[0]
    with torch.no_grad():
        family = family_of(base.model.config)
        rows = family.features(base.model, reader.pixels(pictures(SIZES), "crop"))
    assert len(rows) == sum(found)


def test_a_length_is_known_without_the_picture(base):
    collator = Collator.of(base.reader)
    (picture,) = pictures([Size(48, 64)])
    example = Example("7", picture, "What is it?", ("A cat.", "A dog."), 0)
    whole = collator.training([example])["input_ids"].shape[1]
    unseen = replace(example, image=None, measure=lambda: (48, 64))
    assert collator.length(unseen, picture=True) == whole
    unknown = replace(example, image=None)
    largest = max(collator.length(replace(unseen, measure=lambda size=size: size), picture=True)
                  for size in SIZES)  # fmt: skip
    assert collator.length(unknown, picture=True) >= largest


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (LlavaNextConfig(), 2340),
        (LlavaOnevisionConfig(), 2929),
        (Qwen2_5_VLConfig(), 391),
        (Qwen3VLConfig(), 300),
        (Idefics3Config(vision_config={"image_size": 364, "patch_size": 14}), 2197),
        (SmolVLMConfig(vision_config={"image_size": 512, "patch_size": 16}, scale_factor=4), 832),
        (Gemma3Config(), 256),
        (InternVLConfig(), 3328),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_tokens_of_a_photograph_by_the_hubs_numbers(config, tokens):
    """640 x 480 pixels."""
    ids, pixels = family_of(config).noise(config, 1, torch.Generator())
    assert ids == [config.image_token_id] * tokens
    assert pixels["pixel_values"].is_floating_point()


@pytest.mark.parametrize("kind", ["llava_next", "idefics3", "gemma3"])
def test_prompts_are_those_of_transformers_own_processor(tmp_path, kind):
    """Of these it can be made without torchvision."""
    reader = load_reader(str(save_small_vision(tmp_path / kind, kind)))
    tokenizer = reader.tokenizer
    for name in ("image", "boi", "eoi"):
        token = getattr(reader.config, f"{name}_token_id", None)
        if token is not None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token))
            setattr(tokenizer, f"{name}_token_id", token)
    whole = {
        "llava_next": lambda: LlavaNextProcessor(
            reader.processor, tokenizer, patch_size=7, vision_feature_select_strategy="default",
            num_additional_image_tokens=1),
        "idefics3": lambda: Idefics3Processor(reader.processor, tokenizer, image_seq_len=4),
        "gemma3": lambda: Gemma3Processor(reader.processor, tokenizer, image_seq_length=4),
    }[kind]()  # fmt: skip
    size = Size(40, 60)
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    expected = whole(images=pictures([size]), text=[text], add_special_tokens=False)
    assert reader.render([Turn(f"{PICTURE}What is it?")], [size]) == list(expected["input_ids"][0])
    pixels = reader.pixels(pictures([size]), "crop")["pixel_values"]
    own = torch.as_tensor(expected["pixel_values"][0])
    torch.testing.assert_close(pixels.reshape(own.shape), own)


def test_what_does_not_belong_together_is_named(tmp_path):
    def change(kind, **settings):
        folder = save_small_vision(tmp_path / f"{kind}{len(settings)}", kind)
        reader = load_reader(str(folder))
        for name, value in settings.items():
            setattr(reader.processor, name, value)
        reader.processor.save_pretrained(folder)
        with pytest.raises(UserError) as error:
            load_reader(str(folder))
        return str(error.value)

    larger = {"height": 56, "width": 56}
    assert "pan-and-scan is not supported" in change("gemma3", do_pan_and_scan=True, odd=1)
    assert "does not resize" in change("qwen3_vl", do_resize=False)
    for kind, settings in {
        "llava_next": {"crop_size": larger},
        "idefics3": {"max_image_size": {"longest_edge": 56}},
        "internvl": {"size": larger},
        "gemma3": {"size": larger},
        "qwen2_5_vl": {"merge_size": 4},
    }.items():
        assert "belong together" in change(kind, **settings), kind


def test_no_picture_is_shrunk_to_nothing():
    """A wide picture takes more tokens than a square one, however small both are."""
    config = LlavaNextConfig()
    reader = family_of(config)._without_files(config)
    assert reader._count(Size(100, 100)) == 1176
    with pytest.raises(UserError, match="1200: even a small picture takes 1752 tokens"):
        reader.capped(1200)
    assert reader.capped(1800).fitted(Size(2000, 3000)).width > 200


@pytest.mark.parametrize(("config", "may"), [
    (Gemma3Config(), False), (Qwen2_5_VLConfig(), False), (InternVLConfig(), True),
    (LlavaNextConfig(), True),
], ids=lambda value: getattr(value, "model_type", None))  # fmt: skip
def test_flex_attention_where_masks_are_made_for_it(config, may):
    assert (flex_fault(config) is None) == may
    assert config.get_text_config()._attn_implementation != "flex_attention"


def test_what_is_not_supported_is_refused_by_name_and_reason(tmp_path):
    for kind in ("mllama", "mixtral", "paligemma"):
        with pytest.raises(UserError, match=f"'{kind}' model, which is not supported: "):
            family_of_kind(kind)
    with pytest.raises(UserError, match="language model of type 'gpt_neox' has not been tried"):
        family_of_kind("llava_next").reader("x", LlavaNextConfig(text_config={
            "model_type": "gpt_neox"}))  # fmt: skip
    text = load_base(str(save_small_text(tmp_path / "text")))
    with pytest.raises(UserError, match="every picture is equally many tokens, or none"):
        Collator.of(text.reader, max_picture_tokens=5)


def test_texts_and_templates_that_do_not_fit_pictures(tmp_path):
    folder = save_small_vision(tmp_path / "model", "qwen2_5_vl")
    reader = load_reader(str(folder))
    with pytest.raises(UserError, match="1 pictures, and 2 places"):
        reader.render([Turn(f"{PICTURE}What is <|image_pad|>?")], [Size(9, 9)])
    with pytest.raises(UserError, match="sees whole pictures of any shape"):
        reader.pixels(pictures([Size(9, 9)]), "pad")
    reader.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    reader.tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="template shows no pictures"):
        load_reader(str(folder))


def test_the_table_in_the_docs_is_what_the_code_says():
    page = (Path(__file__).parents[2] / "docs" / "bases.md").read_text(encoding="utf-8")
    made = page.partition(table.BEGIN)[2].partition(table.END)[0]
    assert made.strip() == table.supported()
