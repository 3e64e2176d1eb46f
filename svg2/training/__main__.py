"""Train the built-in model: `python -m svg2.training STAGE`, one stage after another, or `all`."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from svg2.errors import ModelUnavailable, RequestError
from svg2.method.selection import COMPENSATED_METHOD, METHODS, PAPER_METHOD
from svg2.models.finding import BUILTIN_FOLDER
from svg2.runs.distributed import Processes, process_group, processes
from svg2.training.contact_sheet import make_contact_sheet
from svg2.training.data import Store, TrainingError, checkpoint_record, render_clips
from svg2.training.decoder import redraw_with
from svg2.training.denoiser import load_denoiser
from svg2.training.dit import train_dit
from svg2.training.evaluate import evaluate_model
from svg2.training.latents import encode_clips, load_vae
from svg2.training.pipeline import DEFAULTS, assemble, ship
from svg2.training.text import train_text
from svg2.training.vae import train_vae

BENCH = Path(__file__).parents[2] / "assets" / "bench"
_UNLIMITED = math.inf


class Training:
    """A work folder, and the stages over it. Every stage gets the minutes that it may take."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        if args.pretrained is not None:
            _check_pipeline(args.pretrained, "name the folder of a shipped one with --pretrained")
        work: Path = args.work
        work.mkdir(parents=True, exist_ok=True)
        self.clips, self.latents = Store(work / "clips"), Store(work / "latents")
        self.common = {"seed": args.seed, "device": args.device}

    def checkpoint(self, stage: str) -> Path:
        """Where a stage writes its weights."""
        return self.args.work / f"{stage}.pt"

    @property
    def encoder(self) -> Path:
        """The VAE that makes latents: the one trained here, or the one to start from.

        Raises:
            TrainingError: there is neither.
        """
        start: Path | None = self.args.pretrained
        if start and not self.checkpoint("vae").exists():
            return start
        return _made(self.checkpoint("vae"), "vae")

    @property
    def needs_text(self) -> bool:
        """Whether the denoiser has yet to start, and without a pipeline's text encoder."""
        return self.args.pretrained is None and not self.checkpoint("dit").exists()

    def render(self, minutes: float) -> None:
        frames, size = int(DEFAULTS["num_frames"]), int(DEFAULTS["height"])
        render_clips(self.clips, self.args.vae_clips, frames, size, minutes=minutes, **self.common)

    def vae(self, minutes: float) -> None:
        _made(self.clips.folder, "render")
        train_vae(
            *(self.clips, self.checkpoint("vae"), minutes),
            start=self.args.pretrained,
            **self.common,
        )

    def encode(self, minutes: float) -> None:
        count = self.args.clips
        encode_clips(
            *(self.clips, self.latents, self.encoder, count), minutes=minutes, **self.common
        )

    def text(self, minutes: float) -> None:
        if not self.checkpoint("text").exists():
            train_text(self.checkpoint("text"), minutes=minutes, **self.common)

    def before_dit(self) -> None:
        """Run the stages whose output the denoiser reads, as far as they are not done."""
        self.encode(_UNLIMITED)
        share = processes()
        if share.is_first and self.needs_text:
            self.text(_UNLIMITED)
        if share.world > 1:
            dist.barrier()

    def dit(self, minutes: float) -> None:
        train_dit(
            *(self.latents, self.checkpoint("dit"), minutes),
            text=self.checkpoint("text"),
            start=self.args.pretrained,
            compile_blocks=self.args.compile,
            **self.common,
        )

    def decoder(self, minutes: float) -> None:
        _made(self.clips.folder, "render")
        redraw = None
        if self.checkpoint("dit").exists():
            redraw = redraw_with(self.checkpoint("dit"), self.latents, **self.common)
        encoder = self.encoder
        if self.checkpoint("decoder").exists() and len(self.latents):
            # Fails if another encoder made the latents.
            load_vae(self.checkpoint("decoder"), self.latents)
        train_vae(
            *(self.clips, self.checkpoint("decoder"), minutes),
            frozen_encoder=encoder,
            redraw=redraw,
            **self.common,
        )

    def ship(self, minutes: float = _UNLIMITED) -> None:
        model, record = load_denoiser(_made(self.checkpoint("dit"), "dit"))
        decoder = self.checkpoint("decoder")
        autoencoder = load_vae(decoder if decoder.exists() else self.encoder, self.latents)
        pipe = assemble(autoencoder, model.transformer, model.text_encoder, model.tokenizer)
        ship(pipe, self.args.out, record)

    def evaluate(self, minutes: float) -> None:
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

    def sheet(self, minutes: float = _UNLIMITED) -> None:
        out: Path = self.args.out
        _check_pipeline(out, "run `ship` first, or name another with --out")
        make_contact_sheet(out, out / "contact_sheet.png", self.args.device)

    def all(self, minutes: float) -> None:
        """Run all stages within `minutes` in total; a later call resumes."""
        begun = time.monotonic()
        trained = (checkpoint_record(self.checkpoint("vae")) or {}).get("finished")
        is_first = not trained and self.args.pretrained is None
        shares = {name: s.shares[0 if is_first else 1] for name, s in STAGES.items()}
        shares = {name: share for name, share in shares.items() if share}
        # Time that a stage leaves goes to the stages after it.
        left = minutes
        for i, (name, share) in enumerate(shares.items()):
            tail = sum(list(shares.values())[i:]) + 1 - sum(shares.values())
            part = max(left, 0.01) * share / tail
            print(f"{name}: {part:.1f} minutes", file=sys.stderr, flush=True)
            if name != "text" or self.needs_text:
                resumed = _spent(self.checkpoint(name)) if STAGES[name].counts_earlier else 0.0
                STAGES[name].run(self, part + resumed)
            left = minutes - (time.monotonic() - begun) / 60
        self.ship()
        self.evaluate(max(0.0, minutes - (time.monotonic() - begun) / 60))

    def _records(self) -> dict[str, dict]:
        """What the checkpoints say of the compute spent."""
        found = {}
        for name in STAGES:
            record = checkpoint_record(self.checkpoint(name))
            if record is not None:
                kept = ("seed", "seconds", "steps", "clips", "accuracy")
                found[name] = {k: record[k] for k in kept if k in record}
                found[name]["last"] = record["log"][-1] if record["log"] else None
        return found


