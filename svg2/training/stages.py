"""The stages of the training: what each runs on, and the plans that run several in turn."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from svg2.models.finding import BUILTIN_FOLDER
from svg2.runs.distributed import processes
from svg2.training.contact_sheet import make_contact_sheet
from svg2.training.data import Store, TrainingError, checkpoint_record, render_clips
from svg2.training.decoder import redraw_with
from svg2.training.denoiser import load_denoiser, open_denoiser
from svg2.training.distil import Recipe, distilling
from svg2.training.dit import DIT, LONG, Course, compile_blocks, train_denoiser
from svg2.training.evaluate import evaluate_model
from svg2.training.latents import encode_clips, load_vae
from svg2.training.parcel import pack, unpack
from svg2.training.pipeline import DEFAULTS, LONG_LAB, UNIPC, assemble, lab_of, ship
from svg2.training.starts import Starts, made
from svg2.training.text import train_text
from svg2.training.vae import train_vae

BENCH = Path(__file__).parents[2] / "assets" / "bench"
_UNLIMITED = math.inf
_SHORT_SHARE = 4  # of so many clips of 33 frames, there is one of 17
DENOISERS = ("dit", "long", "distil")  # stages that train the transformer, in their order
_LONGER = ("encode-long", "long", "distil", "extend")  # go on from the built-in model by default


class Training:
    """A work folder, and the stages over it. Every stage gets the minutes that it may take."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        work: Path = args.work
        work.mkdir(parents=True, exist_ok=True)
        self.clips, self.latents = Store(work / "clips"), Store(work / "latents")
        self.long_latents = Store(work / "latents33")
        self.common = {"seed": args.seed, "device": args.device}
        self.pretrained: Path | None = args.pretrained
        goes_on = args.stage in _LONGER or any(self.checkpoint(s).exists() for s in DENOISERS[1:])
        if self.pretrained is None and goes_on and not self.checkpoint("vae").exists():
            self.pretrained = BUILTIN_FOLDER
        if self.pretrained is not None:
            _check_pipeline(self.pretrained, "name the folder of a shipped one with --pretrained")
        self.starts = Starts(work, self.pretrained)

    def checkpoint(self, stage: str) -> Path:
        """Where a stage writes its weights."""
        return self.args.work / f"{stage}.pt"

    @property
    def encoder(self) -> Path:
        """The VAE that makes latents: the one trained here, or the one to start from.

        Raises:
            TrainingError: there is neither.
        """
        if self.pretrained and not self.checkpoint("vae").exists():
            return self.pretrained
        return made(self.checkpoint("vae"), "vae")

    @property
    def needs_text(self) -> bool:
        """Whether the denoiser has yet to start, and without a pipeline's text encoder."""
        return self.pretrained is None and not self.checkpoint("dit").exists()

    def last_of(self, stages: Sequence[str]) -> str:
        """The last of `stages` that has a checkpoint; the first if none has."""
        found = [stage for stage in stages if self.checkpoint(stage).exists()]
        return found[-1] if found else stages[0]

    def render(self, minutes: float) -> None:
        frames, size = int(DEFAULTS["num_frames"]), int(DEFAULTS["height"])
        render_clips(self.clips, self.args.vae_clips, frames, size, minutes=minutes, **self.common)

    def vae(self, minutes: float) -> None:
        made(self.clips.folder, "render")
        train_vae(
            *(self.clips, self.checkpoint("vae"), minutes),
            start=self.pretrained,
            **self.common,
        )

    def encode(self, minutes: float) -> None:
        count = self.args.clips
        encode_clips(
            *(self.clips, self.latents, self.encoder, count), minutes=minutes, **self.common
        )

    def encode_long(self, minutes: float) -> None:
        """Encode clips of both lengths. Those of 17 frames come first, and give the statistics."""
        begun, count = time.monotonic(), self.args.clips
        short = -(-count // _SHORT_SHARE)
        parts = 1 + 2 * _SHORT_SHARE  # the longer clips have twice the frames
        encode_clips(
            *(self.clips, self.latents, self.encoder, short),
            minutes=minutes / parts,
            **self.common,
        )
        encode_clips(
            *(Store(self.args.work / "clips33"), self.long_latents, self.encoder, count),
            num_frames=int(LONG_LAB["num_frames"]),
            like=self.latents,
            minutes=minutes - (time.monotonic() - begun) / 60,
            **self.common,
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

    def before_long(self) -> None:
        """Check that there are weights to start from, then encode clips if there are none."""
        self.starts.unpack_teacher()
        _ = self.starts.long
        self._encode_first()

    def _encode_first(self) -> None:
        """Encode the clips that `long` and `distil` read, where there are none of a length."""
        if not (len(self.latents) and len(self.long_latents)):
            self.encode_long(_UNLIMITED)

    def before_distil(self) -> None:
        """Check that there is a teacher, then encode clips if there are none."""
        self.starts.unpack_teacher()
        _ = self.starts.teacher
        self._encode_first()

    def dit(self, minutes: float) -> None:
        self._train(DIT, [self.latents], self.pretrained, minutes, text=self.checkpoint("text"))

    def long(self, minutes: float) -> None:
        self._train(LONG, [self.latents, self.long_latents], self.starts.long, minutes)

    def pack(self, minutes: float) -> None:
        stage, parcel = self._parcel
        pack(made(self.checkpoint(stage), stage), self._shipped, parcel)

    def unpack(self, minutes: float) -> None:
        stage, parcel = self._parcel
        unpack(parcel, self._shipped, self.checkpoint(stage))

    @property
    def _parcel(self) -> tuple[str, Path]:
        """The stage whose training is packed or unpacked, and the file for it."""
        stage = self.args.weights or "long"
        return stage, self.args.parcel or BUILTIN_FOLDER.with_name(f"{stage}.zip")

    @property
    def _shipped(self) -> Path:
        """The pipeline that a parcel counts from."""
        return self.args.pretrained or BUILTIN_FOLDER

    def distil(self, minutes: float) -> None:
        args = self.args
        teacher, _ = open_denoiser(self.starts.teacher)
        if args.compile:
            compile_blocks(teacher)
        recipe = Recipe(args.guidance, args.steps, args.on_policy, args.substeps)
        course = distilling(teacher.to(args.device), recipe)
        self._train(course, [self.latents, self.long_latents], self.starts.student, minutes)

    def _train(
        self, course: Course, stores: list[Store], start: Path | None, minutes: float, **more: Path
    ) -> None:
        train_denoiser(
            *(course, stores, self.checkpoint(course.stage), minutes),
            start=start,
            is_compiled=self.args.compile,
            **self.common,
            **more,
        )

    def decoder(self, minutes: float) -> None:
        made(self.clips.folder, "render")
        redraw = None
        # A student of few steps knows only the noise levels of its schedule.
        denoiser = self.checkpoint(self.last_of(("dit", "long")))
        if denoiser.exists():
            redraw = redraw_with(denoiser, self.latents, **self.common)
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
        self._ship(self.args.weights or self.last_of(DENOISERS), self.args.out)

    def _ship(self, stage: str, out: Path) -> None:
        model, record = load_denoiser(made(self.checkpoint(stage), stage))
        decoder = self.checkpoint("decoder")
        autoencoder = load_vae(decoder if decoder.exists() else self.encoder, self.latents)
        scheduler = self.args.scheduler or record.get("scheduler", UNIPC)
        parts = (autoencoder, model.transformer, model.text_encoder, model.tokenizer)
        ship(assemble(*parts, scheduler), out, lab_of(stage, record))

    def evaluate(self, minutes: float) -> None:
        args = self.args
        _check_pipeline(args.out, "run `ship` first, or name another with --out")
        if args.teacher is not None:
            _check_pipeline(args.teacher, "name the folder of a shipped one with --teacher")
        is_shipped = args.out.resolve() == BUILTIN_FOLDER and args.frames is None
        whole = BENCH / "builtin_model.json" if is_shipped else None
        of_frames = "" if args.frames is None else f"-{args.frames}-frames"
        report = evaluate_model(
            args.out,
            args.work / f"evaluation{of_frames}.json",
            args.prompts,
            num_frames=args.frames,
            teacher=args.teacher,
            teacher_prompts=args.teacher_prompts,
            methods=args.methods,
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
        """Run all stages of the first training within `minutes` in total; a later call resumes."""
        end = time.monotonic() + 60 * minutes
        trained = (checkpoint_record(self.checkpoint("vae")) or {}).get("finished")
        is_first = not trained and self.pretrained is None
        plan = PLANS["all" if is_first else "all again"]
        self._in_turn(plan, end)
        self._ship("dit", self.args.out)
        self.evaluate(_minutes_to(end))

    def extend(self, minutes: float) -> None:
        """Lengthen and distil the built-in model within `minutes` in total; a later call resumes.

        The teacher is shipped into the work folder, to judge the student against it.
        """
        end = time.monotonic() + 60 * minutes
        self.starts.unpack_teacher()
        self._in_turn(PLANS["extend"], end)
        self.args.teacher, self.args.methods = self.args.work / "teacher", []
        self._ship("long", self.args.teacher)
        self._ship("distil", self.args.out)
        self.evaluate(_minutes_to(end))

    def _in_turn(self, plan: Mapping[str, float], end: float) -> None:
        """Run the stages of a plan until `end`. Time that one leaves goes to those after it."""
        kept = 1 - sum(plan.values())  # of the time, for what comes after the plan
        for i, (name, share) in enumerate(plan.items()):
            part = max(_minutes_to(end), 0.01) * share / (sum(list(plan.values())[i:]) + kept)
            print(f"{name}: {part:.1f} minutes", file=sys.stderr, flush=True)
            if name != "text" or self.needs_text:
                resumed = _spent(self.checkpoint(name)) if STAGES[name].counts_earlier else 0.0
                STAGES[name].run(self, part + resumed)

    def _records(self) -> dict[str, dict]:
        """What the checkpoints say of the compute spent."""
        found = {}
        for name in STAGES:
            record = checkpoint_record(self.checkpoint(name))
            if record is not None:
                kept = ("seed", "seconds", "steps", "clips", "accuracy", "recipe")
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
    """

    line: str
    run: Callable[[Training, float], None]
    prepare: Callable[[Training], None] | None = None
    is_timed: bool = False
    counts_earlier: bool = False
    on_all_ranks: bool = False


_TRAINED = {"is_timed": True, "counts_earlier": True, "on_all_ranks": True}
STAGES: Mapping[str, Stage] = {
    "render": Stage("render clips of the grammar's scenes", Training.render, on_all_ranks=True),
    "vae": Stage("train the autoencoder", Training.vae, **_TRAINED),
    "encode": Stage("encode clips; renders the missing ones", Training.encode, on_all_ranks=True),
    "text": Stage("train the text encoder", Training.text, is_timed=True),
    "dit": Stage(
        "train the denoiser; first runs encode and text",
        Training.dit,
        prepare=Training.before_dit,
        **_TRAINED,
    ),
    "decoder": Stage(
        "train the decoder on latents that the denoiser draws", Training.decoder, **_TRAINED
    ),
    "encode-long": Stage(
        "encode clips of 33 frames, and a quarter as many of 17",
        Training.encode_long,
        on_all_ranks=True,
    ),
    "long": Stage(
        "teach the denoiser clips of 33 frames; encodes them first if there are none",
        Training.long,
        prepare=Training.before_long,
        **_TRAINED,
    ),
    "pack": Stage(
        "write what `long` (--weights) moved of the shipped weights, in 7 MB", Training.pack
    ),
    "unpack": Stage("read it back, for `long` to go on elsewhere", Training.unpack),
    "distil": Stage(
        "teach a student the guidance, and few steps, from the weights of `long`",
        Training.distil,
        prepare=Training.before_distil,
        **_TRAINED,
    ),
    "ship": Stage("write the pipeline into --out", Training.ship),
    "evaluate": Stage("judge clips of held-out prompts", lambda t, m: t.evaluate(m)),
    "sheet": Stage("draw clips of held-out prompts as one picture", Training.sheet),
}
"""Stages by name, in the order in which they run."""

PLANS: Mapping[str, Mapping[str, float]] = {
    "all": {
        **{"render": 0.05, "vae": 0.25, "encode": 0.15},
        **{"text": 0.05, "dit": 0.37, "decoder": 0.05},
    },
    # The autoencoder is trained.
    "all again": {"render": 0.04, "encode": 0.1, "text": 0.03, "dit": 0.69, "decoder": 0.05},
    "extend": {"encode-long": 0.2, "long": 0.45, "distil": 0.25},
}
"""Shares of the time of a call. The rest is for shipping and judging."""


def _minutes_to(end: float) -> float:
    """Minutes until `end` of the monotonic clock; 0 after it."""
    return max(0.0, end - time.monotonic()) / 60


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
