"""Train the built-in model: `python -m svg2.training STAGE`, one stage after another, or `all`.

The long stages resume from what the work folder holds. On more cores or GPUs, start render, vae,
encode, dit and decoder with torchrun.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from svg2.errors import ModelUnavailable, RequestError
from svg2.method.selection import COMPENSATED_METHOD, METHODS, PAPER_METHOD
from svg2.models.finding import BUILTIN_FOLDER
from svg2.runs.distributed import Processes, process_group, processes
from svg2.training.data import Store, TrainingError, checkpoint_record, render_clips
from svg2.training.dit import encode_clips, load_denoiser, load_vae, redraw_with, train_dit
from svg2.training.evaluate import evaluate_model, make_contact_sheet
from svg2.training.pipeline import DEFAULTS, assemble, ship
from svg2.training.text import train_text
from svg2.training.vae import train_vae

BENCH = Path(__file__).parents[2] / "assets" / "bench"
# Shares of the time of `all`: of a first call, and of a later one, whose VAE is finished.
_FIRST = {
    "render": 0.05,
    "vae": 0.25,
    "encode": 0.15,
    "text": 0.05,
    "dit": 0.37,
    "decoder": 0.05,
}
_LATER = {"render": 0.04, "encode": 0.1, "text": 0.03, "dit": 0.69, "decoder": 0.05}


class Training:
    """The stages, over one work folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        if args.pretrained is not None:
            _check_pipeline(args.pretrained, "name the folder of a shipped one with --pretrained")
        work: Path = args.work
        work.mkdir(parents=True, exist_ok=True)
        self.clips, self.latents = Store(work / "clips"), Store(work / "latents")
        self.vae_path, self.decoder_path = work / "vae.pt", work / "decoder.pt"
        self.text_path, self.denoiser_path = work / "text.pt", work / "dit.pt"
        self.common = {"seed": args.seed, "device": args.device}

    @property
    def encoder(self) -> Path:
        """Where latents come from: the VAE trained here, or else the one to start from.

        Raises:
            TrainingError: there is neither.
        """
        start: Path | None = self.args.pretrained
        if start and not self.vae_path.exists():
            return start
        return _made(self.vae_path, "vae")

    @property
    def needs_text(self) -> bool:
        """Whether a denoiser is yet to begin, under a text encoder that it does not come with."""
        return self.args.pretrained is None and not self.denoiser_path.exists()

    def render(self, minutes: float = float("inf")) -> None:
        frames, size = int(DEFAULTS["num_frames"]), int(DEFAULTS["height"])
        render_clips(self.clips, self.args.vae_clips, frames, size, minutes=minutes, **self.common)

    def vae(self, minutes: float) -> None:
        _made(self.clips.folder, "render")
        train_vae(self.clips, self.vae_path, minutes, start=self.args.pretrained, **self.common)

    def encode(self, minutes: float = float("inf")) -> None:
        count = self.args.clips
        encode_clips(
            *(self.clips, self.latents, self.encoder, count), minutes=minutes, **self.common
        )

    def text(self, minutes: float = float("inf")) -> None:
        if not self.text_path.exists():
            train_text(self.text_path, minutes=minutes, **self.common)

    def dit(self, minutes: float) -> None:
        train_dit(
            *(self.latents, self.denoiser_path, minutes),
            text=self.text_path,
            start=self.args.pretrained,
            compile_blocks=self.args.compile,
            **self.common,
        )

    def decoder(self, minutes: float) -> None:
        _made(self.clips.folder, "render")
        redraw = None
        if self.denoiser_path.exists():
            redraw = redraw_with(self.denoiser_path, self.latents, **self.common)
        encoder = self.encoder
        if self.decoder_path.exists() and len(self.latents):
            load_vae(self.decoder_path, self.latents)  # fails where the encoder is another by now
        train_vae(
            *(self.clips, self.decoder_path, minutes),
            frozen_encoder=encoder,
            redraw=redraw,
            **self.common,
        )

    def ship(self) -> None:
        model, record = load_denoiser(_made(self.denoiser_path, "dit"))
        decoder = self.decoder_path if self.decoder_path.exists() else self.encoder
        autoencoder = load_vae(decoder, self.latents)
        pipe = assemble(autoencoder, model.transformer, model.text_encoder, model.tokenizer)
        ship(pipe, self.args.out, record)

    def evaluate(self, minutes: float = float("inf")) -> None:
        args = self.args
        _check_pipeline(args.out, "run `ship` first, or name another with --out")
        is_shipped = args.out.resolve() == BUILTIN_FOLDER
        whole = BENCH / "builtin_model.json" if is_shipped else None
        report = evaluate_model(
            args.out,
            args.work / "evaluation.json",
            args.prompts,
            methods=tuple(args.methods),
            sparse_prompts=args.sparse_prompts,
            shapes=args.work / "shapes.pt",
            training=self._records(),
            device=args.device,
            minutes=minutes,
            target=whole,
        )
        print(json.dumps({k: v for k, v in report.items() if k != "rows"}))

    def sheet(self) -> None:
        out: Path = self.args.out
        _check_pipeline(out, "run `ship` first, or name another with --out")
        make_contact_sheet(out, out / "contact_sheet.png", self.args.device)

    def all(self, minutes: float) -> None:
        """A sensible whole within `minutes`; a later call goes on from it."""
        begun = time.monotonic()
        trained = (checkpoint_record(self.vae_path) or {}).get("finished")
        first = not trained and self.args.pretrained is None
        shares = _FIRST if first else _LATER
        timed: dict[str, Callable[[float], None]] = {
            "render": self.render,
            "encode": self.encode,
            "text": lambda m: self.text(m) if self.needs_text else None,
            "vae": lambda m: self.vae(m + _spent(self.vae_path)),
            "dit": lambda m: self.dit(m + _spent(self.denoiser_path)),
            "decoder": lambda m: self.decoder(m + _spent(self.decoder_path)),
        }
        # What a stage leaves of its time goes to those after it.
        left = minutes
        for i, (name, share) in enumerate(shares.items()):
            tail = sum(list(shares.values())[i:]) + 1 - sum(shares.values())
            part = max(left, 0.01) * share / tail
            print(f"{name}: {part:.1f} minutes", file=sys.stderr, flush=True)
            timed[name](part)
            left = minutes - (time.monotonic() - begun) / 60
        self.ship()
        self.evaluate(max(0.0, minutes - (time.monotonic() - begun) / 60))

    def _records(self) -> dict[str, dict]:
        """What the checkpoints say of the compute spent."""
        found = {}
        for name, path in (
            ("vae", self.vae_path),
            ("text", self.text_path),
            ("dit", self.denoiser_path),
            ("decoder", self.decoder_path),
        ):
            record = checkpoint_record(path)
            if record is not None:
                kept = ("seed", "seconds", "steps", "clips", "accuracy")
                found[name] = {k: record[k] for k in kept if k in record}
                found[name]["last"] = record["log"][-1] if record["log"] else None
        return found


