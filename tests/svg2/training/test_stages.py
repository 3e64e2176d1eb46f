"""All stages of training run, resume and ship a pipeline that diffusers loads."""

import contextlib
import json
import random
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from svg2.models.finding import BUILTIN_FOLDER, model_spec
from svg2.models.prompts import Body, Scene, knowledge_of, rule, vocabulary
from svg2.training import __main__ as stages
from svg2.training import decoder, dit
from svg2.training.__main__ import main
from svg2.training.data import (
    Store,
    TrainingError,
    checkpoint_record,
    place_training,
    render_clips,
    render_training,
    save_checkpoint,
    staging_of,
)
from svg2.training.decoder import redraw_with
from svg2.training.denoiser import Denoiser, load_shipped, positions
from svg2.training.distil import Recipe, distilling
from svg2.training.dit import DIT, LONG, Course, train_denoiser
from svg2.training.latents import LatentSet, encode_clips, fingerprint, load_latents, load_vae
from svg2.training.muon import orthogonalise
from svg2.training.pipeline import (
    DEFAULTS,
    assemble,
    build_transformer,
    lab_of,
    ship,
)
from svg2.training.render import render_one
from svg2.training.vae import (
    CROPS,
    WholeClips,
    build_vae,
    open_vae,
    to_model,
)
from svg2.training.views import CURRICULA, Lesson, Places, View, all_places
from tests.svg2.training.two_ranks import SIZE
from tests.tree import ROOT

PROMPT = "a red ball rolling to the right and a blue cube spinning over a checkered floor"


@pytest.fixture
def small_clips(monkeypatch) -> None:
    """Stages make clips of a quarter of the usual pixels."""
    monkeypatch.setitem(DEFAULTS, "height", SIZE)
    monkeypatch.setitem(DEFAULTS, "width", SIZE)


@pytest.mark.slow
def test_stages_from_clips_to_a_pipeline(tmp_path, small_clips):
    work, out = tmp_path / "work", tmp_path / "out"

    def stage(name: str, *args: str) -> None:
        main([name, "--work", str(work), "--out", str(out), "--device", "cpu", *args])

    stage("render", "--vae-clips", "2")
    clips = Store(work / "clips")
    assert len(clips) == 2
    first = np.array(clips.rows())
    stage("render", "--vae-clips", "3")  # goes on
    assert len(clips) == 3
    assert np.array_equal(clips.rows()[:2], first)
    stage("vae", "--minutes", "0.02")
    stage("encode", "--clips", "4")  # one more than were rendered
    latents = Store(work / "latents")
    assert latents.scenes[:3] == clips.scenes
    assert latents.rows().shape == (4, 2, 16, 9, SIZE // 8, SIZE // 8)
    rows = latents.rows().astype(np.float32)  # one clip's colours are not those of all
    axes = (0, 1, 3, 4, 5)
    np.testing.assert_allclose(latents.about["mean"], rows.mean(axis=axes), atol=1e-3)
    std = np.sqrt(rows.var(axis=axes).mean())
    np.testing.assert_allclose(latents.about["std"], [std] * 16, rtol=1e-3)
    stage("text", "--minutes", "0.05")
    reading = (work / "text.pt").read_bytes()
    record = checkpoint_record(work / "text.pt")
    assert record is not None
    assert record["seconds"] < 60  # within its minutes, after one step at the least
    stage("dit", "--minutes", "0.03", "--clips", "4")
    assert (work / "text.pt").read_bytes() == reading  # the denoiser depends on it
    stage("dit", "--minutes", "0.06", "--clips", "4")  # resumes
    stage("decoder", "--minutes", "0.02")
    stage("ship")
    assert knowledge_of(out).words == frozenset(vocabulary())
    assert sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) < 28e6
    assert all(f.stat().st_size < 10e6 for f in out.rglob("*") if f.is_file())
    pipe = WanPipeline.from_pretrained(out, local_files_only=True)
    lab = json.loads((out / "lab.json").read_text())
    assert len(pipe.tokenizer(PROMPT).input_ids) <= lab["max_sequence_length"]
    frames = pipe(
        PROMPT,
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=lab["guidance_scale"],
        max_sequence_length=lab["max_sequence_length"],
        generator=torch.Generator().manual_seed(0),
    ).frames
    assert frames.shape == (1, 5, 32, 32, 3)
    assert np.isfinite(frames).all()


