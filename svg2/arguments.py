"""The arguments of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from svg2.config import SVG2Config
from svg2.errors import UsageError
from svg2.method.selection import COMPENSATED_METHOD, METHODS, PAPER_METHOD, ROUTED_METHOD
from svg2.models.request import DTYPES

TOP_PS = ("0.5", "0.7", "0.8", "0.9", "0.95")
BUDGETS = (0.08, 0.12, 0.15, 0.2, 0.3, 0.4)
"""Budgets of a sweep: `--top-p` of one prompt, and `--compute-density` of many."""

_COMPARED = (PAPER_METHOD, COMPENSATED_METHOD, ROUTED_METHOD)


class _Parser(argparse.ArgumentParser):
    """Parser that raises `UsageError` in place of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]} (see {self.prog} --help).")


def parse_arguments(
    argv: Sequence[str] | None = None, like: Mapping[str, Any] | None = None
) -> argparse.Namespace:
    """The arguments of one command, whose name is `command`.

    Args:
        like: what `compare` takes for arguments that are not given.

    Raises:
        UsageError: arguments that the command does not take.
    """
    return _parser(like or {}).parse_args(argv)


def _parser(like: Mapping[str, Any]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m svg2",
        description="Dense and SVG2 sparse attention side by side, measured.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    compare = commands.add_parser("compare", help="one video with dense and with sparse attention")
    _add_request(compare, prompt_required=False)
    compare.add_argument(
        *("--prompts",),
        metavar="FILE",
        help="text file, one prompt per line; torchrun shares them among processes",
    )
    compare.add_argument(
        *("--layout",),
        choices=["vbench"],
        help="with --prompts: clips as VBench and VBench-Long take them, not a folder per prompt",
    )
    compare.add_argument(
        *("--samples",),
        type=int,
        metavar="N",
        help="with --layout: clips of each prompt, with seeds from --seed on (default: 5)",
    )
    compare.add_argument(
        "--method", help=f"one of {', '.join(METHODS)} (default: the model's own)"
    )
    compare.add_argument("--top-p", metavar="P", help="attention mass to keep, in (0, 1]")
    compare.add_argument(
        "--density", metavar="D", help="share of the pairs to keep, in (0, 1], in place of --top-p"
    )
    compare.add_argument(
        *("--no-race",),
        dest="race",
        action="store_false",
        help="the sparse run follows the dense one, in place of taking turns with it",
    )
    compare.add_argument(
        *("--like",),
        metavar="FILE.mp4",
        help="a clip that compare or the page wrote: make it again, but for what else is given",
    )
    compare.set_defaults(command="compare", **like)

    _add_sweep(commands)

    models = commands.add_parser("models", help="list the models and what each needs")
    models.set_defaults(command="models")

    bench = commands.add_parser("bench", help="compare the attention kernels with dense attention")
    bench.add_argument(
        *("--suite",),
        choices=["cpu", "calls", "timings", "gpu", "e2e"],
        default="cpu",
        help="single ops, whole calls or whole runs on a CPU; kernels or whole models on a GPU "
        "(default: cpu)",
    )
    bench.add_argument(
        *("--toy",),
        action="store_true",
        help="run a GPU suite at toy sizes on any machine, to test the suite itself",
    )
    bench.add_argument("--out", required=True, metavar="FILE.json")
    bench.set_defaults(command="bench")
    return parser


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep", help="one video at several budgets and with several methods"
    )
    _add_request(sweep, prompt_required=False)
    sweep.add_argument(
        *("--prompts",),
        metavar="FILE",
        help="text file, one prompt per line, each with the next seed; resumable, no trace",
    )
    sweep.add_argument(
        *("--compute-density",),
        dest="budgets",
        nargs="+",
        type=_between(0.001, 1),
        metavar="D",
        help="with --prompts: shares of the pairs to compute, stand-ins and routing included "
        f"(default: {' '.join(map(str, BUDGETS))})",
    )
    sweep.add_argument(
        *("--methods",),
        nargs="+",
        default=_COMPARED,
        metavar="METHOD",
        help=f"of {', '.join(METHODS)} (default: {' '.join(_COMPARED)})",
    )
    sweep.add_argument(
        *("--top-p",),
        dest="top_ps",
        nargs="+",
        metavar="P",
        help=f"with --prompt: attention masses to keep, in (0, 1] (default: {' '.join(TOP_PS)})",
    )
    sweep.add_argument(
        *("--trace-mb",),
        type=_between(0.1, 1000, " megabytes"),
        metavar="MB",
        help="with --prompt: drop records to keep trace.npz under this size",
    )
    sweep.add_argument(
        *("--in-turns",),
        action="store_true",
        help="with --prompt: each run takes turns with a dense run of its own, twice the time and "
        "surer speedups",
    )
    sweep.set_defaults(command="sweep")


def _add_request(parser: argparse.ArgumentParser, prompt_required: bool = True) -> None:
    parser.add_argument("--prompt", required=prompt_required)
    parser.add_argument("--negative-prompt", default="", metavar="TEXT")
    parser.add_argument(
        *("--model",),
        default="builtin",
        help="a name that `models` lists, or a pipeline's folder or hub id (default: builtin)",
    )
    parser.add_argument(
        *("--preset",),
        default="published",
        help="published, fast, faithful or draft (default: published)",
    )
    parser.add_argument(
        "--image", metavar="FILE", help="image to start from, if the model takes one"
    )
    parser.add_argument(
        "--video", metavar="FILE", help="MP4 or MOV video to start from, if the model takes one"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--height", type=int, metavar="PX")
    parser.add_argument("--width", type=int, metavar="PX")
    parser.add_argument("--frames", type=int, metavar="N")
    parser.add_argument("--steps", type=int, metavar="N")
    parser.add_argument("--guidance-scale", type=float, metavar="G")
    parser.add_argument(
        *("--guidance-scale-2",),
        type=float,
        metavar="G",
        help="for the second expert, if the model has two",
    )
    parser.add_argument(
        *("--true-cfg-scale",),
        type=float,
        default=1.0,
        metavar="G",
        help="weight of the negative prompt, if the model's guidance is embedded",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--impl", help="kernels: auto, reference or fused")
    parser.add_argument(
        *("--set",),
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"a setting of the method, may be repeated: {', '.join(SVG2Config().to_dict())}",
    )
    parser.add_argument("--out", required=True, metavar="DIR")


def _between(low: float, high: float, unit: str = "") -> Callable[[str], float]:
    def parse(text: str) -> float:
        if low <= (number := float(text)) <= high:
            return number
        raise argparse.ArgumentTypeError(f"must be from {low:g} to {high:g}{unit}, not {text}")

    return parse
