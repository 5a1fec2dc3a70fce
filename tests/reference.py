"""Slow, obvious versions of every equation, written from the papers; tests compare the fast paths.

Nothing here shares code with ``vlmoe``.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

# --- the mixture of LoRA experts (arXiv 2502.15828, eq. 8, 11, 13, Algorithm 1) ---------------


def reference_gates(x: Tensor, gate: Tensor, top_k: int) -> Tensor:
    """One token after the other: softmax over all experts, keep the top_k, divide by their sum."""
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        probability = torch.softmax(gate @ token, dim=0)
        chosen = set(probability.topk(top_k).indices.tolist())
        total = sum(probability[i] for i in chosen)
        zero = torch.zeros_like(probability[0])
        rows.append(
            torch.stack([probability[i] / total if i in chosen else zero for i in range(len(gate))])
        )
    return torch.stack(rows).reshape(*x.shape[:-1], len(gate))


def reference_mixture(
    x: Tensor,
    dropped_x: Tensor,
    A: Tensor,
    B: Tensor,
    gate: Tensor,
    top_k: int,
    scaling: float,
    gate_rescale: str,
) -> Tensor:
    """Expert by expert as in Algorithm 1; what a gradient must not see is detached.

    A (E, r, in) and B (E, r, out) as in the package: B_i of the paper is ``B[i].T``.
    """
    g = reference_gates(x, gate, top_k)
    result = torch.zeros(*x.shape[:-1], B.shape[-1], dtype=x.dtype)
    for i in range(len(A)):
        gv = g[..., i : i + 1]
        exp_out = dropped_x @ A[i].T @ B[i]
        if gate_rescale == "none":  # eq. 8
            w_exp_out = gv * exp_out
        elif gate_rescale == "sqrt":  # eq. 13 and the two updated lines of Algorithm 1
            sqrt_gv = (gv**0.5).detach()
            w_exp_out = sqrt_gv * exp_out + (gv - sqrt_gv) * exp_out.detach()
        else:
            # eq. 11 divides the gradients of A_i and B_i by g_i, token by token: their weight
            # g_i becomes 1. Three terms, each for one receiver; the first has the value zero.
            chosen = (gv > 0).to(gv.dtype)
            for_factors = dropped_x.detach() @ A[i].T @ B[i]
            for_input = dropped_x @ A[i].detach().T @ B[i].detach()
            w_exp_out = (
                chosen * (for_factors - for_factors.detach())
                + gv.detach() * for_input
                + (gv - gv.detach()) * exp_out.detach()
            )
        result = result + scaling * w_exp_out
    return result


def reference_balance(logits: Tensor, top_k: int, mask: Tensor | None = None) -> Tensor:
    """E sum_i f_i P_i of one layer, token by token and expert by expert (2101.03961, eq. 4-6)."""
    tokens = [t for t in range(len(logits)) if mask is None or mask[t]]
    E = logits.shape[-1]
    probabilities = [torch.softmax(logits[t], dim=0) for t in tokens]
    result = logits.new_zeros(())
    for i in range(E):
        routed = sum(1 for p in probabilities if i in p.topk(top_k).indices.tolist())
        f = routed / (top_k * len(tokens))
        P = sum(p[i] for p in probabilities) / len(tokens)
        result = result + E * f * P
    return result


# --- GOAT's first values (arXiv 2502.16894) ----------------------------------------------------


def reference_goat(W: Tensor, num_experts: int, rank: int) -> tuple[list[Tensor], Tensor, float]:
    """Expert by expert: the products B_j A_j (out, in), W_res, and s; rank is that of one expert.

    The products, because the signs of singular vectors are free.
    """
    m, n = W.shape
    U, S, Vt = torch.linalg.svd(W.double(), full_matrices=False)
    s = (3 * 1.0 * n / rank) ** 0.5
    length = min(m, n) // num_experts
    products = []
    for j in range(num_experts):
        product = torch.zeros(m, n, dtype=torch.float64)
        for t in range(j * length, j * length + rank):
            small = S[t] / (s * 10.0)
            B_t, A_t = U[:, t] * small**0.5, small**0.5 * Vt[t]
            product = product + torch.outer(B_t, A_t)
        products.append(product)
    return products, W.double() - s / num_experts * sum(products), s


# --- the optimizers (arXiv 2502.15828, Algorithm 1; 2402.02347) -------------------------------
# In the paper's shapes: A (r, in), B (out, r). ``optimizer_step`` does the transposing.


def riemannian_gradients(A, B, dA, dB, damping, damping_mode="absolute"):
    """dA <- (B^T B + delta I)^-1 dA, dB <- dB (A A^T + delta I)^-1, for one expert.

    Mode "trace" puts delta times the mean eigenvalue, trace / r, in place of delta.
    """
    eye = torch.eye(A.shape[0], dtype=A.dtype)

    def inverse(gram):
        scale = gram.trace() / len(gram) if damping_mode == "trace" else 1
        return torch.linalg.inv(gram + damping * scale * eye)

    return inverse(B.T @ B) @ dA, dB @ inverse(A @ A.T)


def sgd_step(weight, grad, state, lr, momentum=0.0, weight_decay=0.0):
    """V <- momentum V + dW + weight_decay W; W <- W - lr V."""
    grad = grad + weight_decay * weight
    velocity = momentum * state.get("velocity", torch.zeros_like(grad)) + grad
    state["velocity"] = velocity
    return weight - lr * velocity


def adamw_step(
    weight, grad, state, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, bias_correction=True
):
    """Decoupled weight decay; eps beside the root of the corrected second moment."""
    t = state.get("t", 0) + 1
    m = betas[0] * state.get("m", torch.zeros_like(grad)) + (1 - betas[0]) * grad
    v = betas[1] * state.get("v", torch.zeros_like(grad)) + (1 - betas[1]) * grad**2
    state.update(t=t, m=m, v=v)
    if bias_correction:
        m = m / (1 - betas[0] ** t)
        v = v / (1 - betas[1] ** t)
    return weight - lr * weight_decay * weight - lr * m / (v.sqrt() + eps)


def muon_directions(factors, moments, damping, damping_mode, spectrum, metric):
    """The steps, at lr 1, of one side of one layer: H^-1/2 msign(H^-1/2 M), by SVD.

    Args:
        factors: of each expert the other factor, such that H_i = F F^T + delta I; all (r, ...).
        moments: of each expert its momentum (r, w).
        spectrum: "mixture": the experts' H^-1/2 M are one matrix; "expert": each is one.
        metric: whether there is an H.
    """
    roots = []
    for F, M in zip(factors, moments, strict=True):
        eye = torch.eye(len(M), dtype=M.dtype)
        gram = F @ F.T
        scale = gram.trace() / len(gram) if damping_mode == "trace" else 1
        values, vectors = torch.linalg.eigh(gram + damping * scale * eye)
        roots.append(vectors @ torch.diag(values**-0.5) @ vectors.T if metric else eye)
    turned = [root @ M for root, M in zip(roots, moments, strict=True)]
    signs = [torch.zeros_like(M) for M in turned]
    parts = (
        [list(range(len(turned)))] if spectrum == "mixture" else [[i] for i in range(len(turned))]
    )
    for part in parts:
        U, S, Vt = torch.linalg.svd(torch.cat([turned[i] for i in part]), full_matrices=False)
        # A direction below a thousandth of the Frobenius norm keeps its length.
        lengths = S / (S**2 + 1e-6 * (S**2).sum()).sqrt() if S[0] > 0 else S
        for i, sign in zip(part, (U @ torch.diag(lengths) @ Vt).split(len(turned[0])), strict=True):
            signs[i] = sign
    return [root @ sign for root, sign in zip(roots, signs, strict=True)]


def muon_layer(
    A, B, dA, dB, state, rates, metric, momentum=0.9, spectrum=None, weight_decay=0.0,
    damping=1e-6, damping_mode="absolute",
):  # fmt: skip
    """M <- mu M + (1 - mu) dW; W <- W - lr weight_decay W - lr step, for both sides of a layer.

    Args:
        A, B, dA, dB: (E, r, in) and (E, r, out), as they are stored.
        rates: of A and of B.
        metric: whether in the preconditioner's.
    """
    spectrum = spectrum or ("expert" if metric else "mixture")
    new = []
    for side, lr, W, other, grad in (("A", rates[0], A, B, dA), ("B", rates[1], B, A, dB)):
        M = momentum * state.get(side, torch.zeros_like(grad)) + (1 - momentum) * grad
        state[side] = M
        steps = muon_directions(list(other), list(M), damping, damping_mode, spectrum, metric)
        new.append(W - lr * weight_decay * W - lr * torch.stack(steps))
    return tuple(new)


UPDATES = {"sgd": sgd_step, "adamw": adamw_step, "muon": adamw_step}
"""Of each family, of one parameter that is no factor; and of factors, but for muon."""


def optimizer_step(
    name,
    pairs,
    gates,
    states,
    lr,
    gate_lr,
    damping=1e-6,
    damping_mode="absolute",
    lr_ratio=1,
    **options,
):
    """One step of any of the optimizers, a loop over layers and experts.

    Args:
        name: such as "grsgd"; whether there is a g does not matter here.
        pairs: [(A (E, r, in), B (E, r, out)), ...] with ``.grad``.
        gates: tensors with ``.grad``.
        lr_ratio: B's rate divided by A's, lr.
        states: a dict that lives as long as the run, empty at first.

    Returns:
        New pairs and new gates, detached.
    """
    riemannian, update = {
        prefix + family: ("r" in prefix, step)
        for family, step in UPDATES.items()
        for prefix in ("", "r", "g", "gr")
    }[name]
    new_pairs = []
    of_factors = {}
    if name.endswith("muon"):
        own = ("momentum", "spectrum", "weight_decay")
        of_factors = {key: value for key, value in options.items() if key in own}
        of_factors |= {"damping": damping, "damping_mode": damping_mode, "metric": riemannian}
        options = {k: v for k, v in options.items() if k not in ("momentum", "spectrum")}
    for layer, (stored_A, stored_B) in enumerate(pairs):
        if of_factors:
            tensors = (stored_A.detach(), stored_B.detach(), stored_A.grad, stored_B.grad)
            new_pairs.append(
                muon_layer(
                    *tensors, states.setdefault(layer, {}), (lr, lr * lr_ratio), **of_factors
                )
            )
            continue
        new_A, new_B = stored_A.detach().clone(), stored_B.detach().clone()
        for expert in range(stored_A.shape[0]):
            A, B = stored_A[expert].detach(), stored_B[expert].detach().T
            dA, dB = stored_A.grad[expert], stored_B.grad[expert].T
            if riemannian:
                dA, dB = riemannian_gradients(A, B, dA, dB, damping, damping_mode)
            state_A = states.setdefault((layer, expert, "A"), {})
            state_B = states.setdefault((layer, expert, "B"), {})
            new_A[expert] = update(A, dA, state_A, lr, **options)
            new_B[expert] = update(B, dB, state_B, lr * lr_ratio, **options).T
        new_pairs.append((new_A, new_B))
    new_gates = [
        update(
            gate.detach(), gate.grad, states.setdefault(("gate", number), {}), gate_lr, **options
        )
        for number, gate in enumerate(gates)
    ]
    return new_pairs, new_gates


# --- several questions about one picture --------------------------------------------------------


def reference_sees(sequences: list[tuple[int, ...]]) -> dict[tuple[int, ...], set]:
    """Every distinct beginning of a sequence is a token; it sees those that it begins with."""
    tokens = {ids[: at + 1] for ids in sequences for at in range(len(ids))}
    return {t: {s for s in tokens if t[: len(s)] == s} for t in tokens}


def reference_answer_loss(model, processor, rows) -> Tensor:
    """Summed cross-entropy of the answers' tokens, every question in a whole sequence of its own.

    rows: (picture or None, prompt, answer with the end token), texts.
    """
    total = torch.zeros((), dtype=torch.float64)
    for image, prompt, answer in rows:
        start = len(processor(images=image, text=prompt)["input_ids"][0])
        inputs = processor(images=image, text=prompt + answer, return_tensors="pt")
        ids = inputs["input_ids"][0]
        logits = model(**inputs).logits[0].double()
        for at in range(start, len(ids)):
            total = total - torch.log(torch.softmax(logits[at - 1], dim=-1)[ids[at]])
    return total


# --- scoring -------------------------------------------------------------------------------------


def mean_log_likelihood(model, processor, image, prompt: str, text: str) -> float:
    """Of one text's tokens behind a prompt: one whole sequence, token after token."""
    start = len(processor(images=image, text=prompt)["input_ids"][0])
    inputs = processor(images=image, text=prompt + text, return_tensors="pt")
    ids = inputs["input_ids"][0]
    with torch.no_grad():
        logits = model(**inputs).logits[0].double()
    total = 0.0
    for at in range(start, len(ids)):
        total += float(torch.log(torch.softmax(logits[at - 1], dim=-1)[ids[at]]))
    return total / (len(ids) - start)


def greedy_text(model, processor, image, prompt: str, count: int) -> str:
    """The likeliest token, ``count`` times or up to the end; the whole sequence anew for each."""
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    said: list[int] = []
    for _ in range(count):
        with torch.no_grad():
            new = int(model(**inputs).logits[0, -1].argmax())
        if new == processor.tokenizer.eos_token_id:
            break
        said.append(new)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[new]])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return processor.tokenizer.decode(said).strip()


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Every way the changed questions could have gone, each as likely: the share as uneven."""
    changed, uneven = only_a + only_b, abs(only_a - only_b)
    outcomes = list(itertools.product((-1, 1), repeat=changed))
    return sum(abs(sum(signs)) >= uneven for signs in outcomes) / len(outcomes)