@pytest.mark.slow
def test_one_call_makes_a_whole_and_another_goes_on_from_it(tmp_path, small_clips, monkeypatch):
    work, out = tmp_path / "work", tmp_path / "out"
    judged = []
    monkeypatch.setattr(stages.Training, "evaluate", lambda self, minutes: judged.append(minutes))

    def record(name: str) -> dict:
        found = checkpoint_record(work / name)
        assert found is not None
        return found

    call = ["all", "--work", str(work), "--out", str(out), "--device", "cpu"]
    main([*call, "--minutes", "0.04", "--vae-clips", "1", "--clips", "1"])
    spent = record("dit.pt")["seconds"]
    vae_steps = record("vae.pt")["steps"]
    assert (out / "model_index.json").exists()
    main([*call, "--minutes", "0.04", "--vae-clips", "1", "--clips", "1"])
    assert record("dit.pt")["seconds"] > spent
    assert record("vae.pt")["steps"] == vae_steps  # latents depend on it
    assert len(judged) == 2


@pytest.mark.slow
def test_the_built_in_model_is_extended_in_one_call_and_goes_on_in_another(
    tmp_path, small_clips, monkeypatch
):
    work, out = tmp_path / "work", tmp_path / "out"
    judged = []
    monkeypatch.setattr(
        stages.Training, "evaluate", lambda self, _: judged.append(self.args.teacher)
    )

    def steps(name: str) -> int:
        return (checkpoint_record(work / name) or {"steps": 0})["steps"]

    call = ["extend", "--work", str(work), "--out", str(out), "--device", "cpu", "--clips", "1"]
    main([*call, "--minutes", "0.08"])
    assert Store(work / "latents").rows().shape == (1, 2, 16, 9, SIZE // 8, SIZE // 8)
    assert Store(work / "latents33").rows().shape == (1, 2, 16, 17, SIZE // 8, SIZE // 8)
    first = [steps("long.pt"), steps("distil.pt")]
    assert min(first) > 0
    main([*call, "--minutes", "0.08"])
    assert steps("long.pt") > first[0]
    assert steps("distil.pt") > first[1]
    assert judged == [work / "teacher"] * 2
    labs = [json.loads((folder / "lab.json").read_text()) for folder in (work / "teacher", out)]
    told = ("num_frames", "guidance_scale", "num_inference_steps", "draft")
    assert [labs[0][name] for name in told] == [
        *(33, 2.0, 10),
        {"num_frames": 17, "num_inference_steps": 5},
    ]
    assert [labs[1][name] for name in told] == [
        *(33, 1.0, 8),
        {"num_frames": 17, "num_inference_steps": 8},
    ]
    assert all(f.stat().st_size < 10e6 for f in out.rglob("*") if f.is_file())
    assert model_spec(str(out)).preset("draft").num_frames == 17
    pipe = WanPipeline.from_pretrained(out, local_files_only=True)
    assert type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"
    for guidance, forwards in ((1.0, 2), (2.0, 4)):
        calls = []
        hook = pipe.transformer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        frames = pipe(
            PROMPT,
            **{"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2},
            guidance_scale=guidance,
            max_sequence_length=labs[1]["max_sequence_length"],
        ).frames
        hook.remove()
        assert len(calls) == forwards
        assert np.isfinite(frames).all()

    def shipped(*more: str) -> dict:
        main(["ship", "--work", str(work), "--out", str(out), "--device", "cpu", *more])
        config = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
        return json.loads((out / "lab.json").read_text()) | {"by": config["_class_name"]}

    assert shipped()["by"] == "DPMSolverMultistepScheduler", "the last weights are the student's"
    assert shipped("--scheduler", "unipc")["by"] == "UniPCMultistepScheduler"
    assert shipped("--weights", "long")["guidance_scale"] == 2


@pytest.mark.parametrize("stage", ["long", "distil"])
def test_a_student_is_no_start_and_no_teacher(tmp_path, stage):
    """Its guidance would count twice. That is said before any clip is encoded."""
    student = tmp_path / "student"
    student.mkdir()
    (student / "model_index.json").write_text("{}")
    (student / "lab.json").write_text(json.dumps({"guidance_scale": 1.0}))
    work = tmp_path / "work"
    with pytest.raises(SystemExit, match=r"holds a student.*--pretrained"):
        main([stage, "--work", str(work), "--pretrained", str(student), "--device", "cpu"])
    assert not (work / "latents").exists()


def test_a_training_under_way_goes_on_after_its_student_is_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(stages.Training, "encode_long", lambda self, _: None)
    starts = []
    monkeypatch.setattr(stages.Training, "_train", lambda self, *args: starts.append(args[2]))
    call = ["long", "--work", str(tmp_path), "--device", "cpu"]
    main(call)
    (tmp_path / "long.pt").touch()
    main(call)
    assert starts == [tmp_path / "teacher.pt", None]
    assert checkpoint_record(tmp_path / "teacher.pt")["seconds"] > 0


def test_a_student_starts_from_the_shipped_one_unless_its_teacher_is_of_another_training(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(stages.Training, "encode_long", lambda self, _: None)
    starts = []
    monkeypatch.setattr(stages.Training, "_train", lambda self, *args: starts.append(args[2]))
    call = ["distil", "--device", "cpu", "--work"]
    main([*call, str(tmp_path)])
    assert (tmp_path / "teacher.pt").exists()
    own = tmp_path / "own"
    own.mkdir()
    (own / "dit.pt").touch()
    with pytest.raises(SystemExit, match="run `long` first"):
        main([*call, str(own)])
    (tmp_path / "teacher.pt").rename(own / "long.pt")
    main([*call, str(own)])
    assert starts == [BUILTIN_FOLDER, own / "long.pt"]


def test_clips_that_are_encoded_suffice(tmp_path, monkeypatch):
    """`long` does not first fill the stores up to the usual number of clips."""
    encoded = []
    monkeypatch.setattr(stages.Training, "encode_long", lambda self, _: encoded.append(1))
    monkeypatch.setattr(stages.Training, "_train", lambda self, *_: None)
    call = ["long", "--work", str(tmp_path), "--device", "cpu"]
    main(call)
    assert len(encoded) == 1
    scene = place_training(0, 1, 17, seed=0)[0][0]
    for name in ("latents", "latents33"):
        Store(tmp_path / name).append(np.zeros((1, 2), np.float16), [scene])
    main(call)
    assert len(encoded) == 1


def test_weights_ship_with_the_settings_of_their_stage(tmp_path):
    model = Denoiser()
    pipe = assemble(build_vae(base_dim=8), model.transformer, model.text_encoder, model.tokenizer)
    record = {"max_sequence_length": 48, "rule": rule(), "seconds": 1.0, "log": []}
    students = [record | {"recipe": {"steps": steps}} for steps in (0, 4)]
    labs = [
        lab_of("dit", record),
        lab_of("long", record),
        *(lab_of("distil", r) for r in students),
    ]
    assert json.loads((BUILTIN_FOLDER / "lab.json").read_text()) in labs
    told = ("num_frames", "guidance_scale", "num_inference_steps", "draft", "rule")
    draft = {"num_frames": 17}
    assert [[lab[name] for name in told] for lab in labs] == [
        [17, 2.0, 10, draft | {"num_inference_steps": 5}, rule()],
        [33, 2.0, 10, draft | {"num_inference_steps": 5}, rule()],
        [33, 1.0, 8, draft | {"num_inference_steps": 8}, rule()],
        [33, 1.0, 4, draft | {"num_inference_steps": 4}, rule()],
    ]
    ship(pipe, tmp_path, labs[1])
    assert json.loads((tmp_path / "lab.json").read_text()) == labs[1]
    theirs = json.loads((BUILTIN_FOLDER / "scheduler" / "scheduler_config.json").read_text())
    mine = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert mine.pop("_diffusers_version")
    assert mine == {name: value for name, value in theirs.items() if name in mine}


@pytest.mark.parametrize("stage", ["long", "distil"])
def test_a_call_that_is_broken_off_is_gone_on_from(tmp_path, latents, monkeypatch, stage):
    monkeypatch.setattr(dit, "_SAVE_SECONDS", 0)
    monkeypatch.setitem(CURRICULA, stage, {"cpu": (Lesson(1.0, (View(1.0, 9, 6, 1),)),)})
    model, start = Denoiser(transformer=build_transformer(1, 2, 64)), tmp_path / "start.pt"
    weights = {"model": model.state_dict(), "ema": dict(model.named_parameters())}
    save_checkpoint(start, model.record | {"rule": rule()}, **weights)
    course = LONG if stage == "long" else distilling(model, Recipe(steps=4))

    def some(count: int) -> Course:
        begun = []

        def losses(*given):
            if len(begun) == count:
                raise KeyboardInterrupt
            begun.append(1)
            return course.losses(*given)

        return replace(course, losses=losses)

    checkpoint = tmp_path / f"{stage}.pt"
    for count, steps in ((2, 2), (3, 5)):
        with pytest.raises(KeyboardInterrupt):
            train_denoiser(some(count), [latents], checkpoint, 1e3, start=start)
        record = checkpoint_record(checkpoint)
        assert record is not None
        assert record["steps"] == steps


def test_stores_of_two_autoencoders_are_not_read_together(tmp_path, latents):
    other = Store(tmp_path / "latents33")
    about = latents.about
    rows = np.zeros((1, 2, 16, 17, 24, 24), np.float16)
    scenes = [scene for scene, _ in place_training(0, 1, 33, 0)]
    told = {"seed": 0, "staging": staging_of(33, 0), "vae": about["vae"]}
    other.append(rows, scenes, mean=[0.0] * 16, std=[2.0] * 16, **told)
    with pytest.raises(TrainingError, match="encode again"):
        train_denoiser(LONG, [latents, other], tmp_path / "long.pt", 1, start=BUILTIN_FOLDER)


def test_longer_clips_are_encoded_with_the_statistics_of_the_others(
    tmp_path, small_clips, latents
):
    source = tmp_path / "vae.pt"
    save_checkpoint(source, {"base_dim": 8}, model=build_vae(base_dim=8).state_dict())
    long = Store(tmp_path / "latents33")
    none = Store(tmp_path / "none")
    encode_clips(none, long, source, 1, num_frames=33, like=latents)
    assert long.rows().shape == (1, 2, 16, 17, SIZE // 8, SIZE // 8)
    assert [long.about[name] for name in ("mean", "std")] == [[0.0] * 16, [1.0] * 16]
    assert load_latents(long).layout.grid == (17, SIZE // 8, SIZE // 8)
    with pytest.raises(TrainingError, match="another seed, grammar or staging"):
        encode_clips(none, long, source, 2, num_frames=17)


def test_latents_of_another_autoencoder_are_refused(tmp_path):
    scene = Scene((Body("red", "ball"),))
    latents = Store(tmp_path / "latents")
    about = {"seed": 0, "staging": staging_of(17, 0), "vae": "another"}
    latents.append(np.zeros((1, 2, 16, 1, 1, 1), np.float16), [scene], **about)
    with pytest.raises(TrainingError, match="another VAE"):
        encode_clips(Store(tmp_path / "none"), latents, BUILTIN_FOLDER, 2)


def test_latents_of_clips_with_their_bodies_elsewhere_are_refused(tmp_path):
    scene = place_training(0, 1, 17, 0)[0][0]
    latents = Store(tmp_path / "latents")
    about = {"mean": [0.0] * 16, "std": [1.0] * 16, "seed": 0, "staging": "another"}
    latents.append(np.zeros((1, 2, 16, 9, 24, 24), np.float16), [scene], **about)
    with pytest.raises(TrainingError, match="another seed, grammar or staging"):
        load_latents(latents)


def test_clips_with_their_bodies_elsewhere_are_neither_added_to_nor_encoded(tmp_path):
    clips = Store(tmp_path / "clips")
    rows = np.zeros((1, 17, 8, 8, 3), np.uint8)
    clips.append(rows, [Scene((Body("red", "ball"),))], seed=0, staging="another")
    with pytest.raises(TrainingError, match="another seed, grammar or staging"):
        render_clips(clips, 2, 17, 8)
    with pytest.raises(TrainingError, match="another seed, grammar or staging"):
        encode_clips(clips, Store(tmp_path / "latents"), BUILTIN_FOLDER, 2)


def test_a_broken_off_append_is_overwritten(tmp_path):
    scene = Scene((Body("red", "ball"),))
    store = Store(tmp_path)
    (tmp_path / "about.json").write_text('{"shape": [9], "dty')
    store.append(np.full((1, 3), 1, np.uint8), [scene], seed=7)
    assert store.about["seed"] == 7
    with (tmp_path / "rows.bin").open("ab") as out:
        out.write(b"part")
    with (tmp_path / "scenes.jsonl").open("a") as out:
        out.write(scene.to_json()[:20])
    assert len(store) == 1
    store.append(np.full((2, 3), 2, np.uint8), [scene, scene], seed=7)
    assert store.rows().tolist() == [[1] * 3, [2] * 3, [2] * 3]
    assert store.scenes == (scene,) * 3


def test_pairs_and_what_spins_are_drawn_more_often():
    still, spins = (Scene((Body("red", "cube", motion),)) for motion in ("still", "spin"))
    pair = Scene((Body("red", "cube"), Body("blue", "cone")))
    none = torch.zeros(0)
    data = LatentSet(none, (still, spins, pair), none, none, None)
    rng = random.Random(0)
    drawn = [data.pick(rng) for _ in range(24000)]
    times = [sum(clip == i for clip, _ in drawn) for i in range(3)]
    assert 0.8 < times[2] / 24000 < 0.9
    assert times[1] / times[0] == pytest.approx(2, rel=0.2)
    assert {mirrored for _, mirrored in drawn} == {0, 1}


@pytest.fixture
def latents(tmp_path) -> Store:
    """Nothing, staged as today and encoded by the shipped autoencoder."""
    scenes = [scene for scene, _ in place_training(0, 1, 17, 0)]
    store = Store(tmp_path / "latents")
    about = {"mean": [0.0] * 16, "std": [1.0] * 16, "seed": 0, "staging": staging_of(17, 0)}
    about["vae"] = fingerprint(open_vae(BUILTIN_FOLDER))
    store.append(np.zeros((1, 2, 16, 9, 24, 24), np.float16), scenes, **about)
    return store


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"rule": "another"}, "other combinations held out"),
        ({"words": ["red", "ball"]}, "other words than the grammar"),
        ({"vae": "another"}, "latents of another VAE"),
    ],
)
def test_weights_that_do_not_fit_are_not_gone_on_from(tmp_path, latents, changed, problem):
    words = changed.get("words", vocabulary())
    model = Denoiser(words)
    weights = {"model": model.state_dict(), "ema": dict(model.named_parameters())}
    record = model.record | {"rule": rule()} | changed
    save_checkpoint(tmp_path / "dit.pt", record, **weights)
    with pytest.raises(TrainingError, match=problem):
        train_denoiser(DIT, [latents], tmp_path / "dit.pt", 1, text=tmp_path / "text.pt")
    if "vae" in changed:
        return  # pipelines bring their own
    pipe = assemble(build_vae(base_dim=8), model.transformer, model.text_encoder, model.tokenizer)
    ship(pipe, tmp_path / "shipped", lab_of("dit", {"max_sequence_length": 48} | record))
    with pytest.raises(TrainingError, match=problem):
        train_denoiser(
            *(DIT, [latents], tmp_path / "none.pt", 1),
            start=tmp_path / "shipped",
        )


@pytest.mark.parametrize("changed", [{"steps": 4}, {"guidance": 3.0}, {"substeps": 2}])
def test_a_student_is_not_gone_on_with_by_another_recipe(tmp_path, latents, changed):
    model = Denoiser()
    weights = {"model": model.state_dict(), "ema": dict(model.named_parameters())}
    made = distilling(Denoiser(), Recipe()).notes
    about = {"rule": rule(), "seed": 0, "log": [], "seconds": 0.0, "steps": 5, "clips": 5}
    save_checkpoint(tmp_path / "distil.pt", model.record | about | made, **weights)
    course = distilling(Denoiser(), Recipe(**changed))
    with pytest.raises(TrainingError, match="another recipe"):
        train_denoiser(course, [latents], tmp_path / "distil.pt", 1)


def test_a_shipped_pipeline_is_gone_on_from_with_all_that_it_read(tmp_path):
    model = Denoiser()
    pipe = assemble(build_vae(base_dim=8), model.transformer, model.text_encoder, model.tokenizer)
    ship(pipe, tmp_path, lab_of("dit", {"max_sequence_length": 48, "rule": rule()}))
    started = load_shipped(tmp_path)
    assert started.words == vocabulary()
    with torch.no_grad():
        mine, theirs = started.encode([PROMPT], 32), model.float().encode([PROMPT], 32)
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_an_autoencoder_is_not_shipped_with_the_denoiser_of_another(latents):
    load_vae(BUILTIN_FOLDER, latents)
    other = latents.folder.parent / "vae.pt"
    save_checkpoint(other, {}, model=build_vae().state_dict())
    with pytest.raises(TrainingError, match="is not the autoencoder of"):
        load_vae(other, latents)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["vae"], "run `render` first"),
        (["encode"], "run `vae` first"),
        (["decoder"], "run `render` first"),
        (["ship"], "run `dit` first"),
        (["evaluate", "--out", "nowhere"], "holds no shipped pipeline"),
        (["sheet", "--out", "nowhere"], "holds no shipped pipeline"),
        (["dit", "--pretrained", "nowhere"], "holds no shipped pipeline"),
        (["long", "--pretrained", "nowhere"], "holds no shipped pipeline"),
        (["ship", "--weights", "distil"], "run `distil` first"),
        (["evaluate", "--teacher", "nowhere"], "nowhere holds no shipped pipeline"),
        (["evaluate", "--frames", "18", "--prompts", "1"], "frames"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(tmp_path, monkeypatch, command, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=problem):
        main([*command, "--work", str(tmp_path / "work"), "--device", "cpu"])


@pytest.mark.parametrize(
    "option",
    [
        *(("--minutes", "0"), ("--minutes", "-5"), ("--prompts", "0"), ("--device", "mps")),
        *(("--guidance", "0.5"), ("--guidance", "nan"), ("--steps", "-1"), ("--steps", "2.5")),
        *(("--on-policy", "1.5"), ("--substeps", "0"), ("--frames", "0")),
        *(("--scheduler", "heun"), ("--weights", "vae")),
    ],
)
def test_options_that_nothing_can_come_of_are_refused(tmp_path, capsys, option):
    with pytest.raises(SystemExit) as refused:
        main(["vae", "--work", str(tmp_path), *option])
    assert refused.value.code == 2
    assert option[1] in capsys.readouterr().err


def test_a_subset_of_tokens_gets_the_positions_of_its_places():
    transformer = Denoiser().transformer
    whole = torch.zeros(2, 16, 9, 4, 5)
    tables = transformer.rope(whole)
    wanted = torch.tensor([[3, 7, 100], [0, 20, 179]])
    places = Places(wanted, (9, 4, 5))
    numbers = torch.arange(2 * 9 * 4 * 5).view(2, 1, 9, 4, 5)
    assert torch.equal(places.of(numbers).flatten(1), wanted + torch.tensor([[0], [180]]))
    with positions(transformer, places):
        some = transformer.rope(places.of(whole))
    for table, part in zip(tables, some, strict=True):
        assert torch.equal(part, table[0, wanted])
    assert torch.equal(transformer.rope(whole)[0], tables[0])


@torch.no_grad()
def test_all_tokens_in_a_row_are_the_clip_to_the_denoiser():
    torch.manual_seed(0)
    model = Denoiser().eval()
    noisy, sigma = torch.randn(2, 16, 3, 4, 5), torch.tensor([0.3, 0.8])
    places = all_places(2, (3, 4, 5))
    velocity, inside = model(places.of(noisy), sigma, [PROMPT, ""], places, 32)
    text = model.encode([PROMPT, ""], 32)
    wanted = model.transformer(noisy, sigma * 1000, text, return_dict=False)[0]
    assert torch.allclose(velocity.view(wanted.shape), wanted, atol=1e-5)
    assert inside.shape == (2, 60, 256)


def test_long_prompts_pad_with_zeros_as_the_pipeline_does():
    model = Denoiser()
    short = model.encode(["a red ball", "a ball"], 8)
    assert short.shape == (2, 8, 96)
    assert (short[1, 3:] == 0).all()
    assert (short[1, :3] != 0).any(-1).all()


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 6, 20), (3, 20, 6)])
def test_orthogonalised_updates_have_singular_values_near_one(shape):
    update = orthogonalise(torch.randn(shape, generator=torch.manual_seed(0)))
    values = torch.linalg.svdvals(update)
    assert update.shape == shape
    assert (values > 0.3).all()
    assert (values < 1.4).all()


