"""The model on a device that is not the host's: `meta`, which has shapes and no numbers.

Every operation must find its tensors in one place; what comes back to the host is counted, since
the host waits for it, and answered with yes and zeros.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from tests.models_for_tests import save_small_llava
from tests.train.test_loop import examples, siblings
from vlmoe.adapter.routing import RoutingRecorder
from vlmoe.models.load import load_base
from vlmoe.models.transfer import sent
from vlmoe.optim import precondition, riemannian
from vlmoe.optim.create import create_optimizer
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.readings import make_predictor
from vlmoe.train.loop import answer_loss
from vlmoe.train.settings.config import TrainConfig
from vlmoe.train.setup import adapt

META = torch.device("meta")
aten = torch.ops.aten


class Elsewhere(TorchDispatchMode):
    """Refuses operations on tensors of two places; counts and answers what the host asks for.

    A whole number that is asked for is ``count``, true or false is true, all else is zero.
    """

    def __init__(self, count: int = 0) -> None:
        super().__init__()
        self.count = count
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # Without autograd torch leaves it to a mode to take composite operations apart.
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func.decompose(*args, **kwargs)
        tensors = [item for item in tree_iter((args, kwargs)) if isinstance(item, torch.Tensor)]
        places = {tensor.device.type for tensor in tensors if tensor.dim()}
        away = "meta" in {tensor.device.type for tensor in tensors}
        if away and func is aten._local_scalar_dense.default:
            self.asked["number"] += 1
            if args[0].dtype.is_floating_point:
                return 0.0
            return args[0].dtype == torch.bool or self.count
        if away and func is aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
            self.asked["tensor"] += 1
            dtype = kwargs.get("dtype") or args[0].dtype
            return torch.zeros(args[0].shape, dtype=dtype)
        if len(places) > 1 and func not in (aten._to_copy.default, aten.copy_.default):
            raise AssertionError(f"{func.name()} of {[(t.device, t.shape) for t in tensors]}")
        return func(*args, **kwargs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return str(save_small_llava(tmp_path_factory.mktemp("model")))


def make(saved, **settings):
    base = load_base(saved)
    config = TrainConfig(experts=4, top_k=2, rank=2, **settings)
    return base, adapt(base.model, config).to(META)


def there(batch):
    return {name: sent(value, META) for name, value in batch.items()}


def test_the_watch_sees_what_is_in_the_wrong_place():
    away = torch.ones(3, device=META)
    with Elsewhere() as watch:
        with pytest.raises(AssertionError, match="aten::add"):
            away + torch.ones(3)
        with pytest.raises(AssertionError, match="aten::index"):
            torch.ones(3, 4, device=META)[torch.arange(2)]
        assert not watch.asked
        assert away.sum().item() == 0
        assert (away > 0).any().item() is True
        assert away.cpu().tolist() == [0.0, 0.0, 0.0]
    assert watch.asked == {"number": 2, "tensor": 1}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("asked", [examples, siblings], ids=["alone", "shared"])
def test_forward_and_backward(saved, asked, checkpointing):
    base, model = make(saved, gradient_checkpointing=checkpointing, dropout=0.1)
    recorder = RoutingRecorder(model.train())
    batch = there(Collator.of(base.reader).training(asked()))
    with Elsewhere() as watch:
        with recorder.record(batch["uses"], batch["picture_uses"]) as recording:
            loss = answer_loss(model, batch)
        (loss + recording.balance_loss()).backward()
        recorder.count(recording)
    # Where rows share nothing, transformers asks whether a row holds several sequences.
    assert watch.asked == ({"number": 1} if "seen_until" not in batch else {})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert {parameter.grad.device for parameter in trained} == {META}


@pytest.mark.parametrize("name", ["sgd", "grsgd", "adamw", "gradamw"])
def test_a_step_of_the_optimizer(saved, monkeypatch, name):
    for module in (precondition, riemannian):
        monkeypatch.setattr(module, "stacks", lambda tensor: True)
        monkeypatch.setattr(module, "asynchronous", lambda device: True)
    _, model = make(saved)
    optimizer = create_optimizer(model, name, lr=1e-3, gate_lr=1e-3, gate_rescale="sqrt")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with Elsewhere() as watch:
        optimizer.step()
    assert not watch.asked
    states = [value for each in optimizer.state.values() for value in each.values()]
    tensors = [value for value in states if isinstance(value, torch.Tensor) and value.dim()]
    assert {tensor.device for tensor in tensors} <= {META}


@pytest.mark.parametrize(
    ("scoring", "reads"),
    # Once all is done. Of words, after each token, how many go on; and for each but the first
    # transformers asks whether rows are padded.
    [
        ("letter", {"tensor": 1}),
        ("option", {"tensor": 1}),
        ("generate", {"number": 5, "tensor": 2}),
    ],
)
def test_scoring_waits_once_a_batch(saved, scoring, reads):
    base, model = make(saved)
    asked = siblings()
    predictor = make_predictor(scoring, model.eval(), Collator.of(base.reader), max_new_tokens=3)
    batch = predictor.collate(asked)
    with Elsewhere(len(asked)) as watch:  # all go on
        found = predictor.choose_batch(batch, asked, strict=False)
    assert len(found) == len(asked)
    assert watch.asked == reads
