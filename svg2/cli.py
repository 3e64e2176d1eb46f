"""The command line: compare, sweep, models, bench.

Progress goes to stderr, the result is the last line of stdout.
Exit codes: 0 done, 2 bad arguments or input, 1 failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svg2.arguments import BUDGETS, TOP_PS, parse_arguments
from svg2.config import parse_settings
from svg2.errors import Cancelled, InputError, SuiteUnavailable, UsageError
from svg2.process import keep_freed_memory
from svg2.runs.distributed import joined, processes
from svg2.terminal import Stopped, running
from svg2.trace.scratch import is_full

if TYPE_CHECKING:
    from svg2.runs.run import Run

DISK_FULL = "The disk is full: free some space and run the same command again."
OUTPUTS = ("dense.mp4", "svg2.mp4", "compare.mp4", "trace.npz", "result.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments of the command; None takes those of the process.

    Returns:
        The exit code.
    """
    keep_freed_memory()
    try:
        arguments = parse_arguments(argv)
        if getattr(arguments, "like", None) is not None:
            arguments = parse_arguments(argv, _arguments_like(arguments.like))
        return _COMMANDS[arguments.command](arguments)
    except InputError as error:
        print(f"svg2: {_one_line(error)}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"svg2: {_one_line(stopped)}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("svg2: Interrupted.", file=sys.stderr)
        return 130
    except OSError as error:  # a full disk, a folder that went away
        advice = "" if not is_full(error) else f" {DISK_FULL}"
        print(f"svg2: {_one_line(error)}{advice}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":
            raise  # torch's error is matched by name, because torch may not be loaded
        print("svg2: Out of memory: ask for a smaller or shorter video.", file=sys.stderr)
        return 1


def _arguments_like(path: str) -> dict[str, Any]:
    """The arguments that make a clip again, as the clip itself tells them.

    Raises:
        UsageError: a file that can't be read. MediaError: one that does not tell.
    """
    from svg2.trace.clip_settings import MAX_BYTES, read_settings

    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"The clip {path!r} can't be read: {reason}.") from error
    request, config, started = read_settings(data)
    for name in started:
        print(
            f"svg2: The clip started from a file that it does not hold: name it by --{name}.",
            file=sys.stderr,
        )
    names = {"num_frames": "frames", "num_inference_steps": "steps"}
    told = {names.get(name, name): value for name, value in request.items()}
    budget = "top_p" if config.get("density") is None else "density"
    of_their_own = {"method": config.get("method"), budget: config.get(budget)}
    settings = [
        f"{name}={value}"
        for name, value in config.items()
        if name not in ("method", "top_p", "density", "impl")
    ]
    return told | {k: v for k, v in of_their_own.items() if v is not None} | {"settings": settings}


def _compare(arguments: argparse.Namespace) -> int:
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise UsageError("Give either --prompt or --prompts, and not both.")
    if arguments.layout is not None and arguments.prompts is None:
        raise UsageError("--layout is for a file of prompts: give --prompts.")
    if arguments.samples is not None and arguments.layout is None:
        raise UsageError("--samples is for clips of a benchmark: give --layout vbench.")
    if arguments.prompts is not None:
        return _compare_prompts(arguments)
    run = _run_of(arguments)
    share = processes()
    share.check_tokens(run.n_tokens)
    folder = _output_folder(arguments.out, for_clips=True)
    _warn_if_outside_grammar(run)

    from svg2.runs.call import load_for
    from svg2.runs.compare import compare, save_comparison
    from svg2.runs.outlook import budget_warning, forecast, made
    from svg2.runs.progress import device_of
    from svg2.runs.provenance import hardware
    from svg2.runs.race import why_no_race

    def keep_dense(stopped: Cancelled) -> str:
        return (
            _keep_dense(stopped, run, folder) if share.is_first else "this process writes no files"
        )

    warning = budget_warning(run, made()) if share.is_first else None
    if warning is not None:
        print(f"svg2: {warning}", file=sys.stderr)
    with running(keep_dense, shows_progress=share.is_first) as watch:
        pipe = load_for(run, watch)
        with joined(pipe) if share.world > 1 else nullcontext():
            print(f"svg2: {forecast(run, hardware(device_of(pipe)))}", file=sys.stderr)
            if arguments.race and (reason := why_no_race(pipe)):
                print(f"svg2: {reason}", file=sys.stderr)
            comparison = compare(run, pipe, watch=watch, in_turns=arguments.race)
        if share.is_first:
            save_comparison(comparison, folder)
    if share.is_first:
        for sentence in comparison.result["warnings"]:
            print(f"svg2: {sentence}", file=sys.stderr)
        _print_result(comparison.result)
    return 0


def _compare_prompts(arguments: argparse.Namespace) -> int:
    from svg2.runs.batch import PromptFolders, compare_all, read_prompts
    from svg2.runs.clip_set import VBENCH_SAMPLES, ClipSet

    prompts = read_prompts(arguments.prompts)
    arguments.prompt = prompts[0]
    run, share = _run_of(arguments), processes()
    folder = Path(arguments.out)
    if arguments.layout is None:
        layout = PromptFolders(folder, prompts, run)
    else:
        samples = VBENCH_SAMPLES if arguments.samples is None else arguments.samples
        layout = ClipSet(folder, prompts, run, samples)
    _output_folder(arguments.out, for_clips=True)
    kept = f"completed prompts are kept in {folder}, and the same command continues from there"
    with running(lambda _: kept, shows_progress=share.is_first) as watch:
        done = compare_all(layout, share, watch, arguments.race)
    _print_result(done)
    return 0


def _keep_dense(stopped: Cancelled, run: Run, folder: Path) -> str:
    """Write the dense clip if it was complete, and return a clause that says what was kept."""
    from svg2.trace.atomic import write_or_keep
    from svg2.trace.clip_settings import tags_of
    from svg2.trace.video import encode_mp4

    if stopped.dense is None:
        return "nothing was written"
    # files of an earlier run would not belong to this dense clip
    clip = encode_mp4(stopped.dense.frames, run.spec.fps, tags=tags_of(run.request.to_dict()))
    write_or_keep(folder, {"dense.mp4": clip}, instead_of=OUTPUTS)
    return f"the dense clip was complete and is kept as {folder / 'dense.mp4'}"


def _sweep(arguments: argparse.Namespace) -> int:
    if processes().world > 1:
        raise UsageError(
            "A sweep runs in one process: use compare to share a video among several."
        )
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise UsageError("Give either --prompt or --prompts, and not both.")
    if arguments.prompts is not None:
        for name in ("in_turns", "top_ps", "trace_mb"):
            if getattr(arguments, name):
                option = "--top-p" if name == "top_ps" else f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} goes with --prompt: leave it out with --prompts.")
        return _sweep_prompts(arguments)
    if arguments.budgets is not None:
        raise UsageError("--compute-density goes with --prompts: give --top-p with --prompt.")
    run = _run_of(arguments)
    top_ps = [parse_settings([f"top_p={text}"])["top_p"] for text in arguments.top_ps or TOP_PS]

    from svg2.runs.sweep import SweepPlan, sweep

    plan = SweepPlan.of(run, arguments.methods, top_ps)
    folder = _output_folder(arguments.out, for_clips=True)
    _warn_if_outside_grammar(run)

    with running(lambda _: f"completed runs are kept in {folder}") as watch:
        limit = arguments.trace_mb and round(arguments.trace_mb * 2**20)
        content = sweep(
            *(plan, folder),
            watch=watch,
            trace_bytes_limit=limit,
            in_turns=arguments.in_turns,
        )
    _print_result(content)
    return 0