@pytest.mark.parametrize("num_frames", [1, 5, 17])
def test_a_clip_at_once_is_what_diffusers_makes_of_it_in_chunks(num_frames):
    torch.manual_seed(0)
    vae = build_vae(base_dim=8).eval()
    clips = torch.rand(2, 3, num_frames, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(clips).latent_dist.mode()
        decoded = vae.decode(latents).sample
        whole = WholeClips(vae)
        assert torch.allclose(whole.encode(clips).mode(), latents, atol=1e-5)
        assert torch.allclose(whole.decode(latents).clamp(-1, 1), decoded, atol=1e-5)


@pytest.mark.parametrize("highest", [0.0, 0.4])
def test_latents_drawn_anew_err_a_little_or_from_no_noise_not_at_all(
    tmp_path, monkeypatch, highest
):
    """Of the shipped weights, which know these latents' mean and std."""
    model = load_shipped(BUILTIN_FOLDER)
    weights = {"model": model.state_dict(), "ema": dict(model.named_parameters())}
    save_checkpoint(tmp_path / "dit.pt", model.record, **weights)
    config = json.loads((BUILTIN_FOLDER / "vae" / "config.json").read_text())
    scene = Scene((Body("red", "ball", "roll", "right"),), "checkered floor")
    clip = to_model(render_one(scene, 9, 64, random.Random(0)).frames)
    clean = WholeClips(open_vae(BUILTIN_FOLDER)).encode(clip).mode().detach()
    mean, std = (torch.tensor(config[f"latents_{name}"]) for name in ("mean", "std"))
    latents = Store(tmp_path / "latents")
    latents.append(clean.numpy(), [scene], mean=mean.tolist(), std=std.tolist())
    monkeypatch.setattr(decoder, "_REDRAWN_FROM", highest)
    redrawn = redraw_with(tmp_path / "dit.pt", latents)(clean, [scene])
    error = ((redrawn - clean) / std.view(-1, 1, 1, 1)).pow(2).mean()
    assert error < 1e-8 if highest == 0 else 1e-4 < error < 0.2


def free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [str(one.getsockname()[1]) for one in sockets]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> Path:
    """A folder with all that two processes leave: `two_ranks.py` started once."""
    root = tmp_path_factory.mktemp("ranks")
    work = ("--work", str(root / "work"), "--device", "cpu")
    commands = [
        ["render", *work, "--vae-clips", "3"],
        ["vae", *work, "--minutes", "0.01", "--pretrained", str(BUILTIN_FOLDER)],
        ["encode", *work, "--clips", "4"],
        ["all", *work],
        ["extend", *work],
    ]
    (root / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", "-m", "tests.svg2.training.two_ranks", str(root)),
            *free_ports(len(commands)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.slow
def test_two_processes_share_a_training(two_ranks, small_clips):
    work = two_ranks / "work"
    clips = Store(work / "clips")
    scenes, frames = render_training(0, 3, 17, SIZE, 0, "cpu")
    assert clips.scenes == tuple(scenes)
    off = np.abs(clips.rows().astype(int) - frames.numpy()).max()
    assert off <= 1  # another number of threads rounds otherwise
    record = checkpoint_record(work / "vae.pt")
    assert record is not None
    assert record["steps"] > 0
    assert record["clips"] == 2 * CROPS["cpu"].batch * record["steps"]
    latents = Store(work / "latents")
    assert latents.scenes[:3] == clips.scenes
    again = Store(two_ranks / "again")
    encode_clips(clips, again, work / "vae.pt", 4)
    error = np.abs(latents.rows().astype(np.float32) - again.rows()).mean()
    assert error < 0.02 * np.abs(again.rows().astype(np.float32)).mean()
    for rank in range(2):
        *others, one, two = json.loads((two_ranks / f"exits.{rank}.json").read_text())
        assert others == [None, None, None]
        assert "`all` is one process" in one
        assert "`extend` is one process" in two


@pytest.mark.slow
def test_ranks_average_their_gradients_and_share_a_clock(two_ranks):
    for rank in range(2):
        found = json.loads((two_ranks / f"averages.{rank}.json").read_text())
        assert found == {"gradient": [[1.0, 1.0]], "clock": 0.0}
