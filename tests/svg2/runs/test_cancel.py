"""A run is cancelled between attention calls, wherever it is, and the next one is as ever."""

import numpy as np
import pytest
import torch

from svg2.errors import Cancelled
from svg2.hooks.families import main_attentions
from svg2.runs.compare import compare
from svg2.runs.dense_sparse import generate_dense, generate_sparse
from svg2.runs.progress import Watch


class Counted:
    """Counts calls of self-attention and says that the run is cancelled from the nth on."""

    def __init__(self, pipe, cancel_at: int) -> None:
        self.calls = 0
        self.cancel_at = cancel_at
        self.hooks = [
            attention.module.register_forward_hook(self.count)
            for attention in main_attentions(pipe)
        ]

    def count(self, *_) -> None:
        self.calls += 1

    def __deepcopy__(self, memo):
        return self  # a race copies the transformer with its hooks

    def is_cancelled(self) -> bool:
        return self.calls >= self.cancel_at

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()


WORK = {
    "dense": lambda pipe, run, watch: generate_dense(pipe, run, watch),
    "sparse": lambda pipe, run, watch: generate_sparse(pipe, run, watch),
    "in turns": lambda pipe, run, watch: compare(run, pipe, watch=watch),
    "one after the other": lambda pipe, run, watch: compare(
        run, pipe, watch=watch, in_turns=False
    ),
}


SAMPLE = {
    "dense": (1, 10),
    "sparse": (4, 8),
    "in turns": (1, 10, 17),
    "one after the other": (8,),
}


@pytest.fixture(scope="module")
def frames(pipe, run):
    """Of a run that nobody cancels."""
    return generate_sparse(pipe, run).frames


@pytest.mark.parametrize(
    ("work", "cancel_at"),
    [
        pytest.param(work, at, marks=() if at in SAMPLE[work] else pytest.mark.nightly)
        for work in WORK
        for at in (1, 4, 8, 10, 17)
    ],
)
def test_a_cancelled_run_makes_no_further_attention_call(
    pipe, run, frames, work, cancel_at
) -> None:
    hooks = [len(a.module._forward_pre_hooks) for a in main_attentions(pipe)]
    with Counted(pipe, cancel_at) as counted, pytest.raises(Cancelled):
        WORK[work](pipe, run, Watch(should_cancel=counted.is_cancelled))
    assert counted.calls == cancel_at, "it went on to the end of the step"
    assert [len(a.module._forward_pre_hooks) for a in main_attentions(pipe)] == hooks
    np.testing.assert_array_equal(generate_sparse(pipe, run).frames, frames)


def test_decoding_is_cancelled_between_its_parts(pipe, run) -> None:
    decoded, seen = [], []
    hook = pipe.vae.decoder.register_forward_hook(lambda *_: decoded.append(1))
    watch = Watch(seen.append, should_cancel=lambda: bool(decoded))
    try:
        with pytest.raises(Cancelled):
            generate_dense(pipe, run, watch)
    finally:
        hook.remove()
    assert seen[-1].stage == "decode"
    assert len(decoded) == 1
    assert generate_dense(pipe, run).frames.shape[0] == run.request.num_frames


def test_a_cancel_leaves_torchs_generator_as_it_was(pipe, run) -> None:
    state = torch.get_rng_state()
    with Counted(pipe, 8) as counted, pytest.raises(Cancelled):
        compare(run, pipe, watch=Watch(should_cancel=counted.is_cancelled))
    assert torch.equal(torch.get_rng_state(), state)
