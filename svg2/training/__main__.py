"""Train the built-in model: `python -m svg2.training STAGE`, one stage after another, or `all`."""

import argparse
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch

from svg2.errors import ModelUnavailable, RequestError
from svg2.method.selection import METHODS
from svg2.models.finding import BUILTIN_FOLDER
from svg2.models.request import MAX_GUIDANCE, MAX_STEPS
from svg2.runs.distributed import Processes, process_group, processes
from svg2.training.data import TrainingError
from svg2.training.distil import Recipe
from svg2.training.pipeline import SCHEDULERS
from svg2.training.stages import DENOISERS, STAGES, Training

_UNLIMITED = math.inf
_IN_ONE_CALL = {
    "all": "render to decoder, ship and evaluate, within --minutes",
    "extend": "encode-long, long and distil, ship and evaluate, within --minutes",
}


def main(argv: list[str] | None = None) -> None:
    """Run one stage."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.out is None:
        args.out = args.work / "model" if args.stage == "extend" else BUILTIN_FOLDER
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here. Use --device cpu.")
    if args.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    share = processes()
    group = nullcontext()
    if share.world > 1:
        if args.stage in _IN_ONE_CALL:
            sys.exit(f"`{args.stage}` is one process: start its stages with torchrun, one by one.")
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
    if args.stage in _IN_ONE_CALL:
        getattr(training, args.stage)(args.minutes)
        return
    stage = STAGES[args.stage]
    if stage.prepare is not None:
        stage.prepare(training)
    if share.is_first or stage.on_all_ranks:
        stage.run(training, args.minutes if stage.is_timed else _UNLIMITED)


def _parser() -> argparse.ArgumentParser:
    rows = [
        *((name, stage.line) for name, stage in STAGES.items()),
        *_IN_ONE_CALL.items(),
    ]
    parser = argparse.ArgumentParser(
        prog="python -m svg2.training",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{__doc__}\n\n" + "\n".join(f"  {name:<13}{line}" for name, line in rows),
        epilog="Long stages resume from the work folder. On several cores or GPUs, start "
        f"{', '.join(name for name, stage in STAGES.items() if stage.on_all_ranks)}\n"
        "with torchrun.",
    )
    parser.add_argument("stage", choices=[name for name, _ in rows])
    parser.add_argument(
        "--work", type=Path, default=Path("work"), help="folder of clips and checkpoints"
    )
    parser.add_argument(
        *("--out",),
        type=Path,
        help="folder of the shipped pipeline (default: the built-in model's; of `extend`, `model` "
        "in the work folder)",
    )
    parser.add_argument(
        *("--pretrained",),
        type=Path,
        help="shipped pipeline to continue from (default of `encode-long`, `long`, `distil` and "
        "`extend`: the built-in model)",
    )
    parser.add_argument(
        *("--parcel",),
        type=Path,
        help="file of `pack` and `unpack` (default: beside the built-in model, by its stage)",
    )
    parser.add_argument(
        "--vae-clips", type=_above_0(int), default=1000, help="clips for the autoencoder"
    )
    parser.add_argument("--clips", type=_above_0(int), default=2000, help="clips for the denoiser")
    parser.add_argument(
        *("--minutes",),
        type=_above_0(float),
        default=30,
        help="wall time of a stage that trains, earlier calls included (of `text`: of this call), "
        "or of `all` and `extend`",
    )
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks")
    parser.add_argument(
        "--prompts", type=_above_0(int), default=100, help="held-out prompts to evaluate"
    )
    parser.add_argument(
        *("--methods",),
        nargs="*",
        choices=METHODS,
        help="sparse methods to evaluate beside dense (default: the model's own and the paper's)",
    )
    parser.add_argument(
        *("--sparse-prompts",),
        type=_above_0(int),
        help="how many of the prompts to run with these methods (default: all)",
    )
    parser.add_argument(
        *("--frames",),
        type=_above_0(int),
        help="frames of the clips to evaluate (default: the model's)",
    )
    parser.add_argument(
        "--teacher", type=Path, help="shipped pipeline to judge on the same prompts and seeds"
    )
    parser.add_argument(
        *("--teacher-prompts",),
        type=_above_0(int),
        help="how many of the prompts the teacher gets (default: all)",
    )
    _add_recipe(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        *("--device",),
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
    )
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """The options of distillation, and of shipping what comes of it."""
    parser.add_argument(
        *("--guidance",),
        type=_from(1, MAX_GUIDANCE, float),
        default=Recipe.guidance,
        help="guidance scale of the teacher of `distil`",
    )
    parser.add_argument(
        *("--steps",),
        type=_from(0, MAX_STEPS, int),
        default=Recipe.steps,
        help="steps of the student of `distil`; 0 distils the guidance alone",
    )
    parser.add_argument(
        *("--on-policy",),
        type=_from(0, 1, float),
        default=Recipe.on_policy,
        help="share of the training steps of `distil` on states of the student's own",
    )
    parser.add_argument(
        *("--substeps",),
        type=_from(1, MAX_STEPS, int),
        default=Recipe.substeps,
        help="steps of the teacher in one of the student's",
    )
    parser.add_argument(
        "--weights",
        choices=DENOISERS,
        help="stage whose weights to ship (default: the last), or to pack and unpack (`long`)",
    )
    parser.add_argument(
        "--scheduler", choices=SCHEDULERS, help="scheduler to ship (default: the weights' own)"
    )


def _from(low: float, high: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value

    parse.__name__ = kind.__name__  # argparse uses it in its messages
    return parse


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
