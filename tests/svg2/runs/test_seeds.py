"""A seed gives the same video with schedulers that draw noise in every step, too."""

import copy

import diffusers
import numpy as np
import pytest
import torch

from svg2.models.finding import model_spec
from svg2.models.loading import load_pipeline
from svg2.models.request import Request
from svg2.runs.compare import compare
from svg2.runs.dense_sparse import generate_dense
from svg2.runs.run import Run

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "stochastic Euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(
        stochastic_sampling=True
    ),
    "LCM": lambda: diffusers.FlowMatchLCMScheduler(),
    "SDE of DPM-Solver": lambda: diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", **FLOW
    ),
    "no noise": lambda: diffusers.UniPCMultistepScheduler(**FLOW),
}


@pytest.fixture(scope="module")
def loaded(model):
    return load_pipeline(model_spec(model), "fp32", "cpu")


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_noise_of_the_scheduler_follows_the_seed_on_both_sides(model, loaded, make):
    pipe = copy.copy(loaded)
    pipe.scheduler = make()
    run = Run.of(Request("a red ball", model=model, dtype="fp32", device="cpu", seed=5))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    made = compare(run.with_settings(top_p=1.0), pipe)
    psnr = made.result["psnr_db"]
    assert psnr is None or psnr >= 60, "the same noise on both sides"
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is left alone"
    torch.manual_seed(2)
    again = generate_dense(pipe, run)
    np.testing.assert_array_equal(again.frames, made.dense.frames)
    other = generate_dense(pipe, run.with_prompt("a red ball", seed=6))
    assert not np.array_equal(other.frames, made.dense.frames)