def _sweep_prompts(arguments: argparse.Namespace) -> int:
    from svg2.runs.batch import read_prompts
    from svg2.runs.sweep_prompts import Grid, sweep_prompts

    prompts = read_prompts(arguments.prompts)
    arguments.prompt = prompts[0]
    run = _run_of(arguments)
    seeded = tuple((prompt, arguments.seed + i) for i, prompt in enumerate(prompts))
    budgets = tuple(arguments.budgets or BUDGETS)
    grid = Grid(run, seeded, tuple(arguments.methods), budgets)
    grid.points(*seeded[0])  # checks the methods
    folder = _output_folder(arguments.out)
    kept = f"completed points are kept in {folder}, and the same command continues from there"
    with running(lambda _: kept) as watch:
        content = sweep_prompts(grid, folder, watch=watch)
    _print_result({"statistics": content["statistics"]})
    return 0


def _models(arguments: argparse.Namespace) -> int:
    from svg2.models.listing import listed_models
    from svg2.models.pipelines import PIPELINES

    listed = listed_models()
    for entry in listed:
        mark = "available" if entry["available"] else "not available"
        print(f"{entry['model']:16} {mark:14} {entry['title']}", file=sys.stderr)
        print(f"{'':16} {entry['why']}", file=sys.stderr)
        for size, need in entry.get("memory", {}).items():
            print(
                f"{'':16} {size}: {need['tokens']:,} tokens; a dense step needs about "
                f"{need['dense_gib']:.1f} GiB, and SVG2 adds {need['added_gib']:.1f} GiB",
                file=sys.stderr,
            )
        if "license" in entry:
            print(f"{'':16} {entry['license']}; settings: {entry['source']}", file=sys.stderr)
    print(
        "--model also takes the folder or the hub id of a pipeline of one of these classes: "
        f"{', '.join(PIPELINES)}.",
        file=sys.stderr,
    )
    _print_result({"models": listed})
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    path = Path(arguments.out)
    _output_folder(str(path.parent))
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file.")
    if arguments.toy and arguments.suite in ("cpu", "calls", "timings"):
        raise UsageError("--toy is for the suites gpu and e2e.")

    from svg2.bench.calls import run_calls_suite
    from svg2.bench.cpu import run_cpu_suite
    from svg2.bench.e2e import run_e2e_suite
    from svg2.bench.gpu import run_gpu_suite
    from svg2.bench.timings import run_timings_suite

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        on_cpu = {
            "cpu": run_cpu_suite,
            "calls": run_calls_suite,
            "timings": run_timings_suite,
        }.get(arguments.suite)
        if on_cpu is not None:
            record = on_cpu(path, say)
        else:
            on_gpu = run_gpu_suite if arguments.suite == "gpu" else run_e2e_suite
            record = on_gpu(path, say, toy=arguments.toy)
    except SuiteUnavailable as error:
        raise Stopped(str(error), 1) from error
    _print_result(record)
    return 0


