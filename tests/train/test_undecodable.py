"""A piece of a step of which no picture can be decoded."""

from __future__ import annotations

import pytest

from tests.models_for_tests import save_small_llava
from tests.train.test_loop import examples
from vlmoe.data.image import ImageError
from vlmoe.errors import UserError
from vlmoe.models.load import load_base
from vlmoe.tasks.collator import Collator
from vlmoe.train.loop import answer_loss
from vlmoe.train.undecodable import KEY, LeftOut, Tolerant, TolerantCollate, Undecodable


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
def test_it_weighs_nothing(tmp_path, broken):
    """What stands in for it is the first question, which has no picture, or the next with one."""
    base = load_base(str(save_small_llava(tmp_path / "model")))
    tolerant = Tolerant(Broken(examples(), broken))
    batch = TolerantCollate(Collator.of(base.reader).training, tolerant)([tolerant[1]])
    assert batch.pop(KEY) == [Undecodable("", "1", "number 1 is broken")]
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


def test_each_is_named_once_and_too_many_end_the_run():
    written, said = [], []
    left_out = LeftOut(0.2, 10, written.extend, said.append)
    first, second, third = (Undecodable("data", str(at), f"reason {at}") for at in range(3))
    left_out.add([first, second])
    left_out.add([Undecodable(*first)])
    assert (len(left_out), len(said), len(written)) == (2, 2, 2)
    with pytest.raises(UserError, match=r"3 of 10 questions .* more than --max-bad-images 0\.2"):
        left_out.add([third])
