"""FlexAttention's block masks, and how often it is compiled."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import create_mask, flex_attention

from vlmoe.models import flex
from vlmoe.models.causal import tree_mask
from vlmoe.models.tree import pack


def trees(rows, shared, branches, seed=0):
    """``seen_until`` and positions of as many pictures, with questions of several lengths."""
    draw = torch.Generator().manual_seed(seed)
    sequences, keys = [], []
    for row in range(rows):
        root = [1000 + row] * shared
        for _ in range(branches):
            length = int(torch.randint(1, 60, (), generator=draw))
            sequences.append(root + torch.randint(0, 900, (length,), generator=draw).tolist())
            keys.append(row)
    tensors = pack(sequences, keys, pad=0, budget=4096).tensors
    return tensors["seen_until"], tensors["position_ids"]


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("shape", [(1, 3, 2), (3, 200, 5), (2, 128, 9), (2, 400, 2)])
def test_blocks_are_those_of_the_dense_mask(shape, window):
    seen_until, positions = trees(*shape)
    made = flex.block_mask(seen_until, window, positions)
    dense = tree_mask(seen_until, "sdpa", torch.float32, window, positions)[:, 0] == 0
    rows, tokens = seen_until.shape
    assert torch.equal(create_mask(made.mask_mod, rows, 1, tokens, tokens, "cpu")[:, 0], dense)
    count = -(-tokens // flex.BLOCK)
    room = count * flex.BLOCK - tokens
    # Beyond the end there is nothing to be seen; a block of queries may end early.
    padded = torch.nn.functional.pad(dense, (0, room, 0, room))
    inside = torch.nn.functional.pad(torch.ones(tokens, dtype=torch.bool), (0, room))[:, None]
    for row in range(rows):
        for q in range(count):
            part = slice(q * flex.BLOCK, (q + 1) * flex.BLOCK)
            whole = set(
                made.full_kv_indices[row, 0, q, : made.full_kv_num_blocks[row, 0, q]].tolist()
            )
            some = set(made.kv_indices[row, 0, q, : made.kv_num_blocks[row, 0, q]].tolist())
            assert not whole & some
            for k in range(count):
                block = padded[row, part, k * flex.BLOCK : (k + 1) * flex.BLOCK]
                if k in whole:
                    assert (block | ~inside[part]).all()
                else:
                    assert (k in some) or not block.any()
                if window is None:
                    assert (k in some | whole) == bool(block.any())


def states(rows, tokens):
    draw = torch.Generator().manual_seed(tokens)
    return (torch.randn(rows, 2, tokens, 16, generator=draw) for _ in range(3))


def test_a_dozen_sizes_are_compiled_a_few_times(monkeypatch):
    """With torch's own limit of 8 in force elsewhere; and the result is that of the dense mask."""
    torch._dynamo.reset()
    counter = CompileCounter()
    one = torch.compile(flex_attention, backend=counter, dynamic=True, fullgraph=True)
    monkeypatch.setattr(flex, "compiled", lambda: one)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*compiled")
        for step in range(12):
            seen_until, _ = trees(1 + step % 3, 20 + 23 * step, 2 + step % 4, seed=step)
            query, key, value = states(*seen_until.shape)
            mask = flex.block_mask(seen_until)
            found, _ = flex.attend(torch.nn.Module(), query, key, value, mask, scaling=0.2)
            dense = tree_mask(seen_until, "sdpa", torch.float32)
            wanted = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=dense, scale=0.2
            )
            torch.testing.assert_close(found.transpose(1, 2), wanted, rtol=1e-4, atol=1e-5)
    assert 1 <= counter.frame_count <= 6


def test_going_on_unfused_is_said(monkeypatch):
    torch._dynamo.reset()
    one = torch.compile(flex_attention, backend="eager", dynamic=False, fullgraph=True)
    monkeypatch.setattr(flex, "compiled", lambda: one)
    monkeypatch.setattr(flex, "VARIANTS", 1)
    mask = flex.block_mask(trees(1, 20, 2)[0])
    for step in range(2):
        tokens = mask.shape[-1] if step == 0 else 40
        seen_until = torch.full((1, tokens), tokens)
        query, key, value = states(1, tokens)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found, _ = flex.attend(
                torch.nn.Module(), query, key, value, flex.block_mask(seen_until), scaling=0.2
            )
        wanted = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=0.2
        )
        torch.testing.assert_close(found.transpose(1, 2), wanted, rtol=1e-4, atol=1e-5)
        said = any("goes on unfused" in str(each.message) for each in told)
        assert said == (step == 1)


@pytest.mark.parametrize("asked", [{"dropout": 0.1}, {"softcap": 30.0}, {"s_aux": torch.ones(2)}])
def test_what_it_has_not_is_refused(asked):
    with pytest.raises(ValueError, match="not for --attention flex"):
        flex.attend(torch.nn.Module(), *states(1, 8), None, **asked)
