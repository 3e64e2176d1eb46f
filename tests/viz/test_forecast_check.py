"""What the page foretells of a run, beside what was measured of it."""

import dataclasses
import statistics
from concurrent.futures import ThreadPoolExecutor

import pytest

from svg2.errors import InputError
from svg2.trace.file import save_trace
from tests.traces import make_synthetic_trace
from viz.forecast_check import check, main

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Three budgets of one method, in two traces."""
    folder = tmp_path_factory.mktemp("forecasts")
    runs = (("svg2", 0.5), ("svg2", 0.6), ("svg2", 0.7))
    found = []
    for seed in (0, 1):
        made = make_synthetic_trace(
            grid=(5, 6, 7), num_q=11, num_k=29, steps=4, runs=runs, min_keep_ratio=0.0
        )
        measured = [
            dataclasses.replace(run, result=run.result | {"psnr_db": 30.0 + 2 * i + seed})
            for i, run in enumerate(made.runs)
        ]
        found.append(folder / f"{seed}.npz")
        save_trace(dataclasses.replace(made, runs=tuple(measured)), found[-1])
    return found


def elsewhere(call, *arguments):
    """The result of a call that starts a browser of its own, which one thread can do but once."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call, *arguments).result()


def test_each_run_is_foretold_from_one_other_and_from_all(paths):
    record = elsewhere(check, paths)
    assert record["traces"] == 2
    assert record["one"]["count"] == record["all"]["count"] == 2 * 3 * 2
    for name in ("one", "all"):
        own = [f for f in record["forecasts"] if f["from"] == name]
        off = sorted(abs(f["psnr_db_foretold"] - f["psnr_db"]) for f in own)
        assert record[name]["psnr_off_db"]["median"] == statistics.median(off)
        assert record[name]["psnr_off_db"]["worst"] == off[-1] > 0
        assert off[-3] <= record[name]["psnr_off_db"]["nine_in_ten"] <= off[-1]
        held = [abs(f["psnr_db_foretold"] - f["psnr_db"]) <= f["off_db"] for f in own]
        assert record[name]["within_bar"] == sum(held) / len(held)
        assert all(f["top_p"] != f["recorded_at_top_p"] for f in own)
    between = [f for f in record["forecasts"] if f["from"] == "all" and f["top_p"] == 0.6]
    assert all(f["psnr_db"] - 2 < f["psnr_db_foretold"] < f["psnr_db"] + 2 for f in between)


def test_a_trace_of_one_run_tells_nothing_and_one_that_is_none_is_named(tmp_path, capsys):
    alone = make_synthetic_trace(grid=(3, 4, 4), num_q=5, num_k=9, runs=(("svg2", 0.9),))
    path, text = tmp_path / "alone.npz", tmp_path / "text.npz"
    save_trace(alone, path)
    text.write_text("no trace")
    with pytest.raises(InputError, match="two recorded runs of one method"):
        elsewhere(check, [path])
    out = tmp_path / "forecast.json"
    assert elsewhere(main, [str(text), "--out", str(out)]) == 2
    assert "trace" in capsys.readouterr().err
    assert not out.exists()
