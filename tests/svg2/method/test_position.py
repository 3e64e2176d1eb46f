"""Blocks of neighbouring tokens, and attention over them."""

import torch
from torch.nn import functional as F

import svg2
from svg2.method.selection.position import cluster


def test_blocks_are_runs_of_neighbours_with_the_means_of_their_tokens():
    x = torch.arange(20.0).reshape(1, 1, 10, 2)
    blocks = cluster(x, 4, svg2.SVG2Config())
    assert blocks.labels.flatten().tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert blocks.sizes.flatten().tolist() == [2, 3, 2, 3]
    assert blocks.order.perm.flatten().tolist() == list(range(10))
    assert blocks.centroids[0, 0].tolist() == [[1, 2], [6, 7], [11, 12], [16, 17]]


def test_attention_over_blocks_is_masked_attention():
    q, k, v = torch.randn(3, 1, 2, 50, 16, generator=torch.Generator().manual_seed(0)).unbind()
    config = svg2.SVG2Config(
        method="position", num_q_clusters=5, num_k_clusters=10, top_p=0.4, min_keep_ratio=0.0
    )
    result = svg2.sparse_attention(q, k, v, config)
    mask = result.plan.kept.repeat_interleave(10, 2).repeat_interleave(5, 3)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    torch.testing.assert_close(result.out.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.density, mask.double().mean((-1, -2)))
    assert (result.density < 1).all()