@dataclass(frozen=True)
class Stage:
    """A stage of the training.

    Attributes:
        line: what it does, for `--help`.
        run: takes the training and the minutes that it may take.
        prepare: what to do first where the stage is run by itself.
        is_timed: whether `--minutes` limits it where it is run by itself.
        counts_earlier: whether its minutes include those of earlier calls.
        on_all_ranks: whether all processes of torchrun share it; else the first one runs it.
        shares: of the time of `all`: in the first call, and in later ones, whose VAE is trained.
    """

    line: str
    run: Callable[[Training, float], None]
    prepare: Callable[[Training], None] | None = None
    is_timed: bool = False
    counts_earlier: bool = False
    on_all_ranks: bool = False
    shares: tuple[float, float] = (0.0, 0.0)


_TRAINED = {"is_timed": True, "counts_earlier": True, "on_all_ranks": True}
STAGES: Mapping[str, Stage] = {
    "render": Stage(
        "render clips of the grammar's scenes",
        Training.render,
        on_all_ranks=True,
        shares=(0.05, 0.04),
    ),
    "vae": Stage("train the autoencoder", Training.vae, **_TRAINED, shares=(0.25, 0.0)),
    "encode": Stage(
        "encode clips; renders the missing ones",
        Training.encode,
        on_all_ranks=True,
        shares=(0.15, 0.1),
    ),
    "text": Stage("train the text encoder", Training.text, is_timed=True, shares=(0.05, 0.03)),
    "dit": Stage(
        "train the denoiser; first runs encode and text",
        Training.dit,
        prepare=Training.before_dit,
        **_TRAINED,
        shares=(0.37, 0.69),
    ),
    "decoder": Stage(
        "train the decoder on latents that the denoiser draws",
        Training.decoder,
        **_TRAINED,
        shares=(0.05, 0.05),
    ),
    "ship": Stage("write the pipeline into --out", Training.ship),
    "evaluate": Stage("judge clips of held-out prompts", lambda t, m: t.evaluate(m)),
    "sheet": Stage("draw clips of held-out prompts as one picture", Training.sheet),
}
"""Stages by name, in the order in which they run."""


