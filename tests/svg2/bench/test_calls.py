"""The calls suite at toy size."""

import json

from svg2.bench.calls import Case, run_calls_suite


def test_it_races_whole_calls_and_writes_what_it_found(tmp_path):
    cases = (
        Case((3, 12, 12), compute_density=0.6),
        Case((3, 16, 16), compute_density=0.5, busy=1),
    )
    said = []
    record = run_calls_suite(tmp_path / "calls.json", said.append, cases=cases, rounds=4)
    assert json.loads((tmp_path / "calls.json").read_text()) == record
    assert len(said) == len(record["calls"]) == 2
    for row, case in zip(record["calls"], cases, strict=True):
        assert row["busy"] == case.busy
        assert row["compute_density"] <= case.compute_density + 0.02
        assert row["ratio_quartiles"][0] <= row["ratio"] <= row["ratio_quartiles"][1]
        assert set(row["stage_ms"]) == {"kmeans", "permute", "select", "attention"}
        assert row["kmeans_gflops"] > 0
    assert record["exponents"] == {"dense": None, "sparse": None}  # of one size alone
