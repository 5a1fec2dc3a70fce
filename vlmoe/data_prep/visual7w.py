"""Visual7W (telling): the official files -> a prepared dataset.

    vlmoe prepare visual7w --source RAW_DIR --out data/visual7w

RAW_DIR holds ``dataset_v7w_telling.json`` (which the official toolkit renames ``dataset.json``)
and the unzipped ``images/``. https://ai.stanford.edu/~yukez/visual7w/
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from vlmoe.data.pictures import Picture
from vlmoe.data.prepare import Writing, write_dataset
from vlmoe.data.record import SPLITS, Question, Rejected, option_order
from vlmoe.data_prep import command
from vlmoe.errors import UserError

TOOL = "data_prep/visual7w.py"
JSON_NAMES = ("dataset_v7w_telling.json", "dataset.json")
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    tool: str = TOOL,
    origin: str | None = None,
    **writing: Unpack[Writing],
) -> dict[str, Any]:
    """Prepare a folder in Visual7W's layout.

    Args:
        source: the folder with the JSON and ``images/``.
        out: the folder to make.
        seed: of the order of the options.
        tool, origin: what the manifest names as the tool and the source, where another
            script made the files first (by default: this one, and the JSON's path).
        writing: see ``write_dataset``.

    Returns:
        The manifest.

    Raises:
        UserError: the layout is not Visual7W's, ``out`` is taken, or too much is unusable.
    """
    source = Path(source)
    file = find_json(source)
    check_images(source)
    count = Counter[str]()
    return write_dataset(
        out,
        read(file, source / "images", seed, count),
        source=origin or str(file.resolve()),
        tool=tool,
        seed=seed,
        splits=SPLITS,
        total=count.total,
        **writing,
    )


# --- the files ------------------------------------------------------------------------------


def find_json(source: Path) -> Path:
    """The questions' file in ``source``.

    Raises:
        UserError: no such folder, or no such file in it.
    """
    if not source.exists():
        raise UserError(f"no such folder: {source}")
    if not source.is_dir():
        raise UserError(f"{source} is a file: give the folder that holds it and images/")
    found = [source / name for name in JSON_NAMES if (source / name).is_file()]
    if not found:
        hint = _unzip_hint(source, "telling", "dataset")
        raise UserError(f"{source} holds neither {' nor '.join(JSON_NAMES)}{hint}")
    if len(found) > 1:
        print(f"{source} holds {' and '.join(JSON_NAMES)}: reading {found[0].name}")
    return found[0]


def check_images(source: Path) -> None:
    """Refuse a source whose pictures are not there, before looking for each of them.

    Raises:
        UserError: ``images/`` is missing; says so if it is still in a zip.
    """
    if not (source / "images").is_dir():
        hint = _unzip_hint(source, "image")
        raise UserError(f"{source} holds no folder images/ with the pictures{hint}")


def _unzip_hint(source: Path, *words: str) -> str:
    zips = [
        file.name for file in sorted(source.glob("*.zip")) if any(w in file.name for w in words)
    ]
    return f"; {zips[0]} is still zipped: unzip {source / zips[0]} -d {source}" if zips else ""


def _load_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text (byte {error.start}): download it again"
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{file} is not valid JSON, line {error.lineno} column {error.colno}: {error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all measure
        raise UserError(f"{file} is not a Visual7W file: {error}") from error


# --- the layout -----------------------------------------------------------------------------


def read(file: Path, images: Path, seed: int, count: Counter[str]) -> Iterator[Question | Rejected]:
    """Every question of the file, in its order; how many each split has goes into ``count``.

    A fault of one question (no answer, a number for a text) rejects that question. A fault
    of the frame around them means that this is some other file.

    Raises:
        UserError: not JSON, or not Visual7W's frame of objects and lists.
    """
    content = _expect(_load_json(file), dict, f"{file}: the whole file")
    if "images" not in content:
        raise UserError(f"{file} has no 'images': it is not Visual7W's telling file")
    for i, image in enumerate(_expect(content["images"], list, f"{file}: images")):
        place = f"images[{i}]"
        _expect(image, dict, f"{file}: {place}")
        name = _expect(image.get("filename", ""), str, f"{file}: {place}.filename")
        split = _expect(image.get("split", ""), str, f"{file}: {place}.split")
        pairs = _expect(image.get("qa_pairs", []), list, f"{file}: {place}.qa_pairs")
        count[split] += len(pairs)
        picture = Picture(name, images / name)
        for j, pair in enumerate(pairs):
            place_of_pair = f"{place}.qa_pairs[{j}]"
            _expect(pair, dict, f"{file}: {place_of_pair}")
            yield _question(pair, place_of_pair, picture, SPLIT_NAMES.get(split, split), seed)


def _question(
    pair: dict[str, Any], place: str, picture: Picture, split: str, seed: int
) -> Question | Rejected:
    reason = _fault(pair)
    record_id = pair.get("qa_id")
    if not isinstance(record_id, int | str) or isinstance(record_id, bool):
        return Rejected(place, split, "no qa_id")
    if reason:
        return Rejected(str(record_id), split, reason)
    # The right answer comes apart from the wrong ones, so there is no order to keep.
    options = [pair["answer"], *pair["multiple_choices"]]
    order = option_order(seed, str(record_id), len(options))
    return Question(
        id=str(record_id),
        split=split,
        picture=picture,
        question=pair["question"],
        choices=tuple(options[index] for index in order),
        answer=order.index(0),
        category=pair.get("type", ""),
    )


def _fault(pair: dict[str, Any]) -> str | None:
    """What keeps a question from being read; whether its text makes sense is checked later."""
    wrong = pair.get("multiple_choices")
    if pair.get("question") is None:
        return "no question"
    if pair.get("answer") is None or pair["answer"] == "":
        return "no answer"
    if wrong is None:
        return "no multiple_choices"
    if not isinstance(wrong, list):
        return "multiple_choices is not a list"
    named = {"question": pair["question"], "answer": pair["answer"], "type": pair.get("type", "")}
    for field, value in named.items():
        if not isinstance(value, str):
            return f"{field} is not text"
    if not all(isinstance(option, str) for option in wrong):
        return "an option is not text"
    if not pair["answer"].strip():
        return "no answer"
    return None


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    type(None): "null",
    bool: "a truth value",
}


def _expect(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        found = _NAMES.get(type(value), "a number")
        raise UserError(f"{where} should be {_NAMES[kind]}, but is {found}")
    return value


# --- the command ----------------------------------------------------------------------------

EPILOG = """\
RAW_DIR is the official download, unpacked (https://ai.stanford.edu/~yukez/visual7w/):
  dataset_v7w_telling.json   or dataset.json, as the official toolkit names it
  images/v7w_1.jpg ...       from visual7w_images.zip

The splits stay as they are (val becomes validation), strings keep their full stops. The right
answer is mixed among the wrong ones. Pictures are checked and copied into DIR/images.

example:
  vlmoe prepare visual7w --source downloads/visual7w --out data/visual7w
  vlmoe train --dataset visual7w
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, prepare, print a table."""
    parser = command.parser("Turn Visual7W's official files into a prepared dataset.", EPILOG)
    parser.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="RAW_DIR",
        help="the folder with dataset_v7w_telling.json and images/",
    )
    command.add_seed(parser)
    options = parser.parse_args(argv)
    manifest = prepare(
        options.source,
        options.out,
        seed=options.seed,
        **command.writing(options),
    )
    command.print_summary(manifest, options.out)
