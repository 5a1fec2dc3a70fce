"""What a request may say, up to its bounds and not beyond; everything is said with its key."""

from __future__ import annotations

import pytest

from tests.serve.conftest import QUESTION, SCENE, about, data_uri
from tests.serve.test_attacks import KEYS, MESSAGES, USER
from vlmoe.data.turn import Turn
from vlmoe.serve import serving
from vlmoe.serve.asked import LONGEST_STOP, MOST_MESSAGES, MOST_STOPS, NEUTRAL, Asked, asked
from vlmoe.serve.faults import Fault
from vlmoe.serve.pictures import content_of

LIMITS = serving.USUAL


def read(**more) -> Asked:
    return asked({"model": "base", "messages": USER, **more}, LIMITS)


def refused(**more) -> Fault:
    with pytest.raises(Fault) as caught:
        read(**more)
    assert caught.value.status == 400
    return caught.value


def test_what_is_left_out():
    assert read() == Asked("base", (Turn(QUESTION),), (), (0,), LIMITS.new_tokens)
    nothing = dict.fromkeys(
        ["max_tokens", "temperature", "seed", "stop", "stream", "stream_options", *NEUTRAL]
    )
    assert read(**nothing) == read()


def test_what_is_said():
    content = b"a file"
    messages = [
        *about(data_uri(content)),
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
        {"role": "user", "content": "And the star?"},
    ]
    options = {"include_usage": True, "include_obfuscation": False}
    found = read(
        messages=messages, max_tokens=7, temperature=1, seed=3, stop="x", stream=True,
        stream_options=options, user="me",
    )  # fmt: skip
    turns = (Turn(QUESTION, "Red."), Turn("And the star?"))
    assert found == Asked("base", turns, (content,), (1, 0), 7, 1.0, 3, ("x",), True, True)
    assert not read(stream=True, stream_options={"include_usage": False}).usage
    longer = [*messages, {"role": "assistant", "content": "Blue."}, *USER]
    third = (turns[0], Turn("And the star?", "Blue."), Turn(QUESTION))
    assert read(messages=longer).turns == third
    assert read(max_completion_tokens=7, max_tokens=7).max_new_tokens == 7


def test_pictures_where_they_are_shown():
    first, second, third = ([{"type": "image_url", "image_url": {"url": data_uri(content)}}]
                            for content in (b"1", b"2", b"3"))  # fmt: skip
    text = [{"type": "text", "text": QUESTION}]
    messages = [
        {"role": "user", "content": [*first, *text, *second]},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": [*third, *text]},
    ]
    found = read(messages=messages)
    assert (found.pictures, found.places) == ((b"1", b"2", b"3"), (2, 0, 1))
    assert [turn.question for turn in found.turns] == [QUESTION, "And?", QUESTION]


def conversation(count: int) -> list[dict]:
    return [{"role": ("user", "assistant")[at % 2], "content": "x"} for at in range(count)]


@pytest.mark.parametrize(
    ("name", "fits", "does_not"),
    [
        ("messages", conversation(MOST_MESSAGES), conversation(MOST_MESSAGES + 2)),
        ("max_tokens", 1, 0),
        ("max_tokens", LIMITS.new_tokens, LIMITS.new_tokens + 1),
        ("max_completion_tokens", LIMITS.new_tokens, LIMITS.new_tokens + 1),
        ("seed", 0, -1),
        ("seed", 2**53 - 1, 2**53),
        ("stop", "x" * LONGEST_STOP, "x" * (LONGEST_STOP + 1)),
        ("stop", ["x"] * MOST_STOPS, ["x"] * (MOST_STOPS + 1)),
        ("stop", "x", ""),
        ("temperature", 0.5, True),
        ("n", 1, True),
        ("frequency_penalty", 0, 1),
        ("parallel_tool_calls", True, 1),
        ("parallel_tool_calls", False, 0),
        ("top_p", 1.0, True),
        ("logprobs", False, 0),
        ("store", False, 0),
        ("stream", True, 1),
    ],
)
def test_up_to_its_bounds(name, fits, does_not):
    read(**{name: fits})
    assert refused(**{name: does_not}).param == name


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_changes_nothing(name):
    for value in NEUTRAL[name]:
        assert read(**{name: value}) == read()
    for value in ("x", ["x"], {"x": 1}, 3):
        fault = refused(**{name: value})
        assert fault.param == name
        assert "not supported here" in fault.text


@pytest.mark.parametrize("case", MESSAGES)
def test_messages_that_are_none(case):
    """Those that the engine itself refuses aside: they are read, and come no further."""
    messages, words = MESSAGES[case]
    later = ("an empty question", "a long one", "markup", "a long conversation", "too many tokens")
    if case in later:
        assert read(messages=messages).turns
        return
    fault = refused(messages=messages)
    assert words in fault.text
    assert fault.param.startswith("messages")


@pytest.mark.parametrize("change", KEYS, ids=range(len(KEYS)))
def test_keys_that_are_none(change):
    """But for a temperature that the engine refuses."""
    if isinstance(change.get("temperature"), float | int) and change["temperature"] is not True:
        assert read(**change).temperature == change["temperature"]
        return
    assert refused(**change).param is not None


def test_pictures_up_to_their_size():
    url = data_uri(bytes(1_000_000))
    assert len(content_of(url, 1, "x")) == 1_000_000
    with pytest.raises(Fault, match="x holds a file larger than 1 MB"):
        content_of(data_uri(bytes(1_000_001)), 1, "x")
    for kind in ("png", "JPEG", "svg+xml", "x-icon", "vnd.microsoft.icon"):
        assert content_of(f"data:image/{kind};base64,AAAA", 1, "x") == bytes(3)
    assert content_of("DATA:image/png;BASE64,", 1, "x") == b""
    with pytest.raises(Fault, match="x is a blob: address: pictures are taken as"):
        content_of("blob:y", 1, "x")
    with pytest.raises(Fault, match="x is no address: pictures"):
        content_of(f"data/{data_uri(SCENE)}", 1, "x")


@pytest.mark.parametrize("body", [None, [], 3, "model", ["model", "messages"]])
def test_no_object(body):
    with pytest.raises(Fault, match="must be a JSON object"):
        asked(body, LIMITS)


def test_a_part_is_what_it_says():
    """What holds a picture under another name is none."""
    picture = {"type": "input_image", "image_url": {"url": data_uri(SCENE)}}
    parts = [picture, {"type": "text", "text": QUESTION}]
    assert "is no part" in refused(messages=[{"role": "user", "content": parts}]).text


def test_a_near_key_is_named():
    assert "did you mean 'max_tokens'?" in refused(max_token=3).text
    assert refused(**{"y" * 5000: 1}).param == "y" * 100
