"""The tiny pipeline as a model folder with its own defaults."""

import json
import shutil
from pathlib import Path

LAB = {
    "height": 32,
    "width": 64,
    "num_frames": 5,
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "max_sequence_length": 16,
    "fps": 8,
    "max_tokens": 1000,
    "num_q_clusters": 6,
    "num_k_clusters": 12,
    "kmeans_iters_init": 3,
    "kmeans_iters_step": 1,
    "dense_layers": 0,
}


def make_model_folder(tiny_pipeline_path: Path, folder: Path, **lab) -> Path:
    """A copy of the tiny pipeline with a lab.json: 3 x 4 x 8 = 96 tokens by default."""
    shutil.copytree(tiny_pipeline_path, folder)
    (folder / "lab.json").write_text(json.dumps(LAB | lab))
    return folder
