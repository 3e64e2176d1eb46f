"""The two-process runs of the tests: torchrun starts them once, and the tests read their files.

    python -m tests.svg2.two_processes FOLDER PORT...

Input: the models `FOLDER/families/NAME`, and `FOLDER/commands.json` with command lines by name.
Each command gets its own port. Output: `families/NAME/frames.npz` per model, and `NAME.RANK.json`
per command and process.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from svg2.cli import main
from svg2.method.selection import ROUTED_METHOD
from svg2.runs.distributed import process_group, processes


def make(folder: Path) -> None:
    """Generate with the pipeline in a folder in every mode, and write the folder's frames.npz."""
    import svg2
    from svg2.hooks.context_parallel import context_parallel
    from svg2.models.finding import model_spec
    from svg2.models.loading import load_pipeline
    from tests.svg2.tiny_families import PROMPT

    spec = model_spec(str(folder))
    pipe = load_pipeline(spec, "fp32", "cpu")
    arguments = {
        "prompt": PROMPT,
        "height": spec.height,
        "width": spec.width,
        "num_frames": spec.num_frames,
        "num_inference_steps": 2,
        "max_sequence_length": spec.max_sequence_length,
        "output_type": "np",
    }
    if spec.kind.takes == "image":
        noise = np.random.default_rng(0).integers(0, 255, (spec.height, spec.width, 3), np.uint8)
        arguments["image"] = Image.fromarray(noise)
    config = spec.config.replace(warmup_fraction=0.0)
    routed = config.replace(method=ROUTED_METHOD, density=0.3)  # a budget of all heads together
    by_place = config.replace(method="svg1")  # needs the grid of the whole video

    def generate():
        return pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames[0]

    frames = {"before": generate()}
    with context_parallel(pipe):
        frames["dense"] = generate()
        with svg2.measure_dense(pipe):
            frames["measured"] = generate()
        with svg2.enable(pipe, config) as run:
            frames["sparse"] = generate()
        with svg2.enable(pipe, routed) as run_routed:
            frames["routed"] = generate()
        with svg2.enable(pipe, by_place):
            frames["by_place"] = generate()
    frames["after"] = generate()
    with svg2.enable(pipe, config) as alone:
        frames["alone"] = generate()
    with svg2.enable(pipe, routed) as routed_alone:
        frames["routed_alone"] = generate()
    with svg2.enable(pipe, by_place):
        frames["by_place_alone"] = generate()
    if dist.get_rank() == 0:
        frames = {name: np.stack([np.asarray(f) for f in clip]) for name, clip in frames.items()}
        densities = {
            "density": run.stats.call_density,
            "density_alone": alone.stats.call_density,
            "density_routed": run_routed.stats.call_density,
            "density_routed_alone": routed_alone.stats.call_density,
            "n_tokens": np.array([run.stats.n_tokens, alone.stats.n_tokens]),
        }
        np.savez(folder / "frames.npz", **frames, **densities)


def answer(command: list[str]) -> dict[str, object]:
    """Exit code, stdout and stderr of a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def next_port(ports: list[str]) -> None:
    """Use a new port for the next group: the launcher's store keeps the last group's addresses."""
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_PORT": ports.pop()}


if __name__ == "__main__":
    root, ports = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    with process_group("cpu"):
        for folder in sorted((root / "families").iterdir()):
            make(folder)
    for name, command in json.loads((root / "commands.json").read_text()).items():
        next_port(ports)
        text = json.dumps(answer(command))
        (root / f"{name}.{processes().rank}.json").write_text(text)
