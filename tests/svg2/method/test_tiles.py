"""Masks by place: tiles, Sparse VideoGen and Radial attention, against masks of single tokens."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import svg2
from svg2.errors import ConfigError
from svg2.method.selection.radial import radii
from svg2.method.selection.svg1 import distances
from svg2.method.selection.tiles import Offsets, Tiling

BY_PLACE = ("svg1", "radial")

sides = st.integers(1, 9)
grids = st.tuples(sides, sides, sides)


def tokens(grid, heads=2, batch=1, dim=8, seed=0):
    shape = (3, batch, heads, math.prod(grid), dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).unbind()


def attend(method, grid, num_q, num_k, *, heads=2, batch=1, seed=0, **budget):
    q, k, v = tokens(grid, heads, batch, seed=seed)
    config = svg2.SVG2Config(method=method, num_q_clusters=num_q, num_k_clusters=num_k, **budget)
    return (q, k, v), svg2.sparse_attention(q, k, v, config, grid=grid)


def places(grid):
    """Frame, row and column of each token, in the order of tokens."""
    return list(itertools.product(*map(range, grid)))


def by_token(plan):
    """The kept pairs of tokens, [B, H, N, N]."""
    batch, heads = (torch.arange(size) for size in plan.kept.shape[:2])
    return plan.kept[
        batch[:, None, None, None],
        heads[:, None, None],
        plan.q_clusters.labels.long()[..., :, None],
        plan.k_clusters.labels.long()[..., None, :],
    ]


@given(grids, st.integers(1, 200))
def test_a_tiling_is_a_partition_into_boxes_of_nearly_equal_sides(grid, most):
    tiling = Tiling.of(grid, most)
    labels = tiling.labels(torch.device("cpu")).tolist()
    count = math.prod(tiling.counts)
    assert count <= most
    assert set(labels) == set(range(count))
    members = {label: [] for label in range(count)}
    for label, place in zip(labels, places(grid), strict=True):
        members[label].append(place)
    extents = []
    centres = tiling.centres(torch.device("cpu"))
    for label, its in members.items():
        axes = [sorted(set(axis)) for axis in zip(*its, strict=True)]
        assert its == list(itertools.product(*axes)), "a box"
        assert all(axis == list(range(axis[0], axis[-1] + 1)) for axis in axes), "with no hole"
        assert centres[label].tolist() == [(axis[0] + axis[-1]) / 2 for axis in axes]
        extents.append([len(axis) for axis in axes])
    for axis in zip(*extents, strict=True):
        assert max(axis) - min(axis) <= 1
    if most >= grid[0]:
        assert all(frames == 1 for frames, _, _ in extents)


def test_tiles_are_nearly_square():
    assert Tiling.of((9, 24, 24), 400).counts == (9, 6, 7)
    assert Tiling.of((9, 24, 24), 24).counts == (9, 1, 2)
    assert Tiling.of((21, 45, 80), 1000).counts == (21, 5, 9)
    assert Tiling.of((9, 24, 24), 5).counts == (5, 1, 1)
    assert Tiling.of((2, 3, 4), 10**6).counts == (2, 3, 4)


@pytest.mark.parametrize("method", BY_PLACE)
@pytest.mark.parametrize("density", [0.1, 0.35])
def test_what_is_kept_is_masked_attention(method, density):
    (q, k, v), result = attend(method, (3, 4, 5), 12, 30, density=density)
    mask = by_token(result.plan)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    torch.testing.assert_close(result.out.double(), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.density, mask.double().mean((-1, -2)))


@pytest.mark.parametrize("method", BY_PLACE)
@pytest.mark.parametrize("whole", [{"density": 1.0}, {"top_p": 1.0}])
def test_the_whole_budget_is_dense(method, whole):
    (q, k, v), result = attend(method, (3, 4, 5), 7, 13, **whole)
    assert (result.density == 1).all()
    torch.testing.assert_close(
        result.out, F.scaled_dot_product_attention(q, k, v), rtol=0, atol=1e-5
    )


@settings(max_examples=40)
@given(
    st.sampled_from(BY_PLACE), grids, st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 1.0)
)
def test_the_budget_is_spent_and_not_passed(method, grid, num_q, num_k, density):
    n = math.prod(grid)
    _, result = attend(method, grid, min(num_q, n), min(num_k, n), density=density)
    plan = result.plan
    pairs = plan.q_clusters.sizes[..., :, None] * plan.k_clusters.sizes[..., None, :]
    largest = pairs.max().item() / n**2
    # The nearest tile of each query tile is kept whatever the budget.
    always = (plan.q_clusters.sizes * plan.k_clusters.sizes.amax(-1, keepdim=True)).sum(-1)
    most = torch.maximum(torch.tensor(density, dtype=torch.float64), always.double() / n**2)
    assert (result.density <= most + 1e-12).all()
    # Rows that end at the same place, to a rounding, are kept or left together.
    assert (result.density >= min(density, 1.0) - 2 * largest * plan.kept.shape[2]).all()
    assert plan.kept.any(-1).all()


@pytest.mark.parametrize("method", BY_PLACE)
def test_top_p_sets_how_wide(method):
    densities = [
        attend(method, (3, 6, 6), 12, 27, top_p=p, min_keep_ratio=0.0)[1].density.mean()
        for p in (0.2, 0.5, 0.9)
    ]
    assert densities == sorted(densities)
    assert 0 < densities[0] < densities[-1] < 1


def offsets_of_tokens(grid):
    """Each token a tile."""
    at = torch.tensor(places(grid)).double()
    between = at[:, None] - at
    return Offsets(between[..., 0].abs(), between[..., 1:].norm(dim=-1), at[:, 0], 1.0)


def test_spatial_heads_see_whole_frames_and_temporal_heads_their_place():
    grid = (4, 3, 3)
    spatial, temporal, spatial_first, temporal_first = distances(offsets_of_tokens(grid))
    at = places(grid)
    row = at.index((2, 1, 1))

    def nearest(distance, count):
        return {at[i] for i in distance[row].argsort(stable=True)[:count].tolist()}

    frame = {place for place in at if place[0] == 2}
    assert nearest(spatial, 9) == frame
    assert nearest(spatial, 27) == {place for place in at if place[0] in (1, 2, 3)}
    assert nearest(temporal, 4) == {(t, 1, 1) for t in range(4)}
    first = {place for place in at if place[0] == 0}
    assert nearest(spatial_first, 9) == nearest(temporal_first, 9) == first
    assert nearest(spatial_first, 18) == first | frame
    assert nearest(temporal_first, 12) == first | {(t, 1, 1) for t in range(4)}


def seen_radially(query, key, radius):
    """The definition in plain words, for tokens as tiles and without the first frame."""
    distance = abs(query[0] - key[0])
    place = math.dist(query[1:], key[1:])
    if distance == 0:
        return place / 4 <= radius
    octave = math.floor(math.log2(distance))
    window = radius / 2**octave
    if window >= 1:
        return place <= window
    step = 2 ** math.ceil(math.log2(1 / window))  # of so many frames one is seen
    return place == 0 and distance % step == 0


def test_a_radial_window_halves_as_the_distance_doubles():
    grid = (17, 3, 3)
    to = offsets_of_tokens(grid)
    found, at = radii(to), places(grid)
    row = at.index((9, 1, 1))
    for radius in (0.3, 0.5, 0.9, 1.0, 1.5, 2.0, 3.0, 6.0, 12.0):
        for j, key in enumerate(at):
            wanted = seen_radially(at[row], key, radius)
            if key[0] == 0:  # like a neighbouring frame
                wanted |= seen_radially((1, 1, 1), key, radius) and key[1:] != (1, 1)
                wanted |= key[1:] == (1, 1)
            assert (found[row, j] <= radius).item() == wanted, (radius, key)


def test_a_head_is_what_its_attention_is():
    """The first head attends within its frame, the second to its place."""
    grid, dim = (8, 8, 8), 64
    at = torch.tensor(places(grid))
    frame = F.one_hot(at[:, 0], 8).float()
    place = F.one_hot(at[:, 1] * 8 + at[:, 2], 64).float()
    k = torch.stack([F.pad(frame, (0, dim - 8)), place])[None]
    v = torch.randn(1, 2, len(at), dim, generator=torch.Generator().manual_seed(0))
    config = svg2.SVG2Config(method="svg1", density=0.13, num_q_clusters=128, num_k_clusters=128)
    plan = svg2.sparse_attention(80 * k, k, v, config, grid=grid).plan
    mask = by_token(plan)[0]
    same_frame = at[:, 0, None] == at[:, 0]
    same_place = (at[:, None, 1:] == at[:, 1:]).all(-1)
    assert (mask[0] & same_frame).sum() / same_frame.sum() > 0.95
    assert mask[1][same_place].all()
    assert not mask[0][same_place].all()


@pytest.mark.parametrize("method", BY_PLACE)
def test_heads_of_a_batch_are_alone(method):
    grid = (3, 4, 4)
    (q, k, v), both = attend(method, grid, 12, 24, batch=2, density=0.3)
    config = svg2.SVG2Config(method=method, num_q_clusters=12, num_k_clusters=24, density=0.3)
    alone = svg2.sparse_attention(q[1:], k[1:], v[1:], config, grid=grid)
    torch.testing.assert_close(both.out[1:], alone.out)


@pytest.mark.parametrize("method", BY_PLACE)
def test_a_grid_is_asked_for_and_must_fit(method):
    q, k, v = tokens((2, 3, 4))
    config = svg2.SVG2Config(method=method, num_q_clusters=4, num_k_clusters=8)
    with pytest.raises(ConfigError, match=rf"method={method} needs the grid of tokens .*\.$"):
        svg2.sparse_attention(q, k, v, config)
    with pytest.raises(ConfigError, match=r"has 30 tokens, but q has 24\.$"):
        svg2.sparse_attention(q, k, v, config, grid=(2, 3, 5))
