"""OpenAI's own client asks: with a picture, token by token, of an adapter."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serve.conftest import NEEDS, QUESTION, SCENE, about, data_uri
from vlmoe.data.turn import Turn

openai = pytest.importorskip("openai", reason=NEEDS)

KEY = "a key that is long enough".replace(" ", "-")


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}v1", api_key="none", max_retries=0) as client:
        yield client


def said(engine, name: str, count: int, *turns: Turn, picture=SCENE, **more) -> tuple[str, str]:
    """What the engine itself says, and why it ended."""
    turns = turns or (Turn(QUESTION),)
    *_, (last, _) = engine.ask(picture, turns, name, max_new_tokens=count, **more)
    return last.text, last.end


def test_models(client, engine):
    listed = client.models.list()
    assert [one.id for one in listed] == ["first", "second.1", "base"] == engine.names
    assert client.models.retrieve("second.1").owned_by == "vlmoe"
    with pytest.raises(openai.NotFoundError, match="no model 'third': choose from first, second"):
        client.models.retrieve("third")


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_picture_is_asked_about(client, engine, limit):
    texts = set()
    for name in engine.names:
        answer = client.chat.completions.create(
            model=name, messages=about(data_uri(SCENE)), **{limit: 8}
        )
        text, end = said(engine, name, 8)
        (choice,) = answer.choices
        assert (choice.message.role, choice.message.content) == ("assistant", text)
        assert choice.finish_reason == {"end": "stop", "length": "length"}[end]
        assert answer.model == name
        shown = next(engine.ask(SCENE, [Turn(QUESTION)], name, max_new_tokens=8))[1]
        assert answer.usage.prompt_tokens == shown.batch["input_ids"].shape[1]
        assert answer.usage.completion_tokens <= 8
        assert answer.usage.total_tokens == (
            answer.usage.prompt_tokens + answer.usage.completion_tokens
        )
        texts.add(text)
    assert len(texts) == 3


def test_token_by_token(client, engine):
    stream = client.chat.completions.create(
        model="first",
        messages=about(data_uri(SCENE)),
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last, counts = stream
    pieces = [chunk.choices[0].delta.content for chunk in chunks]
    text, end = said(engine, "first", 12)
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert last.choices[0].finish_reason == {"end": "stop", "length": "length"}[end]
    assert counts.choices == []
    assert counts.usage.completion_tokens > 3
    assert len({chunk.id for chunk in (*chunks, last, counts)}) == 1


def test_a_conversation_goes_on(client, engine):
    first = client.chat.completions.create(
        model="first", messages=about(data_uri(SCENE)), max_tokens=6
    )
    answer = first.choices[0].message
    more = "And what shape is it?"
    for told in ({"role": "assistant", "content": answer.content}, answer.model_dump(), answer):
        messages = [*about(data_uri(SCENE)), told, {"role": "user", "content": more}]
        again = client.chat.completions.create(model="first", messages=messages, max_tokens=6)
        turns = Turn(QUESTION, answer.content), Turn(more)
        assert again.choices[0].message.content == said(engine, "first", 6, *turns)[0]


def test_without_a_picture(client, engine):
    answer = client.chat.completions.create(
        model="base", messages=[{"role": "user", "content": QUESTION}], max_tokens=6
    )
    assert answer.choices[0].message.content == said(engine, "base", 6, picture=None)[0]


def test_the_picture_stands_before_the_question_wherever_it_is_sent(client, engine):
    (message,) = about(data_uri(SCENE))
    message["content"].reverse()
    answer = client.chat.completions.create(model="first", messages=[message], max_tokens=6)
    assert answer.choices[0].message.content == said(engine, "first", 6)[0]


def test_a_seed_says_what_is_sampled(client, engine):
    def sampled(seed):
        answer = client.chat.completions.create(
            model="base", messages=about(data_uri(SCENE)), max_tokens=20, temperature=2, seed=seed
        )
        return answer.choices[0].message.content

    one = sampled(1)
    assert one == sampled(1) == said(engine, "base", 20, temperature=2.0, seed=1)[0]
    assert len({one, *(sampled(seed) for seed in range(2, 5))}) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_stop_texts_end_an_answer(client, engine, stream):
    text, _ = said(engine, "first", 20)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    answer = client.chat.completions.create(
        model="first", messages=about(data_uri(SCENE)), max_tokens=20, stop=[stop], stream=stream
    )
    if stream:
        chunks = list(answer)
        found = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        found, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (found, reason) == (text[: text.find(stop)], "stop")


def test_fifty_at_once(client, engine):
    """All are answered, each as if it were alone."""
    names = [engine.names[number % 3] for number in range(50)]
    wanted = {name: said(engine, name, 6)[0] for name in engine.names}
    assert len(set(wanted.values())) == 3

    def ask(name: str) -> str:
        answer = client.chat.completions.create(
            model=name, messages=about(data_uri(SCENE)), max_tokens=6
        )
        return answer.choices[0].message.content

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(ask, names)) == [wanted[name] for name in names]


def test_the_key(start, engine):
    url = start(engine, key=KEY)

    def client(key):
        return openai.OpenAI(base_url=f"{url}v1", api_key=key, max_retries=0)

    assert len(list(client(KEY).models.list())) == 3
    for wrong in ("none", KEY[:-1], KEY + "x"):
        with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
            client(wrong).models.list()
    with pytest.raises(openai.AuthenticationError):
        client("none").chat.completions.create(model="base", messages=[])
