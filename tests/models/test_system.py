"""What stands above a conversation reaches the model, whatever its template does with it."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from tests.models_for_tests import TINY
from vlmoe.data.turn import Turn
from vlmoe.models.chat import Shown, chat_ids
from vlmoe.models.families.llava import conversation

TURNS = [Turn("What?", "A ring.", system="Be short."), Turn("Where?")]
SAYS = "{% for m in messages %}{% if m.role == 'user' %}U: {{ m.content }}\n{% elif m.role == 'assistant' %}A: {{ m.content }}\n{% else %}S: {{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"  # noqa: E501
REFUSES = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('no system here') }}{% endif %}{% endfor %}" + SAYS
)
DROPS = SAYS.replace("S: {{ m.content }}\n", "")


def tokenizer(template: str | None):
    made = AutoTokenizer.from_pretrained(TINY)
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "begins"),
    [
        (SAYS, "S: Be short.\nU: What?\nA: A ring.\nU: Where?\nA:"),
        (REFUSES, "U: Be short.\n\nWhat?\nA: A ring.\nU: Where?\nA:"),
        (DROPS, "U: Be short.\n\nWhat?\nA: A ring.\nU: Where?\nA:"),
        (None, "Be short.\n\nWhat?\nAnswer: A ring.</s>Where?\nAnswer:"),
    ],
    ids=["has a place", "refuses it", "drops it", "no template"],
)
def test_a_text_base(template, begins):
    own = tokenizer(template)
    found = chat_ids(own, TURNS, {own.eos_token_id})
    expected = own(begins, add_special_tokens=template is None)["input_ids"]
    assert found == expected
    without = [Turn("What?", "A ring."), TURNS[1]]
    assert chat_ids(own, without, {own.eos_token_id}) != found


PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %};"
    "{% endfor %}"
)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_base_that_sees(refuses):
    """Its template takes lists of parts; the text stands in front of the picture."""
    bar = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}"
    own = tokenizer(bar * refuses + PARTS)
    turns = [Turn("<image>What?", system="Be short.")]
    found = chat_ids(own, turns, {own.eos_token_id}, shown=Shown(["<image>"], ["PICTURE"]))
    above = "user: Be short.\n\nPICTUREWhat?;"
    if not refuses:
        above = "system: Be short.;user: PICTUREWhat?;"
    assert found == own(above, add_special_tokens=False)["input_ids"]


def test_llava():
    assert conversation(TURNS).startswith("Be short. USER: What?")
    assert conversation([Turn("What?"), *TURNS[1:]]).startswith("USER: What?")
