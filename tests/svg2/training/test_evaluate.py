"""The evaluation measures a real pipeline, and keeps what is done."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from svg2.models.prompts import Body, Knowledge, Scene, held_out, parse, rule, vocabulary
from svg2.training import contact_sheet, evaluate
from svg2.training.__main__ import main
from svg2.training.clip_reader import track_bodies
from svg2.training.data import TrainingError
from svg2.training.denoiser import Denoiser
from svg2.training.evaluate import checkpoint_hash, evaluate_model, held_out_prompts, judge
from svg2.training.pipeline import assemble, build_transformer, lab_of, ship
from svg2.training.render import render_one
from svg2.training.shape_classifier import ShapeNet, crop, load_or_train, rendered_crops, train
from svg2.training.vae import build_vae

EVERYTHING = Knowledge(frozenset(vocabulary()))


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shipped pipeline with random weights, whose default clip is small and quick."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = Denoiser(transformer=build_transformer(1, num_layers=2, ffn_dim=64))
    pipe = assemble(build_vae(base_dim=8), model.transformer, model.text_encoder, model.tokenizer)
    small = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
    small |= {"num_q_clusters": 8, "num_k_clusters": 16}
    ship(pipe, folder, lab_of("dit", {"max_sequence_length": 48, "rule": rule()}) | small)
    return folder


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """An untrained classifier on disk: these tests are not about its answers."""
    path = tmp_path / "shapes.pt"
    torch.save({"model": ShapeNet().state_dict(), "accuracy": 0.0}, path)
    return path


def test_held_out_prompts_are_of_combinations_never_trained_on():
    asked = held_out_prompts(100, EVERYTHING)
    assert sum(len(scene.bodies) == 2 for scene, _ in asked) == 40
    for scene, prompt in asked:
        assert held_out(scene)
        assert parse(prompt) == scene
    few = Knowledge(EVERYTHING.words - {"and", "ring", "cyan"})
    for scene, prompt in held_out_prompts(30, few):
        assert len(scene.bodies) == 1
        assert few.covers(prompt)


def test_weights_with_other_combinations_held_out_are_not_judged(untrained, classifier, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(untrained, folder)
    lab = json.loads((folder / "lab.json").read_text())
    (folder / "lab.json").write_text(json.dumps(lab | {"rule": "another"}))
    with pytest.raises(TrainingError, match="other combinations held out"):
        evaluate_model(folder, tmp_path / "report.json", 2, shapes=classifier)
    with pytest.raises(SystemExit, match="judge it with the code of its time"):
        main(["evaluate", "--out", str(folder), "--work", str(tmp_path), "--device", "cpu"])


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_and_a_whole_one_is_kept(
    untrained, classifier, tmp_path, monkeypatch
):
    path, target = tmp_path / "evaluation.json", tmp_path / "whole.json"

    def run(prompts: int, **more) -> dict:
        return evaluate_model(untrained, path, prompts, shapes=classifier, target=target, **more)

    generate, calls = evaluate._generate, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*args)

    monkeypatch.setattr(evaluate, "_generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(2)
    partial = json.loads(path.read_text())
    assert not partial["complete"]
    assert partial["shares"]["dense"]["prompts"] == 1
    assert not target.exists()

    report = run(2)
    assert len(calls) == 3  # the first prompt was not generated again
    assert report["complete"]
    assert report["checkpoint"] == checkpoint_hash(untrained)
    assert json.loads(target.read_text()) == json.loads(path.read_text())
    assert set(report["shares"]) == {"dense", "svg2-routed", "svg2"}
    fidelity = report["fidelity"]
    assert fidelity["svg2"]["psnr_db_median"] > 10
    assert fidelity["svg2"]["top_p"] == 0.9
    assert fidelity["svg2-routed"]["top_p"] == 0.3
    assert fidelity["svg2-routed"]["speedup_bound_median"] > 1
    assert report["rows"][0]["svg2-routed"]["order"] == "in turns"
    assert report["rows"][0]["svg2"]["order"] == "dense earlier"
    assert report["reconstruction_db"] > 0

    path.write_text(json.dumps(report | {"measured": ["psnr_db"]}))
    run(2)
    assert len(calls) == 5  # rows with fewer measures are made anew

    shares = run(2, sparse_prompts=1)["shares"]
    assert len(calls) == 7  # by other measures, all are judged anew
    assert (shares["dense"]["prompts"], shares["svg2"]["prompts"]) == (2, 1)


@pytest.mark.slow
def test_a_student_is_judged_beside_its_teacher_at_a_length_of_clips(
    untrained, classifier, tmp_path, capsys
):
    path, other = tmp_path / "evaluation.json", tmp_path / "teacher"
    shutil.copytree(untrained, other)
    lab = json.loads((other / "lab.json").read_text())
    (other / "lab.json").write_text(json.dumps(lab | {"num_inference_steps": 3, "num_frames": 3}))

    def run(prompts: int, **more) -> dict:
        return evaluate_model(untrained, path, prompts, shapes=classifier, methods=(), **more)

    alone = run(1)
    assert alone["num_frames"] == 5
    assert "teacher" not in alone
    report = run(2, num_frames=9, teacher=other)
    assert "2: " in capsys.readouterr().out.splitlines()[-1]
    assert report["num_frames"] == 9
    assert report["teacher"]["prompts"] == 2, "clips of another length were judged anew"
    assert set(report["teacher"]) == set(report["shares"]["dense"])
    assert 5 < report["to_teacher_db"] < 90
    same = run(1, num_frames=9, teacher=untrained)
    assert same["to_teacher_db"] == 99
    assert same["teacher"] == same["shares"]["dense"]
    fewer = run(2, num_frames=9, teacher=other, teacher_prompts=1)
    assert fewer["shares"]["dense"]["prompts"] == 2
    assert (fewer["teacher"]["prompts"], fewer["beside_teacher"]["prompts"]) == (1, 1)
    assert fewer["to_teacher_db"] is not None


def test_clusters_of_queries_and_of_keys_are_followed_apart():
    rows = [
        {"following": {"3/0/0/q": 0.2, "3/1/0/q": 0.8, "3/2/0/q": 0.5, "3/0/0/k": 0.1}},
        {"following": {"3/0/0/q": 0.4, "3/1/0/q": 1.0}},
        {},
    ]
    assert evaluate._following(rows) == {
        "clips": 2,
        "queries": {
            **{"best": 0.9, "best_at": "3/1/0/q"},
            **{"median": 0.5, "median_of_last_layers": 0.7},
        },
        "keys": {
            **{"best": 0.1, "best_at": "3/0/0/k"},
            **{"median": 0.1, "median_of_last_layers": 0.1},
        },
    }
    assert evaluate._following(rows[2:]) == {"clips": 0}


def test_the_hash_tells_weights_apart(untrained, tmp_path):
    first = checkpoint_hash(untrained)
    assert first == checkpoint_hash(untrained)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "a.safetensors").write_bytes(b"other")
    assert checkpoint_hash(tmp_path) != first


@pytest.mark.slow
def test_shapes_of_rendered_clips_are_told_apart(monkeypatch):
    monkeypatch.setattr("svg2.training.shape_classifier._FRAME", 72)
    net = ShapeNet()
    accuracy = train(net, *rendered_crops(300, "test shapes"), epochs=20)
    assert accuracy > 0.8  # the stage trains on twenty times as many
    right = total = 0
    for i in range(18):
        shape = ("ball", "cube", "cylinder", "cone", "pyramid", "ring")[i % 6]
        scene = Scene((Body("blue", shape, "slide", "left"),), "wooden floor")
        frames = render_one(scene, 3, 96, random.Random(f"unseen {i}")).frames[0].numpy()
        verdict = judge(frames, scene, net)
        right += verdict["shape_ok"]
        total += 1
    assert right >= 0.85 * total


def test_a_trained_classifier_is_loaded_and_not_trained_again(classifier, monkeypatch):
    monkeypatch.setattr("svg2.training.shape_classifier.train", None)
    _, accuracy = load_or_train(classifier)
    assert accuracy == 0


def test_a_crop_holds_brightness_within_the_body_alone():
    scene = Scene((Body("green", "cone"),))
    frame = render_one(scene, 1, 96, random.Random(0)).frames[0, 0].numpy()
    mask = track_bodies(frame[None], ["green"])[0].masks[0]
    found = crop(frame, mask)
    assert found is not None
    assert found.shape == (2, 40, 40)
    assert (found[0][found[1] == 0] == 0).all()
    assert 0.2 < found[1].mean() < 0.9
    assert crop(frame, np.zeros_like(mask)) is None


def test_a_picture_is_shrunk_until_it_fits():
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    assert len(contact_sheet.png_below(noise, 60_000)) < 60_000


@pytest.mark.slow
def test_the_contact_sheet_shows_held_out_prompts(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "_SHEET", (2, 1))
    contact_sheet.make_contact_sheet(untrained, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "sheet.png").stat().st_size < 1_000_000
