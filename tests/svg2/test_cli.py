"""The command line: files, exit codes, and one line per error."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from svg2 import cli
from svg2.trace.clip_settings import read_settings
from svg2.trace.file import load_trace
from tests.svg2.pipelines import make_model_folder

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "svg2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tiny_pipeline_path, tmp_path_factory):
    return str(make_model_folder(tiny_pipeline_path, tmp_path_factory.mktemp("m") / "tiny"))


@pytest.fixture
def nothing_heavy(monkeypatch):
    """Fail the test if it loads a model."""

    def refuse(*_, **__):
        raise AssertionError("a model was loaded for invalid input")

    monkeypatch.setattr("svg2.runs.call.load_pipeline", refuse)


BAD_COMPARE = {
    "no prompt": ["--prompt", ""],
    "blank prompt": ["--prompt", "  "],
    "long prompt": ["--prompt", "x" * 10_000],
    **{f"top-p {p}": [f"--top-p={p}"] for p in ("0", "-1", "1.5", "nan", "inf", "much", "")},
    **{f"frames {n}": [f"--frames={n}"] for n in ("0", "-1", "4", "1000000000", "x", "1e3")},
    **{f"height {n}": [f"--height={n}"] for n in ("0", "-64", "100000", "33", "x")},
    **{f"width {n}": [f"--width={n}"] for n in ("0", "-64", "100000", "33", "x")},
    **{f"steps {n}": [f"--steps={n}"] for n in ("0", "-1", "1000000", "x")},
    "too many tokens": ["--height=2048", "--width=2048"],
    "more query clusters than tokens": ["--set", "num_q_clusters=97"],
    "more key clusters than tokens": ["--set", "num_k_clusters=97"],
    "unknown model": ["--model", "nope"],
    "unknown method": ["--method", "svg9"],
    "unknown setting": ["--set", "top_q=1"],
    "setting without value": ["--set", "top_p"],
    "setting of a wrong kind": ["--set", "num_q_clusters=many"],
    "unknown dtype": ["--dtype", "fp8"],
    "unknown device": ["--device", "tpu"],
    "unknown impl": ["--impl", "magic"],
    "guidance nan": ["--guidance-scale=nan"],
    "seed": ["--seed=-1"],
    "unknown option": ["--budget", "3"],
    "unknown preset": ["--preset", "magic"],
    "no such image": ["--image", "nowhere.png"],
    "image for a model that takes none": ["--image", __file__],
    "no such video": ["--video", "nowhere.mp4"],
    "second guidance of one expert": ["--guidance-scale-2", "3"],
    "guidance of another kind": ["--true-cfg-scale", "3"],
}


@pytest.mark.parametrize("bad", BAD_COMPARE.values(), ids=BAD_COMPARE.keys())
@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_bad_input_is_one_line_and_exit_code_2(
    command, bad, folder, tmp_path, capsys, nothing_heavy
):
    if command == "sweep" and bad[0] == "--method":
        bad = ["--methods", "svg2", "svg9"]
    good = ["--prompt", "a red ball", "--model", folder, "--out", str(tmp_path / "out")]
    assert cli.main([command, *good, *bad]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 400
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_refused(folder, tmp_path, capsys, nothing_heavy):
    (tmp_path / "file").write_text("")
    good = ["compare", "--prompt", "a red ball", "--model", folder]
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none"), Path("a\0b")):
        assert cli.main([*good, "--out", str(out)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("option", [["--in-turns"], ["--top-p", "0.3"], ["--trace-mb", "2"]])
def test_what_a_sweep_over_prompts_does_not_heed_is_refused(option, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\n")
    out = tmp_path / "out"
    assert cli.main(["sweep", "--prompts", str(prompts), "--out", str(out), *option]) == 2
    assert f"{option[0]} goes with --prompt: leave it out" in capsys.readouterr().err
    assert not out.exists()


def test_missing_commands_and_arguments_are_refused(capsys):
    out = ["--out", "nowhere"]
    for argv in (
        *([], ["nope"], ["compare"], ["compare", "--prompt", "a"], ["bench"], ["compare", *out]),
        ["compare", "--prompt", "a", "--prompts", "b", *out],
        ["compare", "--prompts", "nowhere.txt", *out],
        ["bench", "--toy", "--out", "nowhere.json"],
        ["compare", "--prompts", "tests", *out],
        ["compare", "--prompt", "a", "--layout", "vbench", *out],
        ["compare", "--prompts", "LICENSE", "--layout", "magic", *out],
        ["compare", "--prompts", "LICENSE", "--samples", "2", *out],
        ["compare", "--prompts", "LICENSE", "--layout", "vbench", "--samples", "0", *out],
    ):
        assert cli.main(argv) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_help_and_bad_input_load_nothing_heavy():
    code = (
        "import sys; from svg2.cli import main\n"
        "assert main(['compare', '--prompt', '', '--out', 'o']) == 2\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'gradio'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_compare_writes_five_files_and_ends_stdout_with_the_result(
    folder, tmp_path, capsys, monkeypatch
):
    far = {"model": folder, "method": "svg2-comp", "psnr_db": 19.0, "config": {"top_p": 0.7}}
    monkeypatch.setattr("svg2.runs.outlook.made", lambda: [far])
    out = tmp_path / "new" / "out"
    argv = ["compare", "--prompt", "a red ball", "--model", folder, "--out", str(out)]
    argv += ["--top-p", "0.7", "--method", "svg2-comp", "--seed", "3", "--device", "cpu"]
    argv += ["--set", "num_k_clusters=10", "--set", "kmeans_iters_init=2", "--impl", "reference"]
    assert cli.main([*argv, "--steps", "3", "--dtype", "fp32"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert result == json.loads((out / "result.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == sorted(cli.OUTPUTS)
    assert (result["config"]["top_p"], result["config"]["num_k_clusters"]) == (0.7, 10)
    assert (result["seed"], result["num_inference_steps"]) == (3, 3)
    assert load_trace(out / "trace.npz").runs[0].result == result
    for name in ("dense.mp4", "svg2.mp4", "compare.mp4"):
        request, config, _ = read_settings((out / name).read_bytes())
        assert request == {name: result[name] for name in request}
        assert config == ({} if name == "dense.mp4" else result["config"])
    assert "svg2: Gain or loss of" in captured.err
    assert "svg2: At top_p 0.7 SVG2 + compensation went as far from" in captured.err
    for sentence in result["warnings"]:
        assert f"svg2: {sentence}" in captured.err
    assert "denoise 3/3" in captured.err or "svg2-comp denoise" in captured.err


def test_models_lists_what_is_available_and_what_each_needs(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["models"]) == 0
    captured = capsys.readouterr()
    listed = {e["model"]: e for e in json.loads(captured.out.splitlines()[-1])["models"]}
    assert listed["builtin"]["available"]
    assert len(listed) == 12
    for name, entry in listed.items():
        assert entry["why"].endswith(".")
        if name == "builtin":
            continue
        assert not entry["available"]
        assert "GPU" in entry["why"]
        assert f"{entry['download_gb']:.0f} GB" in entry["why"]
        assert entry["license"]
        assert entry["source"]
        assert entry["settings"]["num_inference_steps"]
        assert entry["memory"]["720p"]["added_share"] <= 0.1
        assert f"{entry['memory']['720p']['tokens']:,} tokens" in captured.err
    assert listed["wan2.1-14b"]["memory"]["720p"]["tokens"] == 75_600
    assert listed["hunyuanvideo"]["memory"]["720p"]["tokens"] == 118_800
    assert "WanVACEPipeline" in captured.err


def test_bench_prints_the_record_of_the_suite(tmp_path, capsys, monkeypatch):
    def suite(path, on_progress):
        on_progress("a row")
        path.write_text("{}")
        return {"suite": "cpu"}

    monkeypatch.setattr("svg2.bench.cpu.run_cpu_suite", suite)
    assert cli.main(["bench", "--out", str(tmp_path / "new" / "cpu.json")]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"suite": "cpu"}
    assert "a row" in captured.err
    assert cli.main(["bench", "--out", str(tmp_path)]) == 2


def test_a_model_without_weights_is_one_line(folder, tmp_path, capsys):
    weights = make_model_folder(Path(folder), tmp_path / "broken") / "transformer"
    for path in weights.glob("*.safetensors"):
        path.unlink()
    argv = ["compare", "--prompt", "a red ball", "--model", str(weights.parent), "--out", "o"]
    argv[-1] = str(tmp_path / "out")
    assert cli.main(argv) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("svg2: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "options"),
    [
        pytest.param("dense denoise", [], marks=pytest.mark.nightly),
        ("svg2 denoise", []),
        ("svg2 denoise", ["--no-race"]),
    ],
)
def test_ctrl_c_leaves_whole_files_or_none(folder, tmp_path, stage, options):
    argv = ["compare", "--prompt", "a red ball", "--model", folder, "--out", str(tmp_path)]
    argv += options
    (tmp_path / "result.json").write_text("{}")  # of an earlier run
    process = subprocess.Popen(
        [*COMMAND, *argv, "--steps", "200"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(stage) and " 0/" not in line:
            break
    asked = time.perf_counter()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert time.perf_counter() - asked < 60
    assert out == ""
    assert "Traceback" not in err
    assert "Interrupted" in err.splitlines()[-1]
    files = sorted(path.name for path in tmp_path.iterdir())
    if not options:  # both sides are under way until the end
        assert files == ["result.json"]
    else:
        assert files == ["dense.mp4"]
        assert "dense.mp4" in err
