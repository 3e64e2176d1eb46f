"""How much faster a run was, from times of known values."""

import pytest

from svg2.runs.timing import Steps, timing


def steps(seconds, attention, dense=()):
    return Steps(seconds, attention, [i in dense for i in range(len(seconds))])


def slower(run, times):
    return Steps(
        [x * times for x in run.seconds], [x * times for x in run.attention], run.is_dense
    )


DENSE = steps([10.0] * 6, [8.0] * 6, dense=range(6))
FIRST_DENSE_THEN_SPARSE = steps([10.0, 5.0, 4.0, 4.0, 4.0, 4.0], [8, 3, 2, 2, 2, 2], dense=[0])


def test_equal_steps_give_the_ratio_of_the_loops():
    found = timing(DENSE, FIRST_DENSE_THEN_SPARSE, in_turns=True)
    assert found.speedup == pytest.approx(60 / 31)
    assert found.quartiles == (2.5, 2.5)
    assert found.shared_ratio == 1
    assert not found.is_scaled
    assert not found.is_disturbed


def test_one_step_that_was_disturbed_does_not_decide():
    late = [10.0, 5.0, 4.0, 40.0, 4.0, 4.0]
    found = timing(DENSE, steps(late, [8, 3, 2, 38, 2, 2], dense=[0]), in_turns=True)
    assert found.speedup == pytest.approx(60 / 31)  # the ratio of the loops is 60 / 67


def test_the_first_sparse_step_and_dense_ones_count_as_they_were():
    cold = steps([10.0, 20.0, 4.0, 4.0, 4.0, 4.0], [8, 18, 2, 2, 2, 2], dense=[0])
    assert timing(DENSE, cold, in_turns=True).speedup == pytest.approx(60 / 46)


def test_a_machine_slow_for_one_side_alone_is_said():
    slow = steps([3 * x for x in FIRST_DENSE_THEN_SPARSE.seconds], [24, 9, 6, 6, 6, 6], dense=[0])
    found = timing(DENSE, slow, in_turns=True)
    assert found.shared_ratio == pytest.approx(3)
    assert found.is_disturbed
    assert not timing(DENSE, steps([4.15] * 6, [2.0] * 6), in_turns=True).is_disturbed
    assert timing(DENSE, steps([4.3] * 6, [2.0] * 6), in_turns=True).is_disturbed


def test_runs_at_different_times_are_scaled_by_the_work_they_share():
    found = timing(DENSE, slower(FIRST_DENSE_THEN_SPARSE, 1.25), in_turns=False)
    assert found.speedup == pytest.approx(60 / 31)
    assert found.is_scaled
    assert not found.is_disturbed
    assert timing(DENSE, slower(FIRST_DENSE_THEN_SPARSE, 1.5), in_turns=False).is_disturbed


def test_attention_that_can_not_be_told_apart_leaves_the_times_alone():
    unknown = steps([4.0] * 6, [None] * 6)
    found = timing(DENSE, unknown, in_turns=False)
    assert found.speedup == pytest.approx(2.5)
    assert found.shared_ratio is None
    assert not found.is_scaled
    assert not found.is_disturbed


def test_a_run_without_sparse_steps_is_compared_step_by_step():
    found = timing(DENSE, steps([5.0] * 6, [3.0] * 6, dense=range(6)), in_turns=True)
    assert found.speedup == pytest.approx(2)
    assert found.quartiles is None
