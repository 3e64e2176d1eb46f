"""What the benchmarks attend to, and the check of a result before it is timed."""

import pytest
import torch

from svg2.bench.baselines import flex_padded
from svg2.bench.exact import ExactRows
from svg2.bench.workload import (
    compute_density_of,
    density_of,
    make_clustered,
    published_selection,
    select_density,
)
from tests.svg2.bench.workloads import SMALL, WITH_TEXT


def test_density_is_met_from_above():
    clustered = make_clustered(SMALL)
    for asked in (0.2, 0.5):
        top_p, kept, density = select_density(clustered, asked)
        assert 0 < top_p < 1
        # One more cluster for one query cluster is the least that can be added.
        assert asked <= density < asked + 0.2
        assert density == density_of(clustered, kept)
        virtual = compute_density_of(clustered, kept) - density
        assert 0 < virtual <= SMALL.num_k_clusters / SMALL.tokens
    assert select_density(clustered, 1.0)[2] == 1.0


def test_workload_is_ragged_and_repeats():
    clustered, again = make_clustered(SMALL), make_clustered(SMALL)
    assert clustered.k_clusters.sizes.unique().numel() > 3
    assert torch.equal(clustered.k_sorted, again.k_sorted)
    assert torch.equal(clustered.stand_ins.values, again.stand_ins.values)


def test_published_selection_keeps_a_tenth_at_least():
    kept = published_selection(make_clustered(SMALL))
    assert kept.shape == (1, 2, 6, 12)
    assert kept.sum(-1).min() >= 2  # a tenth of 12 clusters, rounded up
    assert not kept.all()


@pytest.mark.parametrize("workload", [SMALL, WITH_TEXT])
def test_baselines_are_held_to_the_same_rows(workload):
    clustered = make_clustered(workload)
    _, kept, density = select_density(clustered, 0.3)
    assert 0.3 <= density < 0.6
    expected = ExactRows(clustered, kept, has_virtual=False)
    right = flex_padded(clustered, kept)()
    assert expected.error_of(right) < 1e-5
    assert expected.error_of(1.01 * right) > 5e-3
    right[0, 0, 0, 0] = torch.nan
    assert not expected.error_of(right) < 1e-5


def test_text_sees_all_and_is_seen_by_all():
    clustered = make_clustered(WITH_TEXT)
    _, kept, _ = select_density(clustered, 0.3)
    assert kept.shape[-2:] == (7, 13)
    assert kept[..., -1, :].all()
    assert kept[..., -1].all()
    assert clustered.q_offsets[..., -1].tolist() == [[197, 197]]
