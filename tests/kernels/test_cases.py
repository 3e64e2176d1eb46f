"""The tests' own tools can fail."""

import pytest
import torch

from tests.kernels.cases import assert_as_exact_as, grid


def test_a_grid_always_runs_each_pair_of_values_and_leaves_the_rest_to_the_night():
    params = grid("ab", "cd", "ef")
    assert len(params) == 8
    always = {"".join(p.values) for p in params if not p.marks}
    assert always == {"ace", "adf", "bcf", "bde"}
    assert [mark.name for p in params for mark in p.marks] == ["nightly"] * 4


def test_what_takes_long_is_left_to_the_night():
    params = grid("abc", "de", at_night="c")
    assert ["".join(p.values) for p in params if p.marks] == ["cd", "ce"]


def test_a_grid_of_two_axes_is_full():
    assert ["".join(p.values) for p in grid("ab", "cd") if not p.marks] == ["ac", "ad", "bc", "bd"]


def test_errors_beyond_plain_arithmetic_are_found():
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    plain = torch.tensor([1.0, 2.01]).half()
    assert_as_exact_as(torch.tensor([1.0, 2.02]).half(), plain, exact)
    for wrong in (2.05, torch.nan):
        with pytest.raises(AssertionError):
            assert_as_exact_as(torch.tensor([1.0, wrong]).half(), plain, exact)
