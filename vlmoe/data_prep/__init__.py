"""Raw sources -> prepared datasets."""

READERS = {
    "visual7w": "the official Visual7W files",
    "vmcbench": "VMCBench, from the hub, its files or the TSV",
    "scienceqa": "ScienceQA, from the hub or its files",
    "commonsenseqa": "CommonsenseQA: parquet, official files or instructions; so all up to boolq",
    "openbookqa": "OpenBookQA",
    "siqa": "Social IQa",
    "arc": "ARC, Challenge or Easy",
    "piqa": "PIQA",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "boolq": "BoolQ",
    "commonsense": "commonsense_170k: eight of these in one file of instructions",
    "glue": "the nine tasks of GLUE, from the hub or the official files",
    "jsonl": "your own questions and conversations: JSON lines, LLaVA, ShareGPT, OpenAI",
    "shapes": "rendered scenes, which need no source at all",
    "vqa": "VQAv2, OK-VQA, TextVQA, GQA, DocVQA, ChartQA: the official files",
    "captions": "rendered scenes to be described in words, which need no source",
    "told": "scenes told in words, which need no source either",
    "check": "looks a prepared dataset over",
}
"""What ``vlmoe prepare NAME`` and ``data_prep/NAME.py`` run, and a line about it: the module of
that name in this package, which has a ``main``."""
