"""What skips a step or a question, and what ends a run."""

from __future__ import annotations

import signal

import pytest
import torch

from tests.models_for_tests import save_small_llava
from tests.train.test_loop import examples
from vlmoe.data.image import ImageError
from vlmoe.errors import UserError
from vlmoe.models.load import load_base
from vlmoe.tasks.collator import Collator
from vlmoe.train import guard
from vlmoe.train.guard import (
    UNDECODABLE,
    Health,
    Interrupted,
    LeftOut,
    Stop,
    Tolerant,
    TolerantCollate,
    Undecodable,
    is_unsound,
)
from vlmoe.train.loop import answer_loss


def parameter(*grad: float) -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.zeros(len(grad)))
    made.grad = torch.tensor(grad)
    return made


@pytest.mark.parametrize(
    ("loss", "grads", "bad"),
    [
        (1.0, [(1.0, -2.0), (0.0,)], False),
        (1.0, [(1e30, -1e30)], False),  # whose squares would overflow
        (float("nan"), [(1.0,)], True),
        (float("inf"), [(1.0,)], True),
        (1.0, [(1.0,), (0.0, float("nan"), 1.0)], True),
        (1.0, [(1.0,), (float("-inf"),)], True),
        (1.0, [()], False),  # a process without experts of its own
    ],
)
def test_what_is_not_finite(loss, grads, bad):
    parameters = [parameter(*grad) for grad in grads] + [torch.nn.Parameter(torch.zeros(2))]
    assert bool(is_unsound(torch.tensor(loss), parameters, gradients=True)) is bad


def test_a_loss_scaler_looks_after_gradients():
    bad = parameter(float("inf"))
    assert not is_unsound(torch.tensor(1.0), [bad], gradients=False)
    assert is_unsound(torch.tensor(float("nan")), [bad], gradients=False)


def test_too_many_skipped_in_a_row():
    health = Health(2, "mend it")
    health.bad(3, "the loss is nan")
    health.good()
    health.bad(5, "the loss is nan")
    again = Health(2, "mend it")
    again.load(health.state())
    with pytest.raises(UserError, match=r"the loss is inf at step 6, and 2 steps in a row .* mend"):
        again.bad(6, "the loss is inf")
    assert again.skipped == 3


def test_the_first_signal_is_noted():
    with Stop() as told:
        assert told.reason is None
        signal.raise_signal(signal.SIGTERM)
        assert told.reason == "SIGTERM"


@pytest.fixture
def listening():
    """Python's own SIGINT: a shell's background jobs, tests too, begin with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_the_same_again_is_as_ever(monkeypatch):
    with Stop() as told:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # torchrun passes on what the terminal has sent
        monkeypatch.setattr(guard, "AGAIN", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert told.reason == "SIGINT"


def test_a_breakable_block_is_left():
    with Stop() as told:
        for _ in range(2):  # the second time the signal has come before
            reached = []
            with pytest.raises(Interrupted), told.breakable():
                reached.append(signal.raise_signal(signal.SIGTERM) or "went on")
            assert reached == []


def test_with_others_nothing_is_left():
    with Stop(breaks=False) as told:
        with told.breakable():
            signal.raise_signal(signal.SIGTERM)
        assert told.reason == "SIGTERM"


def test_time_is_up():
    assert Stop(1e-12).reason == "--max-hours 1e-12"
    assert Stop(1).reason is None


class Broken(list):
    """Examples of which those with these numbers fail."""

    def __init__(self, items, numbers):
        super().__init__(items)
        self.numbers = numbers

    def __getitem__(self, index):
        if index in self.numbers:
            raise ImageError(f"number {index} is broken")
        return super().__getitem__(index)


@pytest.mark.parametrize("broken", [{1}, {0, 1}])
def test_what_fails_to_decode_weighs_nothing(tmp_path, broken):
    """What stands in for it is the first question, which has no picture, or the next with one."""
    base = load_base(str(save_small_llava(tmp_path / "model")))
    tolerant = Tolerant(Broken(examples(), broken))
    batch = TolerantCollate(Collator.of(base.reader).training, tolerant)([tolerant[1]])
    assert batch.pop(UNDECODABLE) == [Undecodable("", "1", "number 1 is broken")]
    assert ("pixel_values" in batch) == (0 in broken)
    assert not batch["uses"].any()
    base.model.requires_grad_(True)
    loss = answer_loss(base.model, batch)
    loss.backward()
    assert loss.item() == 0
    assert not base.model.lm_head.weight.grad.any()


def test_nothing_can_be_decoded():
    tolerant = Tolerant(Broken(examples(), set(range(9))))
    with pytest.raises(UserError, match="no picture of the dataset can be decoded"):
        TolerantCollate(lambda shown: {}, tolerant)([tolerant[0]])


def test_each_picture_is_named_once_and_too_many_end_the_run():
    written, said = [], []
    left_out = LeftOut(0.2, 10, written.extend, said.append)
    first, second, third = (Undecodable("data", str(at), f"reason {at}") for at in range(3))
    left_out.add([first, second])
    left_out.add([Undecodable(*first)])
    assert (len(left_out), len(said), len(written)) == (2, 2, 2)
    with pytest.raises(UserError, match=r"3 of 10 questions .* more than --max-bad-images 0\.2"):
        left_out.add([third])