def _made(path: Path, stage: str) -> Path:
    """`path`, the output of an earlier stage.

    Raises:
        TrainingError: it does not exist.
    """
    if not path.exists():
        raise TrainingError(f"{path} does not exist: run `{stage}` first.")
    return path


def _check_pipeline(folder: Path, otherwise: str) -> None:
    """Check that `folder` holds a shipped pipeline.

    Raises:
        TrainingError: it does not.
    """
    if not all((folder / name).is_file() for name in ("model_index.json", "lab.json")):
        raise TrainingError(f"{folder} holds no shipped pipeline: {otherwise}.")


def _spent(checkpoint: Path) -> float:
    """Minutes of training in a checkpoint; 0 without one."""
    return (checkpoint_record(checkpoint) or {"seconds": 0.0})["seconds"] / 60


def main(argv: list[str] | None = None) -> None:
    """Run one stage."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here. Use --device cpu.")
    if args.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    share = processes()
    group = nullcontext()
    if share.world > 1:
        if args.stage == "all":
            sys.exit("`all` is one process: start its stages with torchrun, one by one.")
        if args.device == "cuda":
            torch.cuda.set_device(share.local_rank)
        # The other processes wait while the first one trains the text encoder or ships.
        group = process_group(args.device, timeout=timedelta(days=1))
    try:
        with group:
            _run(Training(args), args, share)
    except (TrainingError, RequestError, ModelUnavailable) as error:
        sys.exit(f"svg2.training: {error}")


def _run(training: Training, args: argparse.Namespace, share: Processes) -> None:
    if args.stage == "all":
        training.all(args.minutes)
        return
    stage = STAGES[args.stage]
    if stage.prepare is not None:
        stage.prepare(training)
    if share.is_first or stage.on_all_ranks:
        stage.run(training, args.minutes if stage.is_timed else _UNLIMITED)


def _parser() -> argparse.ArgumentParser:
    rows = [
        *((name, stage.line) for name, stage in STAGES.items()),
        ("all", "render to evaluate, within --minutes"),
    ]
    parser = argparse.ArgumentParser(
        prog="python -m svg2.training",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{__doc__}\n\n" + "\n".join(f"  {name:<10}{line}" for name, line in rows),
        epilog="Long stages resume from the work folder. On several cores or GPUs, start "
        f"{', '.join(name for name, stage in STAGES.items() if stage.on_all_ranks)}\n"
        "with torchrun.",
    )
    parser.add_argument("stage", choices=[name for name, _ in rows])
    parser.add_argument(
        "--work", type=Path, default=Path("work"), help="folder of clips and checkpoints"
    )
    parser.add_argument(
        "--out", type=Path, default=BUILTIN_FOLDER, help="folder of the shipped pipeline"
    )
    parser.add_argument("--pretrained", type=Path, help="shipped pipeline to continue from")
    parser.add_argument(
        "--vae-clips", type=_above_0(int), default=1000, help="clips for the autoencoder"
    )
    parser.add_argument("--clips", type=_above_0(int), default=2000, help="clips for the denoiser")
    parser.add_argument(
        "--minutes", type=_above_0(float), default=30, help="wall time of the stage, or of `all`"
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
        help="how many of the prompts to run with these methods (default: all)",
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

    parse.__name__ = kind.__name__  # argparse uses it in its messages
    return parse


if __name__ == "__main__":
    main()
