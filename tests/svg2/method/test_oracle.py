"""Exact top-p per token against its definition, one query at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import svg2
from svg2.errors import ConfigError
from svg2.method.call import TextTokens, sparse_call
from svg2.method.clustering import Centroids
from svg2.method.selection.oracle import MAX_TOKENS


def tokens(n, heads=2, batch=1, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(3, batch, heads, n, dim, generator=generator)).unbind()


def config(**budget):
    return svg2.SVG2Config(method="oracle", num_q_clusters=1, num_k_clusters=1, **budget)


def top_p_slowly(P, top_p, ratio):
    """The fewest keys whose mass reaches `top_p`, and at least the share `ratio`."""
    kept = torch.zeros_like(P, dtype=torch.bool)
    for row, mask in zip(P.flatten(0, 2), kept.flatten(0, 2), strict=True):
        before = 0.0
        for rank, key in enumerate(row.argsort(descending=True).tolist()):
            mask[key] = before < top_p or rank < ratio * len(row) - 1e-9
            before += row[key].item()
    return kept


@settings(max_examples=30)
@given(st.integers(1, 40), st.floats(0.05, 0.99), st.sampled_from([0.0, 0.1]), st.integers(0, 99))
def test_top_p_is_masked_attention(n, top_p, ratio, seed):
    q, k, v = tokens(n, seed=seed)
    result = svg2.sparse_attention(q, k, v, config(top_p=top_p, min_keep_ratio=ratio))
    P = torch.softmax(q.double() @ k.double().mT / 8**0.5, -1)
    sums = P.sort(-1, descending=True).values.cumsum(-1)
    if (sums - top_p).abs().min() < 1e-5:  # fp32 may see it on the other side
        return
    mask = top_p_slowly(P, top_p, ratio)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    torch.testing.assert_close(result.out.double(), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.density, mask.double().mean((-1, -2)))
    torch.testing.assert_close(result.compute_density, result.density)
    mass = (P * mask).sum(-1).mean(-1).float()
    torch.testing.assert_close(result.plan.kept_mass(), mass, rtol=0, atol=1e-5)


@settings(max_examples=30)
@given(st.integers(2, 60), st.floats(0.02, 0.999), st.integers(0, 99))
def test_a_density_is_one_p_for_all_heads_and_is_not_passed(n, density, seed):
    q, k, v = tokens(n, heads=3, seed=seed)
    q = q * torch.tensor([0.1, 1.0, 3.0])[:, None, None]  # heads that need more, and less
    result = svg2.sparse_attention(q, k, v, config(density=density))
    P = torch.softmax(q.double() @ k.double().mT / 8**0.5, -1)
    rising, order = P.sort(-1)
    down_to = torch.zeros_like(P).scatter_(-1, order, rising.cumsum(-1))
    heaviest = torch.zeros_like(P, dtype=torch.bool).scatter_(-1, order[..., -1:], True)
    others = down_to[~heaviest].sort(descending=True).values
    room = int(density * P.numel()) - int(heaviest.sum())
    spent = round(result.density.sum().item() * n * n) - int(heaviest.sum())
    assert spent <= max(0, room)
    # What is left over is less than the keys of one bin of mass.
    if 0 <= room < len(others):
        assert spent == room or others[room] >= others[spent] * (1 - 1e-3)
    for h in range(3):
        count = round(result.density[0, h].item() * n * n)
        least = others[max(0, spent - 1)] if spent else 2.0
        wanted = (heaviest[0, h] | (down_to[0, h] >= least)).sum().item()
        assert abs(count - wanted) <= 1


@pytest.mark.parametrize("whole", [{"density": 1.0}, {"top_p": 1.0}])
def test_the_whole_budget_is_dense(whole):
    q, k, v = tokens(300, batch=2)
    result = svg2.sparse_attention(q, k, v, config(**whole))
    assert (result.density == 1).all()
    torch.testing.assert_close(
        result.out, F.scaled_dot_product_attention(q, k, v), rtol=0, atol=1e-5
    )


def test_keys_of_equal_weight_are_kept_or_left_together():
    q, k, v = (torch.ones(1, 1, 20, 4) for _ in range(3))
    v[..., 0] = torch.arange(20.0)
    result = svg2.sparse_attention(q, k, v, config(density=0.5))
    torch.testing.assert_close(result.out, v.mean(2, keepdim=True).expand_as(v))


def test_text_is_always_seen_and_sees_all():
    q, k, v = tokens(50)
    text = TextTokens(*(x[:, :, :7].clone() + 1 for x in (q, k, v)))
    result = sparse_call(q, k, v, config(top_p=0.5), Centroids(), text=text)
    P = torch.softmax(q.double() @ k.double().mT / 8**0.5, -1)
    mask = top_p_slowly(P, 0.5, 0.1)
    keys, values = (torch.cat(x, 2).double() for x in ((k, text.k), (v, text.v)))
    seen = F.pad(mask, (0, 7), value=True)
    exact = F.scaled_dot_product_attention(q.double(), keys, values, attn_mask=seen)
    torch.testing.assert_close(result.out.double(), exact, rtol=0, atol=1e-5)
    exact = F.scaled_dot_product_attention(text.q.double(), keys, values)
    torch.testing.assert_close(result.text_out.double(), exact, rtol=0, atol=1e-5)
    pairs = mask.sum((-1, -2)) + 7 * (2 * 50 + 7)
    torch.testing.assert_close(result.plan.density(), pairs.double() / 57**2)


def test_processes_that_share_the_heads_share_the_budget():
    """Two processes, one after the other: each is told what the other one counted."""
    q, k, v = tokens(60, heads=4)
    q = q * torch.tensor([0.1, 0.5, 1.0, 3.0])[:, None, None]
    whole = svg2.sparse_attention(q, k, v, config(density=0.2))
    counted, parts = [], (slice(0, 2), slice(2, 4))
    for heads in parts:
        own = []

        def note(x, own=own):
            own.append(x)
            return x

        sparse_call(
            *(x[:, heads] for x in (q, k, v)), config(density=0.2), Centroids(), sum_heads=note
        )
        counted.append(own)
    sums = [a + b for a, b in zip(*counted, strict=True)]
    for heads in parts:
        later = iter(sums)
        result = sparse_call(
            *(x[:, heads] for x in (q, k, v)),
            config(density=0.2),
            Centroids(),
            sum_heads=lambda x, later=later: next(later),
        )
        torch.testing.assert_close(result.out, whole.out[:, heads])


def test_a_long_video_is_refused():
    q = torch.zeros(1, 1, MAX_TOKENS + 1, 1)
    with pytest.raises(ConfigError, match=r"method=oracle .* 16384 of them, not 16385: .*\.$"):
        svg2.sparse_attention(q, q, q, config())
