"""Run by torchrun: models dense and sparse over all processes; the first saves the frames."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from svg2.runs.distributed import process_group


def make(model: str) -> None:
    """All runs of the pipeline in folder `model`, into frames.npz beside its files."""
    import svg2
    from svg2.hooks.context_parallel import context_parallel
    from svg2.models.finding import model_spec
    from svg2.models.loading import load_pipeline
    from tests.svg2.tiny_families import PROMPT

    torch.set_num_threads(1)
    pipe, spec = load_pipeline(model, "fp32", "cpu"), model_spec(model)
    arguments = {
        "prompt": PROMPT,
        "height": spec.height,
        "width": spec.width,
        "num_frames": spec.num_frames,
        "num_inference_steps": spec.num_inference_steps,
        "max_sequence_length": spec.max_sequence_length,
        "output_type": "np",
    }
    if spec.kind.takes == "image":
        noise = np.random.default_rng(0).integers(0, 255, (spec.height, spec.width, 3), np.uint8)
        arguments["image"] = Image.fromarray(noise)

    def generate():
        return pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames[0]

    frames = {"before": generate()}
    with context_parallel(pipe):
        frames["dense"] = generate()
        with svg2.measure_dense(pipe):
            frames["measured"] = generate()
        with svg2.enable(pipe, spec.config) as run:
            frames["sparse"] = generate()
    frames["after"] = generate()
    with svg2.enable(pipe, spec.config) as alone:
        frames["alone"] = generate()
    if dist.get_rank() == 0:
        frames = {name: np.stack([np.asarray(f) for f in clip]) for name, clip in frames.items()}
        densities = {
            "density": run.stats.call_density,
            "density_alone": alone.stats.call_density,
            "n_tokens": np.array([run.stats.n_tokens, alone.stats.n_tokens]),
        }
        np.savez(Path(model, "frames.npz"), **frames, **densities)


if __name__ == "__main__":
    with process_group("cpu"):
        for model in sys.argv[1:]:
            make(model)
