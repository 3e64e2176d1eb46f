"""Stage `evaluate`: judges from the frames whether clips show what their prompts ask for.

The prompts are combinations held out of training. Rendered clips of the same scenes are judged
too; their result is the accuracy of the judge.
"""

import hashlib
import itertools
import json
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray

from svg2.method.selection import PAPER_METHOD
from svg2.models.finding import BUILTIN_FOLDER, model_spec
from svg2.models.loading import load_pipeline
from svg2.models.prompts import (
    Knowledge,
    Scene,
    describe,
    held_out,
    knowledge_of,
    random_scene,
    rule,
)
from svg2.models.request import Request
from svg2.models.spec import ModelSpec
from svg2.runs.compare import Comparison, compare
from svg2.runs.dense_sparse import DenseRun, generate_dense
from svg2.runs.provenance import provenance
from svg2.runs.run import Run
from svg2.trace.atomic import json_bytes, write_atomic
from svg2.trace.metrics import psnr_db
from svg2.trace.records import RecordingPolicy, Trace
from svg2.training import clip_reader, shape_classifier
from svg2.training.clip_reader import HUES, flicker, following, moves_as, track_bodies
from svg2.training.data import TrainingError
from svg2.training.placement import camera_effect
from svg2.training.render import render_one
from svg2.training.shape_classifier import ShapeNet, load_or_train
from svg2.training.vae import psnr_of, to_model

_FOLLOWED = 8  # prompts whose clusters are followed, and clips that the VAE reconstructs
_LAST_LAYERS = 2  # whose clusters are also reported by themselves
_IDENTICAL_DB = 99.0
_MEASURED = (
    *("density", "compute_density", "psnr_db", "speedup", "order", "is_disturbed"),
    *("attention_share", "attention_speedup", "peak_memory_bytes", "dense_peak_memory_bytes"),
)
"""Fields of result.json that a report has of each prompt and method."""


def held_out_prompts(count: int, known: Knowledge, seed: int = 0) -> tuple[tuple[Scene, str], ...]:
    """Scenes held out of training and their prompts, in the words that a model knows.

    All colours can be told from every ground. For a model that knows two objects, two of five
    prompts have two.
    """
    rng, found = random.Random(f"held out {seed}"), []
    while len(found) < count:
        wants_two = known.max_bodies > 1 and len(found) % 5 in (1, 3)
        scene = random_scene(rng)
        prompt = describe(scene, rng)
        if (
            held_out(scene)
            and (len(scene.bodies) == 2) == wants_two
            and all(body.colour in HUES for body in scene.bodies)
            and known.covers(prompt)
        ):
            found.append((scene, prompt))
    return tuple(found)


def judge(frames: UInt8[ndarray, "F H W 3"], scene: Scene, shapes: ShapeNet) -> dict[str, Any]:
    """Which parts of `scene` a clip shows: colours, shapes and movements; and how it flickers."""
    growth = camera_effect(scene.camera)[1]
    seen = track_bodies(frames, [body.colour for body in scene.bodies], growth)
    alone = len(scene.bodies) == 1
    colours = [s.has_colour(alone) for s in seen]
    found = [shapes.shape_of(frames, s.masks) if s.seen else None for s in seen]
    asked = [body.shape for body in scene.bodies]
    return {
        "colour_ok": all(colours),
        "shape_ok": all(colours) and found == asked,
        "motion_ok": all(moves_as(s, b, scene) for s, b in zip(seen, scene.bodies, strict=True)),
        "shapes_seen": found,
        "flicker": round(flicker(frames), 3),
    }


