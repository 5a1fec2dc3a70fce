"""``tiny-text``: the language tower of the built-in base ``tiny`` as a Llama checkpoint of its own.

It is cut out of the weights of ``tiny`` when it is asked for, so that nothing is stored twice.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from vlmoe.files import write_json

TINY_FOLDER = Path(__file__).parent / "tiny"
TOWER = "language_model."
# LLaVA's conversation, which the tower was taught in; what it spoke before ends with </s>.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {{ message['content'] }}"
    "{{ '' if message['content'].endswith('\\n') else ' ' }}"
    "{% else %}ASSISTANT: {{ message['content'] }}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@cache
def folder() -> Path:
    """A folder with the checkpoint, in transformers' format; it is there while the process is."""
    from safetensors.torch import load_file, save_file

    made = Path(tempfile.mkdtemp(prefix="vlmoe-tiny-text-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    whole = json.loads((TINY_FOLDER / "config.json").read_text(encoding="utf-8"))
    config = whole["text_config"] | {"architectures": ["LlamaForCausalLM"], "dtype": whole["dtype"]}
    write_json(made / "config.json", config)
    tower = {
        name.removeprefix(TOWER): tensor
        for name, tensor in load_file(TINY_FOLDER / "model.safetensors").items()
        if name.startswith(TOWER)
    }
    save_file(tower, made / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copyfile(TINY_FOLDER / name, made / name)
    settings = json.loads((TINY_FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    for name in ("processor_class", "image_token"):
        del settings[name]
    settings["chat_template"] = TEMPLATE
    write_json(made / "tokenizer_config.json", settings)
    return made
