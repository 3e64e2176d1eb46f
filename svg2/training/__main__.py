"""Train the built-in model: `python -m svg2.training STAGE --work DIR`, one stage after another.

Every stage resumes from what DIR holds. On more cores or GPUs, start the dit stage with torchrun.
"""

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist

from svg2.training.data import render_clips
from svg2.training.dit import encode_clips, load_denoiser, load_vae, train_dit
from svg2.training.evaluate import evaluate_shipped
from svg2.training.pipeline import DEFAULTS, assemble, ship
from svg2.training.vae import train_vae

SHIPPED = Path(__file__).parents[2] / "assets" / "models" / "builtin"


def main(argv: list[str] | None = None) -> None:
    """Run one stage."""
    args = _parser().parse_args(argv)
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    clips, vae, latents = work / "clips", work / "vae.pt", work / "latents.npz"
    encoder = args.start if args.start and not vae.exists() else vae
    decoder, denoiser = work / "decoder.pt", work / "dit.pt"
    device = args.device
    if args.stage == "render":
        render_clips(clips, args.clips, DEFAULTS["num_frames"], DEFAULTS["height"], args.seed)
    elif args.stage == "vae":
        train_vae(clips, vae, args.minutes, seed=args.seed, device=device)
    elif args.stage == "decoder":
        train_vae(
            *(clips, decoder, args.minutes), frozen_encoder=encoder, seed=args.seed, device=device
        )
    elif args.stage == "dit":
        if "RANK" in os.environ:
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        first = not dist.is_initialized() or dist.get_rank() == 0
        if first and not latents.exists():
            encode_clips(clips, encoder, latents, device)
        if dist.is_initialized():
            dist.barrier()
        train_dit(
            *(latents, denoiser, args.minutes), start=args.start, seed=args.seed, device=device
        )
    elif args.stage == "ship":
        model, _ = load_denoiser(denoiser)
        autoencoder = load_vae(decoder if decoder.exists() else encoder, latents)
        ship(assemble(autoencoder, model.transformer, model.text_encoder), args.out)
    elif args.stage == "evaluate":
        report = evaluate_shipped(str(args.out), args.prompts)
        (work / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps({k: v for k, v in report.items() if k != "rows"}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m svg2.training", description=__doc__)
    parser.add_argument("stage", choices=("render", "vae", "decoder", "dit", "ship", "evaluate"))
    parser.add_argument("--work", type=Path, required=True, help="folder of clips and checkpoints")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder of the shipped pipeline")
    parser.add_argument("--start", type=Path, help="shipped pipeline to go on from")
    parser.add_argument("--clips", type=int, default=2000, help="clips to render")
    parser.add_argument("--minutes", type=float, default=30, help="wall time of a training stage")
    parser.add_argument("--prompts", type=int, default=40, help="held-out prompts to evaluate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


if __name__ == "__main__":
    main()
