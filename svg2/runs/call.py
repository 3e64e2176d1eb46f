"""The calls of a pipeline for a run: loading it, reading its inputs, generating frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from svg2.errors import Cancelled, MediaError, NotFinite, RequestError
from svg2.hooks.enable import Handle, check_kernels
from svg2.models.inputs import check_file, cut_sentence, describe_cut, read_image
from svg2.models.loading import load_pipeline
from svg2.models.pipelines import call_arguments
from svg2.models.spec import ModelSpec
from svg2.runs.progress import Loop, Stopwatch, Watch, device_of
from svg2.runs.run import Run
from svg2.trace.video import Frames, read_clip, shape_and_rate

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


def load(spec: ModelSpec, watch: Watch, dtype: str = "auto", device: str = "auto") -> Any:
    """Load a model's pipeline and report it.

    A cancel meanwhile is left to the caller, who may keep the pipeline.

    Args:
        dtype, device: as in `svg2.models.request.Request`.

    Raises:
        ModelUnavailable: a model that can't be loaded here.
        RequestError: a GPU that this machine does not have.
    """
    watch.report("", "load")
    return load_pipeline(spec, dtype, device)


def load_for(run: Run, watch: Watch) -> Any:
    """Load the pipeline of a run's model, if the kernels of its method can run here.

    Raises:
        As `load`.
        ConfigError: they can't.
        Cancelled: the watch was cancelled.
    """
    check_kernels(run.config)
    pipe = load(run.spec, watch, run.request.dtype, run.request.device)
    watch.check()
    return pipe


def read_video(path: str, num_frames: int, width: int, height: int) -> list[Image]:
    """Read the first frames of an MP4 or MOV video as RGB, scaled to cover the size and cropped.

    Args:
        width, height: size of the frames in pixels.

    Raises:
        RequestError: a missing or too large file; one that is not such a video; or too few frames.
    """
    from PIL import Image

    check_file("video", path)
    with _as_request_error(path):
        frames = read_clip(path, num_frames, width, height)
    if len(frames) < num_frames:
        raise RequestError(
            f"The video {path!r} has {len(frames)} frames, but {num_frames} are needed: choose a "
            "longer video or fewer frames."
        )
    return [Image.fromarray(frame) for frame in frames]


def describe_given(run: Run) -> list[str]:
    """Sentences on what becomes of the image or video that a run starts from.

    Raises:
        RequestError: a file that can't be read.
    """
    request = run.request
    size = (request.width, request.height)
    found = []
    if request.image is not None:
        found.append(describe_cut(request.image, *size))
    if request.video is not None:
        with _as_request_error(request.video):
            width, height, fps = shape_and_rate(request.video)
        found.append(cut_sentence("video", (width, height), size))
        if abs(fps / run.spec.fps - 1) > 0.05:
            found.append(
                f"The video has {fps:g} frames per second and the model's clips have "
                f"{run.spec.fps:g}: its frames are taken as they are, so that it plays "
                f"{'slower' if fps > run.spec.fps else 'faster'}."
            )
    return [sentence for sentence in found if sentence]


@contextmanager
def _as_request_error(path: str) -> Iterator[None]:
    """What is wrong with a video file, as what is wrong with the request."""
    try:
        yield
    except MediaError as error:
        reason = str(error).rstrip(".")
        raise RequestError(f"The video {path!r} can't be read as MP4 or MOV: {reason}.") from error


def generate(
    pipe: Any, run: Run, watch: Watch, name: str, handle: Handle | None = None, **parts: Any
) -> tuple[Frames, Loop]:
    """Generate the frames of a run, uint8 `[F, H, W, 3]`.

    Args:
        name: name of the run in progress reports.
        handle: the enabled or measured pipeline, for previews; None shows none.
        parts: `turn` and `aside` of the `Loop`.

    Returns:
        The frames, and the loop, with the seconds of `encode`, `denoise` and `decode`.
    Raises:
        RequestError: an image or video of the request that can't be read.
        NotFinite: latents or frames that are infinite or NaN.
        Cancelled: the watch was cancelled.
    """
    stopwatch = Stopwatch(device_of(pipe))
    loop = Loop(pipe, watch, name, stopwatch, handle if watch.preview else None, **parts)
    watch.check()
    watch.report(name, "encode")
    stopwatch.lap()
    frames = np.asarray(_call(pipe, run, loop, output_type="np")[0])
    loop.seconds["decode"] = stopwatch.lap()
    loop.check_frames(frames)
    watch.check()
    return (frames * 255).round().astype(np.uint8), loop


def warm_up(pipe: Any, run: Run, watch: Watch) -> None:
    """Run one step that is not timed and not reported."""
    num_steps = 1
    while run.kind.num_steps(num_steps) < 1:
        num_steps += 1
    short = dataclasses.replace(run.request, num_inference_steps=num_steps)
    loop = Loop(pipe, watch, None, Stopwatch(device_of(pipe)))
    _call(pipe, dataclasses.replace(run, request=short), loop, output_type="latent")


def _call(pipe: Any, run: Run, loop: Loop, output_type: str) -> Any:
    """Call the pipeline for a run and return its frames or latents.

    The starting noise comes from a CPU generator, so that a seed gives the same noise on every
    device. Schedulers that draw noise of their own get no generator from the pipelines.
    """
    import torch

    kind, request = run.kind, run.request
    media = None
    if kind.takes == "image" and request.image is not None:
        media = read_image(request.image, request.width, request.height)
    elif kind.takes == "video" and request.video is not None:
        size = (request.num_frames, request.width, request.height)
        media = read_video(request.video, *size)
    arguments = call_arguments(kind, request, run.spec.max_sequence_length, media)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    with _seeded(request.seed, device_of(pipe)), ExitStack() as undo:
        loop.follow(undo)
        if kind.guidance == "guider":
            guider = pipe.guider
            undo.callback(setattr, pipe, "guider", guider)
            pipe.guider = guider.new(guidance_scale=request.guidance_scale)
        try:
            return pipe(**arguments, generator=generator, output_type=output_type).frames
        except (Cancelled, NotFinite):
            pipe.maybe_free_model_hooks()  # as the pipeline does at the end of its call
            raise


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own generators start from a seed, and afterwards are as they were."""
    import torch

    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