def evaluate_model(
    folder: Path,
    report_path: Path,
    prompts: int,
    *,
    num_frames: int | None = None,
    teacher: Path | None = None,
    teacher_prompts: int | None = None,
    methods: Sequence[str] | None = None,
    sparse_prompts: int | None = None,
    shapes: Path,
    training: dict[str, Any] | None = None,
    device: str = "auto",
    minutes: float = float("inf"),
    target: Path | None = None,
) -> dict:
    """Judge a model's dense and sparse clips of held-out prompts, and compare the two.

    The report is written to `report_path` after each prompt. An interrupted evaluation of the same
    weights resumes from it.

    Args:
        prompts: number of prompts.
        num_frames: of each clip; None takes the model's own number.
        teacher: folder of another pipeline, whose dense clips of the same prompts and seeds are
            judged too, with its own steps and guidance.
        teacher_prompts: how many of the first prompts the teacher gets; None gives it all.
        methods: sparse methods to run beside dense. The first takes turns with dense, so that its
            speedup is of paired runs, and its clusters are followed. None runs the model's default
            method and the paper's.
        sparse_prompts: how many of the first prompts to run with `methods`; None runs all.
        shapes: file of the shape classifier; it is trained if there is none.
        training: records of the compute spent, for the report.
        device: where to generate; "auto" takes a GPU if there is one.
        minutes: no prompt starts after this time, but for the first.
        target: where a complete report is written too.

    Raises:
        TrainingError: other combinations were held out of the model's training than are today.
        RequestError: a number of frames that the model does not support.
    """
    end = time.monotonic() + 60 * minutes
    model = model_id(folder)
    spec = model_spec(model)
    if methods is None:
        methods = tuple(dict.fromkeys((spec.config.method, PAPER_METHOD)))
    asked = prompts_for(Path(spec.source), prompts)
    num_frames = num_frames or spec.num_frames
    size = {"height": spec.height, "width": spec.width, "num_frames": num_frames}
    requests = [
        Request(prompt=prompt, model=model, seed=i, **size) for i, (_, prompt) in enumerate(asked)
    ]
    runs = [Run.of(request, spec=spec) for request in requests]  # checks the number of frames
    pipe = load_pipeline(spec, "auto", device)
    other = None if teacher is None else _Teacher.load(teacher, device)
    classifier, accuracy = load_or_train(shapes, str(pipe.device))
    about = {
        "checkpoint": checkpoint_hash(folder),
        "teacher_checkpoint": None if teacher is None else checkpoint_hash(teacher),
        "teacher_prompts": teacher_prompts,
        "num_frames": num_frames,
        "judge": _judge_hash(),
        "methods": list(methods),
        "measured": list(_MEASURED),
        "sparse_prompts": sparse_prompts,
        "classifier_accuracy": round(accuracy, 4),
        "training": training or {},
    }
    rows = _earlier_rows(report_path, about, [prompt for _, prompt in asked])
    report: dict[str, Any] = {}
    for i in range(len(rows), len(asked)):
        if time.monotonic() > end and rows:
            break
        scene, run = asked[i][0], runs[i]
        wanted = methods if sparse_prompts is None or i < sparse_prompts else ()
        dense, compared = _generate(run, pipe, wanted)
        row = _row(run, scene, dense, compared, classifier)
        if other is not None and (teacher_prompts is None or i < teacher_prompts):
            frames = other.frames(requests[i])
            row["teacher"] = judge(frames, scene, classifier)
            row["to_teacher_db"] = psnr_db(dense.frames, frames)
        rows.append(row)
        report = _report(about, rows, asked, pipe)
        write_atomic(report_path, json_bytes(report))
        print(_line(rows[-1]), flush=True)
    report = _report(about, rows, asked, pipe)
    report["reconstruction_db"] = round(_reconstruction_db(pipe, asked, spec, num_frames), 2)
    write_atomic(report_path, json_bytes(report))
    if target is not None and report["complete"]:
        write_atomic(target, json_bytes(report))
    return report


@dataclass(frozen=True)
class _Teacher:
    """A pipeline that another is judged against."""

    spec: ModelSpec
    pipe: Any

    @classmethod
    def load(cls, folder: Path, device: str) -> "_Teacher":
        spec = model_spec(model_id(folder))
        return cls(spec, load_pipeline(spec, "auto", device))

    def frames(self, request: Request) -> UInt8[ndarray, "F H W 3"]:
        """Its dense clip of a request that leaves steps and guidance to the model."""
        return generate_dense(self.pipe, Run.of(request, spec=self.spec)).frames


def prompts_for(folder: Path, count: int, seed: int = 0) -> tuple[tuple[Scene, str], ...]:
    """Held-out prompts for the model in `folder`.

    Raises:
        TrainingError: other combinations were held out of its training than are today.
    """
    lab = json.loads((folder / "lab.json").read_text())
    if lab.get("rule") != rule():
        raise TrainingError(
            f"{folder} was trained with other combinations held out: judge it with the code of "
            "its time."
        )
    return held_out_prompts(count, knowledge_of(folder), seed)


