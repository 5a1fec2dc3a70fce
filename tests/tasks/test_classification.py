"""Answers in words that are the same for every question: put, taught, read and judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.text_source import write_parquet
from vlmoe.data.described import Described, describe
from vlmoe.data.example import Example
from vlmoe.data_prep import glue, told
from vlmoe.data_prep.glue import description
from vlmoe.data_prep.glue_tasks import TASKS
from vlmoe.errors import UserError
from vlmoe.models.load import Base, load_base
from vlmoe.tasks.classification import Classification
from vlmoe.tasks.kinds import task_of
from vlmoe.tasks.labels import LabelCollator, LabelStyle, number_of, parse_label
from vlmoe.tasks.predict import Prediction
from vlmoe.tasks.score import Scored, score
from vlmoe.tasks.wordings import LETTERED, WORDINGS, five_classes, style_of
from vlmoe.train.loop import answer_loss


def described(name: str) -> Described:
    return Described.of({"set": "glue", "task": description(TASKS[name])})


def example(name: str, at: int, answer: int = 0, value: float | None = None) -> Example:
    task = TASKS[name]
    texts = [f"Ring {at} is red{' and blue' * (at % 3)}.", f"Box {at} is there."]
    body = task.body.format(*texts[: len(task.columns)])
    return Example(f"q{at}", None, body, task.answers, answer, value=value)


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("tiny-text")


@pytest.fixture(scope="module")
def mnli(base: Base) -> Classification:
    task = task_of(base.reader, described("mnli"))
    assert isinstance(task, Classification)
    return task


def test_every_task_has_wordings_for_each_of_its_labels() -> None:
    assert WORDINGS.keys() == TASKS.keys()
    for name, task in TASKS.items():
        assert len(WORDINGS[name].says) == len(task.answers)
        style = style_of(described(name), "paper")
        assert isinstance(style, LabelStyle)
        for at, said in enumerate(style.says):
            assert parse_label(f" {said} And", style.says) == at


def test_the_papers_wording(base: Base) -> None:
    style = style_of(described("cola"), "paper")
    reader = task_of(base.reader, described("cola"), prompt="paper").collator.reader
    assert style.ask("Who?", ()) == (
        "Below is a sentence. Please check whether the sentence is grammatically correct or wrong."
        "\n\n### Sentence:\n\nWho?\n\n### Answer:\n"
    )
    from vlmoe.data.turn import Turn

    ids = reader.render([Turn("Who?\n")], answer="It is.")
    assert reader.tokenizer.decode(ids).endswith("Who?\nIt is.</s>")
    mnli = style_of(described("mnli"), "paper").ask("Premise: a\nHypothesis: b", ())
    assert mnli.endswith("neutral).\n\nPremise: a\nHypothesis: b\n\n### Answer:\n")
    chosen = style_of(Described(name="commonsenseqa"), "paper")
    assert chosen.ask("Why?", ("x", "y")).endswith(
        "### Question and Possible Answers:\n\nWhy?\n(A). x\n(B). y\n\n### Correct Answer:\n"
    )
    assert chosen.answer("B") == "The correct answer is B."
    science = style_of(Described(name="scienceqa"), "paper")
    assert "### Instruction:\nContext: N/A\nQuestion: Why?\nOptions: (A) x (B) y\n" in science.ask(
        "Why?", ("x", "y")
    )
    for name in LETTERED:
        task_of(base.reader, Described(name=name), prompt="paper")


def test_ours_names_the_answers() -> None:
    asked = style_of(described("mnli"), "llava").ask("Premise: a\nHypothesis: b", ())
    assert asked.endswith("\nAnswer with entailment, neutral or contradiction.")
    assert "A." in style_of(described("mnli"), "letters").ask("a", ("x", "y"))


@pytest.mark.parametrize("prompt", ["llava", "paper"])
def test_what_is_taught_is_the_answer_with_its_end(base: Base, prompt: str) -> None:
    collator = task_of(base.reader, described("cola"), prompt=prompt).collator
    assert isinstance(collator, LabelCollator)
    examples = [example("cola", at, at % 2) for at in range(3)]
    batch = collator.training(examples)
    tokenizer = base.reader.tokenizer
    assert isinstance(collator.style, LabelStyle)
    wanted = [f"{collator.style.says[one.answer]}{tokenizer.eos_token}" for one in examples]
    assert tokenizer.decode(batch["labels"]).replace(" ", "") == "".join(wanted).replace(" ", "")
    # The loss of all is the sum of each one's alone.
    with torch.inference_mode():
        whole = answer_loss(base.model, batch)
        alone = sum(answer_loss(base.model, collator.training([one])) for one in examples)
    assert whole == pytest.approx(float(alone), rel=1e-5)


def test_scores_do_not_depend_on_what_is_beside(base: Base, mnli: Classification) -> None:
    examples = [example("mnli", at, at % 3) for at in range(7)]
    # Three hypotheses for one premise share its tokens.
    examples += [replace(examples[0], id=f"same{at}", question=f"{examples[0].question} {at}")
                 for at in range(3)]  # fmt: skip

    def scores(order: list[Example], batch_size: int) -> dict[str, tuple[float, ...]]:
        found = score(mnli.predictor(base.model), order, batch_size=batch_size)
        return {one.example.id: one.prediction.scores for one in found}

    alone = scores(examples, 1)
    for order, size in ((examples, 4), (examples[::-1], 10)):
        found = scores(order, size)
        for name, values in alone.items():
            assert found[name] == pytest.approx(values, abs=1e-4)
    # By hand: the mean log-likelihood of an answer's tokens behind the prompt.
    prompt = mnli.collator.prompt_ids(examples[0], [])
    answer = mnli.collator.answer(1)[:-1]
    with torch.inference_mode():
        logits = base.model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    log = logits[len(prompt) - 1 : -1].log_softmax(-1)
    by_hand = log.gather(1, torch.tensor(answer)[:, None]).mean()
    assert alone["q0"][1] == pytest.approx(float(by_hand), abs=1e-5)


def test_a_premise_is_put_in_once(mnli: Classification) -> None:
    first = example("mnli", 0)
    others = [replace(first, question=f"{first.question} {at}") for at in range(3)]
    apart = sum(mnli.collator.training([one])["input_ids"].numel() for one in others)
    assert mnli.collator.training(others)["input_ids"].numel() < 0.7 * apart


def scored(name: str, answer: int, prediction: Prediction, value: float | None = None) -> Scored:
    return Scored(example(name, answer, answer, value), prediction)


def test_metrics_of_each_task(base: Base) -> None:
    task = task_of(base.reader, described("mrpc"))
    items = [scored("mrpc", a, Prediction(b)) for a, b in ((1, 1), (1, 0), (0, 0), (0, 0))]
    numbers = task.metrics([*items, scored("mrpc", 1, Prediction(None))])
    assert numbers["task_metrics"]["accuracy"]["value"] == pytest.approx(0.6)
    assert numbers["task_metrics"]["f1"]["value"] == pytest.approx(0.5)
    assert numbers["paper_metrics"] == {"accuracy_after_parsing": 0.6, "parsed": 0.8}
    assert task.line(numbers).startswith("accuracy 0.6000 (")
    assert "f1" in task.table({"base": numbers, "adapter": numbers})
    assert task.validation(numbers)["validation_f1"] == pytest.approx(0.5)

    cola = task_of(base.reader, described("cola"))
    items = [scored("cola", a, Prediction(b)) for a, b in ((1, 1), (0, 0), (1, 0), (0, None))]
    published = cola.metrics(items)["paper_metrics"]
    assert published["matthews_times_parsed"] == pytest.approx(0.5 * 0.75)


def test_a_number_is_the_mean_of_the_labels(base: Base) -> None:
    labels = TASKS["stsb"].answers
    scores = (0.0, 0.0, -50.0, -50.0, -50.0, -50.0)
    assert number_of(Prediction(0, scores=scores), labels) == pytest.approx(0.5)
    assert number_of(Prediction(3, text="3"), labels) == 3.0
    assert number_of(Prediction(None), labels) is None
    task = task_of(base.reader, described("stsb"))
    items = [
        scored("stsb", round(value), Prediction(round(value), text=""), value)
        for value in (0.4, 1.6, 3.0, 4.8)
    ]
    numbers = task.metrics(items)
    assert numbers["task_metrics"]["spearman"]["value"] == 1.0
    assert 0.9 < numbers["task_metrics"]["pearson"]["value"] < 1.0
    assert numbers["paper_metrics"]["accuracy_of_five_classes"] == 1.0
    assert [five_classes(one) for one in (0.0, 1.0, 1.2, 4.0, 4.01, 5.0)] == [1, 1, 2, 4, 5, 5]


def test_what_a_manifest_says() -> None:
    assert Described.of({}) == Described()
    assert described("rte").labels == ("yes", "no")
    for wrong in ({"kind": "song"}, ["a"], {"kind": "classification"}, {"labels": "ab"}):
        with pytest.raises(UserError):
            Described.of({"task": wrong})
    assert describe({}) == Described()


def test_datasets_of_different_kinds_have_lettered_options(tmp_path: Path) -> None:
    glue_rows = [{"sentence": "a", "label": 1, "idx": 0}]
    write_parquet(tmp_path / "raw" / "cola", {"validation": glue_rows})
    glue.prepare(str(tmp_path / "raw"), tmp_path / "cola", task="cola")
    told.prepare(tmp_path / "told", questions={"train": 1, "validation": 1, "test": 1})
    both = {name: tmp_path / name for name in ("cola", "told")}
    said: list[str] = []
    assert describe(both, said.append) == Described()
    assert "cola and told are of different kinds" in said[0]
    assert describe({"cola": both["cola"]}, said.append).name == "cola"
    assert len(said) == 1


def test_letters_only_where_there_are_some(base: Base, mnli: Classification) -> None:
    with pytest.raises(UserError, match="--prompt letters"):
        mnli.predictor(base.model, "letter")
    lettered = task_of(base.reader, described("mnli"), prompt="letters")
    (found,) = score(lettered.predictor(base.model), [example("mnli", 0)])
    assert len(found.prediction.probabilities) == 3