def _made(path: Path, stage: str) -> Path:
    """`path`, which a stage before has made.

    Raises:
        TrainingError: it has not.
    """
    if not path.exists():
        raise TrainingError(f"{path} is not there: run `{stage}` first.")
    return path


def _check_pipeline(folder: Path, otherwise: str) -> None:
    """See that a shipped pipeline lies in `folder`.

    Raises:
        TrainingError: it does not.
    """
    if not all((folder / name).is_file() for name in ("model_index.json", "lab.json")):
        raise TrainingError(f"{folder} holds no shipped pipeline: {otherwise}.")


def _spent(checkpoint: Path) -> float:
    """Minutes that a checkpoint has been trained for."""
    return (checkpoint_record(checkpoint) or {"seconds": 0.0})["seconds"] / 60


def main(argv: list[str] | None = None) -> None:
    """Run one stage."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; cpu would do.")
    if args.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    share = processes()
    group = nullcontext()
    if share.world > 1:
        if args.stage == "all":
            sys.exit("`all` is one process: start its stages with torchrun, one by one")
        if args.device == "cuda":
            torch.cuda.set_device(share.local_rank)
        # The first reads and ships while the others wait.
        group = process_group(args.device, timeout=timedelta(days=1))
    try:
        with group:
            _run(Training(args), args, share)
    except (TrainingError, RequestError, ModelUnavailable) as error:
        sys.exit(f"svg2.training: {error}")


def _run(training: Training, args: argparse.Namespace, share: Processes) -> None:
    if args.stage in ("vae", "decoder", "all"):
        getattr(training, args.stage)(args.minutes)
    elif args.stage in ("render", "encode"):
        getattr(training, args.stage)()
    elif args.stage == "dit":
        training.encode()
        if share.is_first and training.needs_text:
            training.text()
        if share.world > 1:
            dist.barrier()
        training.dit(args.minutes)
    elif share.is_first and args.stage == "text":
        training.text(args.minutes)
    elif share.is_first:
        getattr(training, args.stage)()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m svg2.training", description=__doc__)
    stages = (
        "render",
        "vae",
        "encode",
        "text",
        "dit",
        "decoder",
        "ship",
        "evaluate",
        "sheet",
        "all",
    )
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--work", type=Path, default=Path("work"), help="clips and checkpoints")
    parser.add_argument(
        "--out", type=Path, default=BUILTIN_FOLDER, help="folder of the shipped pipeline"
    )
    parser.add_argument("--pretrained", type=Path, help="shipped pipeline to go on from")
    parser.add_argument(
        "--vae-clips", type=_above_0(int), default=1000, help="clips for the autoencoder"
    )
    parser.add_argument("--clips", type=_above_0(int), default=2000, help="clips for the denoiser")
    parser.add_argument(
        "--minutes", type=_above_0(float), default=30, help="wall time of a stage, or of all"
    )
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks")
    parser.add_argument(
        "--prompts", type=_above_0(int), default=100, help="held-out prompts to evaluate"
    )
    parser.add_argument(
        *("--methods",),
        nargs="*",
        choices=METHODS,
        default=[PAPER_METHOD, COMPENSATED_METHOD],
        help="sparse methods to evaluate beside dense",
    )
    parser.add_argument(
        *("--sparse-prompts",),
        type=_above_0(int),
        help="how many of the prompts they get; all unless given",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        *("--device",),
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
    )
    return parser


def _above_0(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__  # argparse names it where `kind` refuses
    return parse


if __name__ == "__main__":
    main()
