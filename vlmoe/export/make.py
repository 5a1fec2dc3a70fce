"""From an adapted model and calibration questions to the factors of a plain LoRA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from vlmoe.adapter.layer import MoELoraLayer, adapted_layers
from vlmoe.adapter.towers import path_tower
from vlmoe.data.example import Example
from vlmoe.data.image import ImageError
from vlmoe.errors import UserError
from vlmoe.export import fit
from vlmoe.export.fit import Factors, Mixture
from vlmoe.export.gather import Gatherer
from vlmoe.export.plan import Plan
from vlmoe.tasks.predict import Predictor


@dataclass(frozen=True)
class LayerExport:
    """What became of one layer.

    Attributes:
        path: in the base.
        tower: ``vision``, ``projector`` or ``language``.
        tokens: calibration tokens it saw.
        rank: of its factors.
        error: squared distance of the outputs on the calibration inputs, over the mixture's own
            square; before the rank was cut.
        gate_variation: see ``fit.Sums.variation``.
    """

    path: str
    tower: str
    tokens: int
    rank: int
    error: float
    gate_variation: float

    def numbers(self) -> dict[str, object]:
        """For a file."""
        return asdict(self)


def layers_of(predictor: Predictor) -> dict[str, MoELoraLayer]:
    """The adapted layers, by their paths in the base."""
    base = predictor.model.get_base_model()  # type: ignore[operator]
    return dict(adapted_layers(base))


def make(
    predictor: Predictor,
    examples: Sequence[Example],
    work: Plan,
    *,
    method: str = "least-squares",
    rank: int | None = None,
    batch_size: int = 16,
    adapter_name: str = "default",
) -> tuple[dict[str, Factors], list[LayerExport], int]:
    """Fit all layers, a group of them in each pass over the questions.

    Args:
        predictor: an adapted model, and how it is asked.
        examples: calibration questions; those whose picture cannot be read are passed over.
        work: which layers at a time.
        method: one of ``fit.FITS``.
        rank: of the result; None: as it comes, E * r (of GOAT adapters twice that).
        batch_size: questions in one forward pass.
        adapter_name: whose mixture.

    Returns:
        Factors by path, float32 on the host; what became of each layer; and the number of questions
        that were passed over.

    Raises:
        UserError: no question is left, or a layer saw none of them.
    """
    layers = layers_of(predictor)
    factors: dict[str, Factors] = {}
    told: list[LayerExport] = []
    lost = 0
    total = len(work.passes) * len(examples)
    with tqdm(total=total, desc="fit", unit="question", disable=None) as bar:
        for paths in work.passes:
            gatherer = Gatherer({path: layers[path] for path in paths}, adapter_name)
            lost = 0
            with gatherer.listening():
                for batch, size in _batches(examples, batch_size):
                    lost += size - len(batch)
                    if batch:
                        inputs = predictor.collate(batch)
                        gatherer.expect(inputs)
                        predictor.choose_batch(inputs, batch)
                    bar.update(size)
            if lost == len(examples):
                raise UserError("no picture of the calibration questions can be read")
            for path in paths:
                if path not in gatherer.sums:
                    raise UserError(f"{path} saw nothing of the calibration questions: give others")
                sums = gatherer.sums.pop(path)
                layer = layers[path]
                pair = layer.factor_pair(adapter_name)
                mixture = Mixture(
                    pair.A.detach(), pair.B.detach(), layer.settings[adapter_name].scaling
                )
                with torch.no_grad():
                    A = fit.FITS[method](sums, mixture)
                    wrong = fit.error(A, sums, mixture)
                    whole = with_start(layer, adapter_name, A, mixture)
                    if rank is not None:
                        whole = fit.shrink(whole, sums.inputs_DD, rank)
                factors[path] = Factors(*(factor.float().cpu() for factor in whole))
                told.append(
                    LayerExport(
                        path, path_tower(path), round(sums.tokens), len(whole.A), wrong,
                        sums.variation,
                    )
                )  # fmt: skip
    return factors, told, lost


def with_start(
    layer: MoELoraLayer, adapter_name: str, A: torch.Tensor, mixture: Mixture
) -> Factors:
    """The fit, and of a GOAT adapter what it takes out of the weight: ``-(s / E) sum_i B_i A_i``.

    A plain LoRA stands beside the whole weight, so its rank is then twice that of the mixture.
    """
    made = Factors(A, mixture.B.flatten(0, 1).T.to(A))
    if adapter_name not in layer.moe_lora_start_A:
        return made
    start_A, start_B = (
        getattr(layer, kind)[adapter_name].weight.detach().flatten(0, 1).to(A)
        for kind in layer.start_kinds
    )
    share = -mixture.scaling / len(mixture.A)
    return Factors(torch.cat([made.A, share * start_A]), torch.cat([made.B, start_B.T], dim=1))


def _batches(examples: Sequence[Example], size: int) -> Iterator[tuple[list[Example], int]]:
    """The examples that can be read, and of how many."""
    for start in range(0, len(examples), size):
        batch = []
        stop = min(start + size, len(examples))
        for at in range(start, stop):
            try:
                batch.append(examples[at])
            except ImageError:
                continue
        yield batch, stop - start
