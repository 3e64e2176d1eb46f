"""Dense and sparse in turns: whose turn it is, what ends it, and what it must not change."""

import copy
import threading

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from svg2.errors import Cancelled
from svg2.runs import race as racing
from svg2.runs.dense_sparse import generate_dense, generate_sparse
from svg2.runs.progress import Watch
from svg2.runs.race import race, why_no_race
from svg2.runs.turns import Generators, Turns


def play(turns: Turns, side: int, steps: int, log: list, fail_at: int | None = None) -> None:
    turn = turns.sides[side]
    try:
        turn.begin()
        turn.step_done(0)
        for step in range(1, steps + 1):
            log.append("AB"[side])
            if step == fail_at:
                turns.end()
                return
            turn.step_done(step)
    except Cancelled:
        log.append(f"{'AB'[side]} cancelled")
    finally:
        turn.leave()


def played(*sides: dict) -> str:
    turns, log = Turns(Generators(torch.device("cpu"))), []
    threads = [
        threading.Thread(target=play, args=(turns, i), kwargs={"log": log, **side})
        for i, side in enumerate(sides)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    return " ".join(log)


@pytest.mark.parametrize(
    ("steps", "order"),
    [(1, "A B"), (2, "A B B A"), (5, "A B B A A B B A A B"), (6, "A B B A A B B A A B B A")],
)
def test_the_nth_steps_follow_each_other_and_neither_is_always_first(steps, order):
    assert played({"steps": steps}, {"steps": steps}) == order


def test_one_side_may_be_shorter():
    assert played({"steps": 1}, {"steps": 4}) == "A B B B B"


def test_a_failure_of_one_ends_the_wait_of_the_other():
    assert played({"steps": 4, "fail_at": 2}, {"steps": 4}) == "A B B A B cancelled"


def test_turns_change_neither_side(pipe, run):
    dense, sparse = race(pipe, run)
    np.testing.assert_array_equal(dense.frames, generate_dense(pipe, run).frames)
    alone = generate_sparse(pipe, run)
    np.testing.assert_array_equal(sparse.frames, alone.frames)
    np.testing.assert_array_equal(sparse.stats.call_density, alone.stats.call_density)
    assert [r.position for r in sparse.records] == [r.position for r in alone.records]


def test_schedulers_that_draw_noise_draw_what_they_draw_alone(pipe, run):
    before, stock = torch.get_rng_state(), pipe.scheduler
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    try:
        dense, sparse = race(pipe, run)
        np.testing.assert_array_equal(dense.frames, generate_dense(pipe, run).frames)
        np.testing.assert_array_equal(sparse.frames, generate_sparse(pipe, run).frames)
    finally:
        pipe.scheduler = stock
    assert torch.equal(torch.get_rng_state(), before)


def test_the_second_pipeline_has_the_weights_of_the_first_and_nothing_else(pipe):
    twin = racing._twin(pipe)
    ours, theirs = pipe.transformer, twin.transformer
    assert theirs is not ours
    for (name, one), (_, other) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert one is other, name
    assert theirs.blocks[0].attn1.processor is not ours.blocks[0].attn1.processor
    assert twin.scheduler is not pipe.scheduler
    assert twin.vae is pipe.vae


class Unlucky(Exception):
    pass


@pytest.mark.parametrize("side", ["generate_dense", "generate_sparse"])
def test_an_error_of_one_side_is_raised_and_the_pipeline_stays_usable(
    pipe, run, monkeypatch, side
):
    def fail(*_args, **_kwargs):
        raise Unlucky

    monkeypatch.setattr(racing, side, fail)
    with pytest.raises(Unlucky):
        race(pipe, run)
    monkeypatch.undo()
    assert len(race(pipe, run)) == 2


def test_cancelling_after_the_dense_side_is_done_keeps_it(pipe, run):
    seen = []
    name = run.method.name
    watch = Watch(seen.append, lambda: any((p.run, p.stage) == (name, "decode") for p in seen))
    with pytest.raises(Cancelled) as caught:
        race(pipe, run, watch)
    np.testing.assert_array_equal(caught.value.dense.frames, generate_dense(pipe, run).frames)
    assert watch.rivals == ()


def test_a_failure_of_one_side_does_not_cancel_the_watch(pipe, run, monkeypatch):
    def fail(*_args, **_kwargs):
        raise Unlucky

    monkeypatch.setattr(racing, "generate_sparse", fail)
    watch = Watch()
    with pytest.raises(Unlucky):
        race(pipe, run, watch)
    assert not watch.is_cancelled


def why_not(pipe, **attributes) -> str:
    changed = copy.copy(pipe)
    transformer = copy.copy(pipe.transformer)
    for name, value in attributes.items():
        object.__setattr__(transformer, name, value)
    object.__setattr__(changed, "transformer", transformer)
    return str(why_no_race(changed))


def test_what_can_not_take_turns_says_why(pipe):
    assert why_no_race(pipe) is None
    assert "moved in and out" in why_not(pipe, _hf_hook=object())
    assert "quantized" in why_not(pipe, hf_quantizer=object())
    assert "compiled" in why_not(pipe, _compiled_call_impl=torch.nn.Identity())
    assert "hooks" in why_not(pipe, forward=pipe.transformer.forward)


def test_compiled_or_hooked_blocks_are_found_too(pipe):
    block = pipe.transformer.blocks[1]
    for name in ("_compiled_call_impl", "forward"):
        vars(block)[name] = block.forward
        try:
            assert why_no_race(pipe) is not None
        finally:
            del vars(block)[name]
    assert why_no_race(pipe) is None