def _generate(
    run: Run, pipe: Any, methods: Sequence[str]
) -> tuple[DenseRun, dict[str, Comparison]]:
    """The dense run, and a comparison with it by method. The first method takes turns with it."""
    compared: dict[str, Comparison] = {}
    dense = None if methods else generate_dense(pipe, run)
    for method in methods:
        policy = RecordingPolicy(steps=(), layers=(), heads=())
        if dense is None and run.request.seed < _FOLLOWED:
            steps = run.request.num_inference_steps
            heads = tuple(range(pipe.transformer.config.num_attention_heads))
            policy = RecordingPolicy(steps=(steps // 2, steps - 1), heads=heads)
        done = compare(run.with_settings(method=method), pipe, dense=dense, policy=policy)
        compared[method], dense = done, done.dense
    assert dense is not None
    return dense, compared


def _row(
    run: Run,
    scene: Scene,
    dense: DenseRun,
    compared: Mapping[str, Comparison],
    classifier: ShapeNet,
) -> dict[str, Any]:
    """The measurements of one prompt."""
    frames, i = dense.frames, run.request.seed
    rendered = render_one(scene, len(frames), frames.shape[1], random.Random(i)).frames[0].numpy()
    shown = judge(frames, scene, classifier)
    row: dict[str, Any] = {
        "prompt": run.request.prompt,
        "seed": i,
        "bodies": len(scene.bodies),
        "motions": [body.motion for body in scene.bodies],
        "rendered": judge(rendered, scene, classifier),
        "dense": shown | {"seconds": round(dense.seconds["denoise"], 2)},
    }
    for method, done in compared.items():
        measured = {name: done.result[name] for name in _MEASURED}
        row[method] = judge(done.sparse.frames, scene, classifier) | measured
        row[method]["top_p"] = done.sparse.run.config.top_p
        followed = cluster_following(done.trace, done.sparse.frames, scene)
        if followed:
            row["following"] = followed
    return row


def cluster_following(
    trace: Trace, frames: UInt8[ndarray, "F H W 3"], scene: Scene
) -> dict[str, float]:
    """Share of the tokens that stay on the first body, by "step/layer/head/side"."""
    masks = track_bodies(frames, [scene.bodies[0].colour])[0].masks
    found = {}
    for record in trace.records:
        for side, labels in (("q", record.q_labels), ("k", record.k_labels)):
            share = following(labels, trace.grid, masks)
            if share is not None:
                found[f"{record.step}/{record.layer}/{record.head}/{side}"] = round(share, 3)
    return found


def _report(
    about: dict[str, Any], rows: list[dict], asked: Sequence[tuple[Scene, str]], pipe: Any
) -> dict[str, Any]:
    methods = about["methods"]
    dtype = str(pipe.transformer.dtype).removeprefix("torch.")
    report = provenance(pipe.device) | {"dtype": dtype} | about
    report["complete"] = len(rows) == len(asked)
    report["shares"] = {m: _shares(rows, m) for m in ("dense", *methods)}
    report["rendered"] = _shares(rows, "rendered")
    if about["teacher_checkpoint"]:
        shared = [row for row in rows if "teacher" in row]
        report["teacher"] = _shares(shared, "teacher")
        report["beside_teacher"] = _shares(shared, "dense")
        report["to_teacher_db"] = _median(_finite(row["to_teacher_db"]) for row in shared)
    report["fidelity"] = {m: _fidelity(rows, m) for m in methods}
    report["following"] = _following(rows)
    return report | {"rows": rows}


def _shares(rows: list[dict], method: str) -> dict[str, Any]:
    """Shares of prompts whose clip is right, over all prompts and over those with two objects."""
    rows = [row for row in rows if method in row]
    judged = [row[method] for row in rows]
    both = [row[method] for row in rows if row["bodies"] == 2]
    return {
        "prompts": len(judged),
        "colour": _share(j["colour_ok"] for j in judged),
        "shape": _share(j["shape_ok"] for j in judged),
        "motion": _share(j["motion_ok"] for j in judged),
        "pairs": len(both),
        "both_colours": _share(j["colour_ok"] for j in both),
        "both_shapes": _share(j["shape_ok"] for j in both),
        "flicker_to_rendered": _median(
            row[method]["flicker"] / max(row["rendered"]["flicker"], 0.01) for row in rows
        ),
        "motion_by_kind": {
            kind: _share(row[method]["motion_ok"] for row in rows if kind in row["motions"])
            for kind in sorted({kind for row in rows for kind in row["motions"]})
        },
    }


def _fidelity(rows: list[dict], method: str) -> dict[str, float | None]:
    """A method's medians, and its worst prompt.

    The speedup's bound is what attention that takes no time would give.
    """
    results = [row[method] for row in rows if method in row]
    psnrs = [_finite(r["psnr_db"]) for r in results]
    shares = [r["attention_share"] for r in results]
    bounds = [1 / (1 - share) for share in shares if share is not None]
    return {
        "top_p": results[0]["top_p"] if results else None,
        "density_median": _median(r["density"] for r in results),
        "density_worst": max((r["density"] for r in results), default=None),
        "compute_density_median": _median(r["compute_density"] for r in results),
        "psnr_db_median": _median(psnrs),
        "psnr_db_worst": min(psnrs, default=None),
        "speedup_median": _median(r["speedup"] for r in results),
        "speedup_bound_median": _median(bounds),
        "disturbed": sum(bool(r["is_disturbed"]) for r in results),
    }


def _following(rows: list[dict]) -> dict[str, Any]:
    """Per side, over the means of each step, layer and head: the best and the medians."""
    followed = [row["following"] for row in rows if "following" in row]
    report: dict[str, Any] = {"clips": len(followed)}
    for side, word in (("q", "queries"), ("k", "keys")):
        places = sorted({place for shares in followed for place in shares if place[-1] == side})
        means = {
            place: float(np.mean([shares[place] for shares in followed if place in shares]))
            for place in places
        }
        if means:
            best = max(means, key=lambda place: means[place])
            last = max(map(_layer_of, means)) - _LAST_LAYERS
            report[word] = {
                "best": round(means[best], 3),
                "best_at": best,
                "median": _median(means.values()),
                "median_of_last_layers": _median(
                    share for place, share in means.items() if _layer_of(place) > last
                ),
            }
    return report


def _layer_of(place: str) -> int:
    """The layer in "step/layer/head/side"."""
    return int(place.split("/")[1])


def _earlier_rows(path: Path, about: dict[str, Any], prompts: Sequence[str]) -> list[dict]:
    """Rows of an interrupted evaluation with the same weights, prompts and measures."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    same = ("checkpoint", "teacher_checkpoint", "num_frames", "judge", "methods", "measured")
    same = (*same, "sparse_prompts", "teacher_prompts", "classifier_accuracy")
    if any(report.get(k) != about[k] for k in same):
        return []
    pairs = itertools.takewhile(
        lambda pair: pair[0]["prompt"] == pair[1], zip(report["rows"], prompts, strict=False)
    )
    return [row for row, _ in pairs]


def model_id(folder: Path) -> str:
    return "builtin" if folder.resolve() == BUILTIN_FOLDER else str(folder)


def _judge_hash() -> str:
    """Hash of the code that judges frames."""
    digest = hashlib.sha256()
    for module in (clip_reader, shape_classifier):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]


def checkpoint_hash(folder: Path) -> str:
    """SHA-256 of the names and contents of a pipeline's weights, settings and tokenizer."""
    digest = hashlib.sha256()
    files = [*folder.glob("*/*.safetensors"), *folder.glob("*/*.json"), *folder.glob("lab.json")]
    for path in sorted(files):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _reconstruction_db(
    pipe: Any, asked: Sequence[tuple[Scene, str]], spec: ModelSpec, num_frames: int
) -> float:
    """PSNR of the VAE on rendered clips of held-out scenes."""
    clips = [
        render_one(scene, num_frames, spec.height, random.Random(f"vae/{i}")).frames[0]
        for i, (scene, _) in enumerate(asked[:_FOLLOWED])
    ]
    return psnr_of(pipe.vae, to_model(torch.stack(clips)).to(pipe.device, pipe.vae.dtype))


def _line(row: dict[str, Any]) -> str:
    dense = row["dense"]
    right = [k.removesuffix("_ok") for k in ("colour_ok", "shape_ok", "motion_ok") if dense[k]]
    return f"{row['seed'] + 1}: {row['prompt']}: {', '.join(right) or 'nothing right'}"


def _finite(psnr_db: float | None) -> float:
    """A PSNR; a bound for None, which stands for identical clips."""
    return _IDENTICAL_DB if psnr_db is None else psnr_db


def _share(flags: Iterable[bool]) -> float | None:
    values = list(flags)
    return round(float(np.mean(values)), 3) if values else None


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return round(float(np.median(found)), 4) if found else None