def _run_of(arguments: argparse.Namespace) -> Run:
    """The run of a command line, checked before torch is loaded.

    Raises:
        InputError: an invalid argument.
    """
    from svg2.models.request import Request
    from svg2.runs.run import Run

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
    texts = list(arguments.settings)
    # These settings have an option of their own.
    for name in ("method", "top_p", "density", "impl"):
        if getattr(arguments, name, None) is not None:
            texts.append(f"{name}={getattr(arguments, name)}")
    run = Run.of(request, preset=arguments.preset, settings=parse_settings(texts))
    if processes().is_first and (run.request.image or run.request.video):
        from svg2.runs.call import describe_given

        for sentence in describe_given(run):
            print(f"svg2: {sentence}", file=sys.stderr)
    return run


def _output_folder(name: str, for_clips: bool = False) -> Path:
    """Make the folder if need be and check that files, or clips too, can be written there.

    Raises:
        UsageError: a folder that can't be made or written.
        MediaError: no ffmpeg that can encode clips.
    """
    if for_clips:
        from svg2.trace.video import check_encoder

        check_encoder()  # before a model is loaded
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"The folder {name!r} can't be written: {reason}.") from error
    return folder


def _warn_if_outside_grammar(run: Run) -> None:
    if run.request.model != "builtin":
        return
    from svg2.models.finding import BUILTIN_FOLDER
    from svg2.models.prompts import knowledge_of

    if not knowledge_of(BUILTIN_FOLDER).covers(run.request.prompt):
        print(
            "svg2: The prompt is outside the grammar of the built-in model: the video may not "
            "show what it says.",
            file=sys.stderr,
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _print_result(content: dict[str, Any]) -> None:
    print(json.dumps(content, allow_nan=False), flush=True)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "compare": _compare,
    "sweep": _sweep,
    "models": _models,
    "bench": _bench,
}
