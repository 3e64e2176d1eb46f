"""The command line: compare, sweep, models, bench.

Progress goes to stderr, the result is the last line of stdout.
Exit codes: 0 done, 2 bad arguments or input, 1 failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from svg2.config import METHODS, ConfigError, SVG2Config, method_config
from svg2.distributed import Processes, joined, processes
from svg2.request import DTYPES, Request, RequestError, ResolvedRequest

if TYPE_CHECKING:
    from svg2.generate import Cancelled, Progress

_SIZES = (("480p", 480, 832), ("720p", 720, 1280))

OUTPUTS = ("dense.mp4", "svg2.mp4", "compare.mp4", "trace.npz", "result.json")


class UsageError(ValueError):
    """An argument that cannot work; the message is one sentence."""


class Stopped(Exception):
    """A command ends early; the message is one sentence."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        arguments = _parser().parse_args(argv)
        return arguments.run(arguments)
    except (UsageError, RequestError, ConfigError) as error:
        print(f"svg2: {_one_line(error)}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"svg2: {_one_line(stopped)}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("svg2: Interrupted.", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk, a folder that went away
        print(f"svg2: {_one_line(error)}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
            raise  # torch's is named without importing torch
        print("svg2: Out of memory: ask for a smaller or shorter video.", file=sys.stderr)
        return 1


def _compare(arguments: argparse.Namespace) -> int:
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise UsageError("Give either --prompt or --prompts.")
    if arguments.prompts is not None:
        return _compare_prompts(arguments)
    request, config = _request_and_config(arguments)
    config = method_config(arguments.method, config)
    share = processes()
    _check_share(request, share)
    folder = _output_folder(arguments.out)
    _say_if_outside_grammar(request)

    from svg2.generate import compare, save_comparison
    from svg2.models import load_pipeline

    def keep_dense(stopped: Cancelled) -> str:
        return _keep_dense(stopped, request, folder) if share.is_first else "it was one of several"

    with _running(keep_dense, speaks=share.is_first) as watch:
        if share.world == 1:
            comparison = compare(request, arguments.method, config, **watch)
        else:
            pipe = load_pipeline(request.model, request.dtype, request.device)
            with joined(pipe):
                comparison = compare(request, arguments.method, config, pipe=pipe, **watch)
        if share.is_first:
            save_comparison(comparison, folder)
    if share.is_first:
        _print_result(comparison.result)
    return 0


def _compare_prompts(arguments: argparse.Namespace) -> int:
    from svg2.batch import compare_all, read_prompts

    prompts = read_prompts(arguments.prompts)
    arguments.prompt = prompts[0]
    request, config = _request_and_config(arguments)
    config = method_config(arguments.method, config)
    share = processes()
    folder = _output_folder(arguments.out)
    kept = f"the prompts that were complete are kept in {folder}, and the same command goes on"
    with _running(lambda _: kept, speaks=share.is_first) as watch:
        done = compare_all(prompts, request, arguments.method, config, folder, share, **watch)
    _print_result(done)
    return 0


def _check_share(request: ResolvedRequest, share: Processes) -> None:
    """Check that all processes get as many tokens of a video.

    Raises:
        RequestError: they can't.
    """
    from svg2.models import model_spec

    grid = model_spec(request.model).grid(request.num_frames, request.height, request.width)
    tokens = math.prod(grid)
    if tokens % share.world:
        raise RequestError(
            f"The {tokens:,} tokens of this video can't be shared evenly among {share.world} "
            "processes: ask for another size, or for another number of them."
        )


def _keep_dense(stopped: Cancelled, request: Request, folder: Path) -> str:
    """Write the dense clip where that was complete; says what was kept."""
    from svg2.media import encode_mp4, write_atomic
    from svg2.models import model_spec

    if stopped.dense is None:
        return "nothing was written"
    # what an earlier run left here belongs to another dense clip
    for name in OUTPUTS:
        (folder / name).unlink(missing_ok=True)
    fps = model_spec(request.model).fps
    write_atomic(folder / "dense.mp4", encode_mp4(stopped.dense.frames, fps))
    return f"the dense clip was complete and is kept as {folder / 'dense.mp4'}"


def _sweep(arguments: argparse.Namespace) -> int:
    if processes().world > 1:
        raise UsageError("A sweep runs in one process; compare is what several can share.")
    request, config = _request_and_config(arguments)
    for method in arguments.methods:
        method_config(method, config)
    top_ps = [SVG2Config.from_settings([f"top_p={text}"]).top_p for text in arguments.top_p]
    folder = _output_folder(arguments.out)
    _say_if_outside_grammar(request)

    from svg2.sweep import sweep

    with _running(lambda _: f"the runs that were complete are kept in {folder}") as watch:
        limit = arguments.trace_mb and round(arguments.trace_mb * 2**20)
        content = sweep(
            *(request, arguments.methods, top_ps, config, folder),
            trace_bytes_limit=limit,
            **watch,
        )
    _print_result(content)
    return 0


def _models(arguments: argparse.Namespace) -> int:
    from svg2.models import MODELS
    from svg2.pipelines import PIPELINES

    listed = [_listed(model, title) for model, title in MODELS.items()]
    for entry in listed:
        mark = "available" if entry["available"] else "not available"
        print(f"{entry['model']:16} {mark:14} {entry['title']}", file=sys.stderr)
        print(f"{'':16} {entry['why']}", file=sys.stderr)
        for size, need in entry.get("memory", {}).items():
            print(
                f"{'':16} {size}: {need['tokens']:,} tokens, a dense step about "
                f"{need['dense_gib']:.1f} GiB, SVG2 adds {need['added_gib']:.1f}",
                file=sys.stderr,
            )
        if "license" in entry:
            print(f"{'':16} {entry['license']}; settings: {entry['source']}", file=sys.stderr)
    print(
        "A pipeline's folder or its hub id is a model too, --model PATH or --model ORG/NAME, of "
        f"these classes: {', '.join(PIPELINES)}.",
        file=sys.stderr,
    )
    _print_result({"models": listed})
    return 0


def _listed(model: str, title: str) -> dict[str, Any]:
    """What there is to say of one model: whether it runs here, what it takes, who says so."""
    from svg2.memory import GIB
    from svg2.models import availability, model_spec

    entry: dict[str, Any] = {"model": model, "title": title}
    try:
        spec = model_spec(model)
    except RequestError as error:
        return entry | {"available": False, "why": str(error)}
    missing = availability(spec)
    entry |= {
        "available": missing is None,
        "why": missing or spec.needs,
        "pipeline": spec.kind.name,
        "settings": {
            name: getattr(spec, name)
            for name in (
                *("height", "width", "num_frames", "num_inference_steps", "guidance_scale"),
                "guidance_scale_2",
            )
        },
        "config": spec.config.to_dict(),
    }
    row = spec.published
    if row is None:
        return entry
    memory = {}
    for name, height, width in _SIZES:
        multiple = spec.size_multiple
        height, width = (side // multiple * multiple for side in (height, width))
        need = spec.memory(spec.num_frames, height, width)
        assert need is not None
        frames, rows, columns = spec.grid(spec.num_frames, height, width)
        memory[name] = {
            "tokens": frames * rows * columns,
            "dense_gib": round(need.dense_peak / GIB, 2),
            "added_gib": round(need.added / GIB, 2),
            "added_share": round(need.added_share, 4),
        }
    return entry | {
        "hub_id": row.hub_id,
        "download_gb": row.download_gb,
        "license": row.license,
        "source": row.source,
        "memory": memory,
    }


def _bench(arguments: argparse.Namespace) -> int:
    path = Path(arguments.out)
    _output_folder(str(path.parent))
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file.")

    from svg2.bench.cpu import run_cpu_suite
    from svg2.bench.e2e import run_e2e_suite
    from svg2.bench.gpu import SuiteUnavailable, run_gpu_suite

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        if arguments.suite == "cpu":
            record = run_cpu_suite(path, say)
        else:
            run_suite = run_gpu_suite if arguments.suite == "gpu" else run_e2e_suite
            record = run_suite(path, say, toy=arguments.toy)
    except SuiteUnavailable as error:
        raise Stopped(str(error), 1) from error
    _print_result(record)
    return 0


class _Parser(argparse.ArgumentParser):
    """Complains in one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]} (see {self.prog} --help).")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m svg2",
        description="Dense and SVG2 sparse attention side by side, measured.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    compare = commands.add_parser("compare", help="one dense and one sparse run of a request")
    _add_request(compare, prompt_required=False)
    compare.add_argument(
        *("--prompts",),
        metavar="FILE",
        help="one prompt a line, in place of --prompt; torchrun shares them out",
    )
    compare.add_argument("--method", default="svg2", help=f"one of {', '.join(METHODS)}")
    compare.add_argument("--top-p", metavar="P", help="attention mass to keep, in (0, 1]")
    compare.set_defaults(run=_compare)

    sweep = commands.add_parser("sweep", help="several budgets and methods on one request")
    _add_request(sweep)
    sweep.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD")
    sweep.add_argument(
        *("--top-p",), nargs="+", metavar="P", default=["0.5", "0.7", "0.8", "0.9", "0.95"]
    )
    sweep.add_argument(
        *("--trace-mb",),
        type=_size_mb,
        metavar="MB",
        help="keep fewer records in trace.npz, so that it is no larger",
    )
    sweep.set_defaults(run=_sweep)

    models = commands.add_parser("models", help="what can be generated with, and what it needs")
    models.set_defaults(run=_models)

    bench = commands.add_parser("bench", help="attention kernels against dense attention")
    bench.add_argument("--suite", choices=["cpu", "gpu", "e2e"], default="cpu")
    bench.add_argument(
        *("--toy",),
        action="store_true",
        help="try out the harness of a GPU suite at toy sizes, on any machine",
    )
    bench.add_argument("--out", required=True, metavar="FILE.json")
    bench.set_defaults(run=_bench)
    return parser


def _add_request(parser: argparse.ArgumentParser, prompt_required: bool = True) -> None:
    parser.add_argument("--prompt", required=prompt_required)
    parser.add_argument("--negative-prompt", default="", metavar="TEXT")
    parser.add_argument(
        *("--model",),
        default="builtin",
        help="see the command models; or a pipeline's folder or hub id",
    )
    parser.add_argument("--preset", default="published", help="published, fast, faithful or draft")
    parser.add_argument("--image", metavar="FILE", help="start from it, with a model that does")
    parser.add_argument("--video", metavar="FILE", help="an MP4 to start from, likewise")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--height", type=int, metavar="PX")
    parser.add_argument("--width", type=int, metavar="PX")
    parser.add_argument("--frames", type=int, metavar="N")
    parser.add_argument("--steps", type=int, metavar="N")
    parser.add_argument("--guidance-scale", type=float, metavar="G")
    parser.add_argument(
        *("--guidance-scale-2",), type=float, metavar="G", help="of the second of two experts"
    )
    parser.add_argument(
        *("--true-cfg-scale",),
        type=float,
        default=1.0,
        metavar="G",
        help="weight of the negative prompt where guidance is embedded",
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
        help=f"a setting of the method, any number of times: {', '.join(SVG2Config().to_dict())}",
    )
    parser.add_argument("--out", required=True, metavar="DIR")


def _size_mb(text: str) -> float:
    size = float(text)
    if not 0.1 <= size <= 1000:
        raise argparse.ArgumentTypeError(f"must be from 0.1 to 1000 megabytes, not {text}")
    return size


def _request_and_config(arguments: argparse.Namespace) -> tuple[ResolvedRequest, SVG2Config]:
    """Everything that can be refused before torch is even imported."""
    from svg2.models import model_spec

    request = Request(
        prompt=arguments.prompt,
        negative_prompt=arguments.negative_prompt,
        model=arguments.model,
        seed=arguments.seed,
        height=arguments.height,
        width=arguments.width,
        num_frames=arguments.frames,
        num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance_scale,
        dtype=arguments.dtype,
        device=processes().device(arguments.device),
        image=arguments.image,
        video=arguments.video,
        guidance_scale_2=arguments.guidance_scale_2,
        true_cfg_scale=arguments.true_cfg_scale,
    )
    settings = list(arguments.settings)
    if isinstance(getattr(arguments, "top_p", None), str):
        settings.append(f"top_p={arguments.top_p}")
    if arguments.impl is not None:
        settings.append(f"impl={arguments.impl}")
    SVG2Config.from_settings(settings)  # a bad setting is refused whatever the model
    spec = model_spec(request.model).preset(arguments.preset)
    resolved = request.resolve(spec)
    size = (resolved.num_frames, resolved.height, resolved.width)
    config = SVG2Config.from_settings(settings, base=spec.config_for(*size))
    config.check_tokens(math.prod(spec.grid(*size)))
    return resolved, config


def _output_folder(name: str) -> Path:
    """The folder, made if need be and found writable, before any work is spent on it."""
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"The folder {name!r} can't be written: {reason}.") from error
    return folder


def _say_if_outside_grammar(request: Request) -> None:
    if request.model != "builtin":
        return
    from svg2.models import BUILTIN_FOLDER
    from svg2.training.grammar import knowledge_of

    if not knowledge_of(BUILTIN_FOLDER).covers(request.prompt):
        print(
            "svg2: The built-in model knows only its own grammar, and this prompt is outside it: "
            "expect something else.",
            file=sys.stderr,
        )


@contextmanager
def _running(kept: Callable[[Cancelled], str], speaks: bool = True) -> Iterator[dict[str, Any]]:
    """What a generation is given to show its progress, if it `speaks`, and to be interrupted.

    `kept` says what is left of an interrupted one.

    Raises:
        Stopped: it was interrupted, or its model can't be loaded here.
    """
    from svg2.generate import Cancelled
    from svg2.models import ModelUnavailable

    with _interruptible() as is_interrupted, _Line() as line:
        try:
            yield {"on_progress": line.show if speaks else None, "should_cancel": is_interrupted}
        except ModelUnavailable as error:
            line.end()
            raise Stopped(str(error), 1) from error
        except Cancelled as cancelled:
            line.end()
            raise Stopped(f"Interrupted; {kept(cancelled)}.", 130) from cancelled


@contextmanager
def _interruptible():
    """A first Ctrl-C becomes a wish that the run sees within a step; a second stops at once."""
    wished = False

    def on_interrupt(*_: Any) -> None:
        nonlocal wished
        if wished:
            raise KeyboardInterrupt
        wished = True
        print("\nsvg2: Stopping after this step; Ctrl-C again stops at once.", file=sys.stderr)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: wished
    finally:
        signal.signal(signal.SIGINT, before)


class _Line:
    """Progress on stderr: one line written over on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._length = 0
        self._stage = ("", "")

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def show(self, progress: Progress) -> None:
        text = f"{progress.run} {progress.stage}".strip()
        if progress.num_steps:
            text += f" {progress.step}/{progress.num_steps}"
        if progress.eta_seconds is not None:
            text += f", about {_duration(progress.eta_seconds)} left"
        if self._is_terminal:
            print(f"\r{text:{self._length}}", end="", file=sys.stderr, flush=True)
            self._length = len(text)
            return
        stage = (progress.run, progress.stage)
        if stage != self._stage or progress.step % 5 == 0:
            print(text, file=sys.stderr, flush=True)
        self._stage = stage

    def end(self) -> None:
        """Leave the line as it is and go to the next."""
        if self._length:
            print(file=sys.stderr)
        self._length = 0


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _print_result(content: dict[str, Any]) -> None:
    print(json.dumps(content, allow_nan=False), flush=True)
