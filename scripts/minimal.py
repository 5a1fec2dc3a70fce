"""The whole method on one page, to be read: LoRA experts in LLaVA, preconditioned steps, a score.

    python scripts/minimal.py --steps 60

With all its 360 steps it is `scripts/train_llava.py --config tiny_shapes`, in plain
transformers and torch: the same questions, the same steps, the same losses, to which a test holds
it. What it leaves out is what long runs need: checkpoints, several devices, steps in pieces,
questions that share a picture's tokens, other optimizers, every check. Each part says where the
full version is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice

import torch
from peft import get_peft_model
from torch import Tensor

from vlmoe.adapter import MoELoraConfig, factor_pairs, gates
from vlmoe.data.dataset import load_split
from vlmoe.data.example import Example
from vlmoe.data.registry import locate
from vlmoe.errors import run_command
from vlmoe.flags import Parser
from vlmoe.models.families.llava import LlavaReader, chat
from vlmoe.models.load import load_base
from vlmoe.tasks.letters import answer_tokens
from vlmoe.tasks.prompt import LLAVA

LANGUAGE = r".*language_model\.layers\.\d+\.self_attn\.[qkvo]_proj"
LR, GATE_LR, LR_END = 0.15, 1e-3, 0.05
DAMPING = 0.01
GATE_CLIP = 1.0
BATCH = 32


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--dataset", default="shapes", help="a name, or a prepared folder")
    args = parser.parse_args(argv)

    # 1. A frozen LLaVA: a vision tower, a projector, a language model.      vlmoe/models/load.py
    base = load_base("tiny")
    reader = base.reader  # its tokenizer and picture processor         vlmoe/models/families/
    assert isinstance(reader, LlavaReader)

    # 2. Beside each chosen linear layer W go experts B_i A_i and a router, whose softmax over its
    #    top_k largest entries is the gates g:    y = W x + alpha / r  sum_i g_i B_i A_i x
    #    In the backward pass A_i and B_i see sqrt(g_i) in place of g_i: gate rescaling, the g of
    #    grsgd.                                    vlmoe/adapter/layer.py, vlmoe/adapter/mixture.py
    torch.manual_seed(0)
    model = get_peft_model(
        base.model,
        MoELoraConfig(num_experts=20, top_k=10, r=4, lora_alpha=16, lora_dropout=0.0,
                      gate_rescale="sqrt", target_modules=LANGUAGE),
    )  # fmt: skip
    pairs, routers = factor_pairs(model), gates(model)

    # 3. Questions with pictures and lettered options.      vlmoe/data/, vlmoe/train/batches.py
    train, test = (load_split(locate(args.dataset), split) for split in ("train", "test"))
    order = shuffled(len(train))

    print(f"accuracy before: {accuracy(model, reader, test):.3f}")  # B = 0: this is the base
    model.train()
    for step in range(args.steps):
        # 4. The loss is the cross-entropy of the answer: its letter and the end token. The step's
        #    gradients come from here.                                      vlmoe/train/loop.py
        questions = [train[at] for at in islice(order, BATCH)]
        batch = tokens(reader, questions, answered=True)
        labels = batch["input_ids"].clone()
        labels[:, :-2] = -100  # all but the last two
        loss = model(**batch, labels=labels).loss
        loss.backward()

        # 5. The preconditioned step: plain SGD would go along the gradients themselves.
        left = 1 - (1 - LR_END) * step / args.steps
        torch.nn.utils.clip_grad_norm_(routers, GATE_CLIP)
        with torch.no_grad():
            for A, B in pairs:
                dA, dB = preconditioned(A, B)
                A.sub_(left * LR * dA)
                B.sub_(left * LR * dB)
            for router in routers:
                router.sub_(left * GATE_LR * grad(router))
        model.zero_grad()
        print(f"step {step + 1}: loss {loss.item():.6f}")

    # 6. Right answers among questions that were not trained on.                   vlmoe/tasks/
    print(f"accuracy after: {accuracy(model, reader, test):.3f}")


def preconditioned(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """dA_i <- (B_i B_i^T + delta I)^-1 dA_i and dB_i <- (A_i A_i^T + delta I)^-1 dB_i.

    A (E, r, in) and B (E, r, out) hold all experts of a layer, so this is one product for all. The
    r of grsgd: arXiv 2402.02347 for one LoRA, 2502.15828 for many.   vlmoe/optim/precondition.py
    """
    delta = DAMPING * torch.eye(A.shape[1])
    return (
        torch.linalg.solve(B @ B.mT + delta, grad(A)),
        torch.linalg.solve(A @ A.mT + delta, grad(B)),
    )


def grad(parameter: Tensor) -> Tensor:
    """Its gradient, which must be there.                            vlmoe/adapter/gradients.py"""
    assert parameter.grad is not None
    return parameter.grad


def shuffled(questions: int, seed: int = 0) -> Iterator[int]:
    """Every epoch all questions, in an order of its own."""
    for epoch in count():
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        yield from torch.randperm(questions, generator=generator).tolist()


def tokens(
    reader: LlavaReader, questions: Sequence[Example], *, answered: bool
) -> dict[str, Tensor]:
    """Prompts, with answers or without, padded on the left; and pixels.  vlmoe/tasks/collator.py"""
    asked = [LLAVA.ask(question.question, question.choices) for question in questions]
    texts = [chat(text, picture=True) for text in asked]
    if answered:
        end = reader.tokenizer.eos_token
        texts = [
            f"{text} {question.letter}{end}"
            for text, question in zip(texts, questions, strict=True)
        ]
    pictures = [question.image for question in questions]
    return reader.processor(
        images=pictures, text=texts, padding=True, padding_side="left", return_tensors="pt"
    )


@torch.no_grad()
def accuracy(model: torch.nn.Module, reader: LlavaReader, questions: Sequence[Example]) -> float:
    """Share of questions whose right letter is the likeliest next token among the options'."""
    model.eval()
    letters = answer_tokens(reader, LLAVA).letters  # of " A", " B", ...
    right = 0
    for first in range(0, len(questions), 64):
        some = questions[first : first + 64]
        logits = model(**tokens(reader, some, answered=False)).logits[:, -1, letters]
        for row, question in zip(logits, some, strict=True):
            right += int(row[: len(question.choices)].argmax() == question.answer)
    return right / len(questions)


if __name__ == "__main__":
    run_command(main)
