"""Write the tables of assets/bench/README.md from its files: `python -m svg2.bench.report`."""

import json
import statistics
from pathlib import Path
from typing import Any

from svg2.bench.race.table import block_records, race_records, race_table
from svg2.method.selection import PAPER_METHOD
from svg2.runs.sweep_prompts import IDENTICAL_DB
from svg2.trace.atomic import write_atomic

ROOT = Path(__file__).resolve().parents[2]
_NOT_MEASURED = "not measured."
_HEAD = """# What was measured

`python -m svg2.bench.report` makes these tables from the files beside them, each of which has its
hardware, versions, commit and date.
"""


def tables(folder: Path) -> str:
    """Markdown of all results in `folder`; a result without a file reads "not measured"."""
    parts = [
        _HEAD,
        _builtin_model(_read(folder / "builtin_model.json")),
        _sweep(_read(folder / "sweep_builtin.json")),
        _calls(_read(folder / "calls.json")),
        _timings(_read(folder / "timings.json")),
        _forecast(_read(folder / "forecast.json")),
        _cpu(_read(folder / "cpu.json")),
        _gpu(_read(folder / "gpu.json")),
        *(race_table(record, _where(record)) for record in race_records(folder)),
        _e2e(_read(folder / "e2e.json")),
        *(_e2e(record) for record in block_records(folder)),
        _versions(_read(folder / "versions.json")),
    ]
    return "\n".join(parts)


def _builtin_model(report: dict[str, Any] | None) -> str:
    title = "The built-in model on prompts held out of its training"
    if report is None:
        return f"{title}: {_NOT_MEASURED}\n"
    asked = {
        "asked colour": "colour",
        "asked shape": "shape",
        "asked movement": "motion",
        "both shapes, of two objects": "both_shapes",
    }
    asked = {k: v for k, v in asked.items() if v in report["shares"]["dense"]}
    prompts = report["shares"]["dense"]["prompts"]
    lines = [
        f"{title} ({prompts} prompts; {report['dtype']}; {_where(report)}):",
        "",
        f"| | {' | '.join(asked)} | density | PSNR to dense, median (worst) | denoising speed |",
        f"|{'---|' * (4 + len(asked))}",
    ]
    judged = dict(report["shares"])
    if "rendered" in report:
        judged["rendered clips, judged alike"] = report["rendered"]
    for method, share in judged.items():
        row = [method, *(_count(share, name) for name in asked.values())]
        close = report["fidelity"].get(method)
        if method == "dense":
            row += ["100 %", "", "1×"]
        elif close is None:
            row += ["", "", ""]
        else:
            row += [
                f"{close['density_median']:.1%}",
                f"{close['psnr_db_median']:.1f} dB ({close['psnr_db_worst']:.1f})",
                f"{close['speedup_median']:.2f}×",
            ]
        lines.append(f"| {' | '.join(row)} |")
    if report["fidelity"]:
        budgets = ", ".join(
            f"{close['top_p']} ({method})" for method, close in report["fidelity"].items()
        )
        lines += [
            "",
            f"top-p {budgets}, default size and steps. The last row is the same judge on perfect "
            "clips. White objects are not judged, and grounds, skies and cameras neither.",
        ]
    return "\n".join([*lines, *_looked_closer(report), ""])


def _looked_closer(report: dict[str, Any]) -> list[str]:
    """Sentences about the other measurements of an evaluation."""
    told = []
    if "reconstruction_db" in report:
        told.append(
            f"The autoencoder gives unseen clips back at {report['reconstruction_db']} dB."
        )
    if "classifier_accuracy" in report:
        told.append(
            "The classifier of shapes is right on "
            f"{report['classifier_accuracy']:.1%} of rendered frames that it never saw."
        )
    flicker = report["shares"]["dense"].get("flicker_to_rendered")
    if flicker is not None:
        told.append(f"Dense clips flicker {flicker:.2f} times as much as rendered ones.")
    followed = report.get("following", {"clips": 0})
    if followed["clips"]:
        queries, keys = followed["queries"], followed["keys"]
        step, layer, head = (int(n) + 1 for n in queries["best_at"].split("/")[:3])
        told.append(
            "Of the query cluster under the object in the first frame, "
            f"{queries['best']:.0%} of the tokens in the last frame still lie on it in the best "
            f"place (step {step}, layer {layer}, head {head}) and {queries['median']:.0%} in the "
            f"median one; of the key cluster, {keys['best']:.0%} and {keys['median']:.0%} "
            f"({followed['clips']} clips)."
        )
        last = queries.get("median_of_last_layers")
        if last is not None:
            told.append(f"In the median of the last two layers it is {last:.0%} of the queries'.")
    return told


def _count(share: dict[str, Any], name: str) -> str:
    """Number of right prompts, of how many."""
    total = share["pairs" if name.startswith("both") else "prompts"]
    return "" if share[name] is None else f"{round(share[name] * total)} of {total}"


def _sweep(record: dict[str, Any] | None) -> str:
    """Fidelity of every method at equal compute."""
    title = "Every method at equal compute, on prompts held out of the built-in model's training"
    if record is None:
        return f"{title}: {_NOT_MEASURED}\n"
    rows = record["statistics"]
    budgets = sorted({row["budget"] for row in rows})
    cells = {(row["method"], row["budget"]): row for row in rows}
    lines = [
        f"{title} (PSNR to dense in dB, median over prompts and quartiles; {record['dtype']}; "
        f"{_where(record)}):",
        "",
        f"| share of the pairs computed | {' | '.join(f'{budget:.0%}' for budget in budgets)} |",
        f"|{'---|' * (1 + len(budgets))}",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        found = [_spread_of(cells.get((method, budget))) for budget in budgets]
        lines.append(f"| {method} | {' | '.join(found)} |")
    counts = sorted({row["prompts"] for row in rows})
    prompts = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lines += [
        "",
        f"Over {prompts} prompts of {record['num_frames']} frames; kept pairs, stand-ins and "
        "routing count as computed.",
        "",
    ]
    return "\n".join([*lines, *_paired(record["points"], budgets)])


def _paired(points: list[dict[str, Any]], budgets: list[float]) -> list[str]:
    """Lines of what each method gains over the paper's on the same prompts."""
    found: dict[tuple[str, float], dict[Any, float]] = {}
    for point in points:
        own = found.setdefault((point["method"], point["budget"]), {})
        psnr = point["psnr_db"]
        own[point["prompt"], point["seed"]] = IDENTICAL_DB if psnr is None else psnr
    cells = {
        (method, budget): [psnr - base[prompt] for prompt, psnr in own.items() if prompt in base]
        for (method, budget), own in found.items()
        if method != PAPER_METHOD and (base := found.get((PAPER_METHOD, budget)))
    }
    shared = [budget for budget in budgets if any(key[1] == budget for key in cells)]
    if not shared:
        return []
    lines = [
        f"What each gains over {PAPER_METHOD} on the same prompts, in dB (median of the "
        "differences; each method with its own cluster counts):",
        "",
        f"| share of the pairs computed | {' | '.join(f'{budget:.0%}' for budget in shared)} |",
        f"|{'---|' * (1 + len(shared))}",
    ]
    for method in dict.fromkeys(method for method, _ in cells):
        gains = [cells.get((method, budget)) for budget in shared]
        row = [f"{statistics.median(gain):+.1f} ({len(gain)})" if gain else "" for gain in gains]
        lines.append(f"| {method} | {' | '.join(row)} |")
    return [*lines, "", "In brackets, the number of prompts.", ""]


def _spread_of(row: dict[str, Any] | None) -> str:
    psnr = row and row["psnr_db"]
    return f"{psnr['median']:.1f} ({psnr['low']:.1f} to {psnr['high']:.1f})" if psnr else ""


def _calls(record: dict[str, Any] | None) -> str:
    """Whole sparse calls on a CPU."""
    title = "Whole sparse calls of the routed method against dense SDPA in the same process"
    if record is None:
        return f"{title}: {_NOT_MEASURED}\n"
    lines = [
        f"{title}, k-means, routing and selection included ({_where(record)}):",
        "",
        "| tokens, heads | precision | computed | busy processes beside | dense | sparse "
        "| speedup (quartiles) | k-means |",
        f"|{'---|' * 8}",
    ]
    for row in record["calls"]:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['tokens']:,}, {row['heads']} | {row['dtype']} "
            f"| {row['compute_density']:.1%} | {row['busy']} | {row['dense_ms']:.0f} ms "
            f"| {row['sparse_ms']:.0f} ms | {row['ratio']:.2f}× ({low:.2f} to {high:.2f}) "
            f"| {row['kmeans_gflops']:.0f} GFLOP/s |"
        )
    dense, sparse = (record["exponents"][name] for name in ("dense", "sparse"))
    if dense is not None and sparse is not None:
        lines += [
            "",
            f"Time grows with tokens to the power {dense:.2f} dense, {sparse:.2f} sparse.",
        ]
    return "\n".join([*lines, ""])


def _timings(record: dict[str, Any] | None) -> str:
    """How far one comparison's speedup spreads when it is repeated."""
    title = "How far the speedup of one comparison can be believed"
    if record is None:
        return f"{title}: {_NOT_MEASURED}\n"
    lines = [
        f"{title}: {record['method']} on the same prompt of {record['request']['num_frames']} "
        f"frames, {record['repeats']} times ({_where(record)}). "
        "A disturbed run is shown without a number.",
        "",
        "| dense and sparse | busy processes beside | speedup, median (least to greatest) "
        "| spread | of the middle half | disturbed | by the stopwatch alone |",
        f"|{'---|' * 7}",
    ]
    for row in record["cases"]:
        low, high = min(row["speedups"]), max(row["speedups"])
        first, _, third = statistics.quantiles(row["speedups"], n=4, method="inclusive")
        plain = f"{min(row['plain']):.2f} to {max(row['plain']):.2f}×"
        lines.append(
            f"| {'in turns' if row['in_turns'] else 'one after the other'} | {row['busy']} "
            f"| {row['median']:.2f}× ({low:.2f} to {high:.2f}) | {row['spread']:.1%} "
            f"| {(third - first) / row['median']:.1%} "
            f"| {row['disturbed']} of {record['repeats']} | {plain} |"
        )
    return "\n".join([*lines, ""])


def _forecast(record: dict[str, Any] | None) -> str:
    """How far off the page's forecasts are."""
    title = "How far off the page's forecasts of a run at another budget are"
    if record is None:
        return f"{title}: {_NOT_MEASURED}\n"
    prompts = len({one["prompt"] for one in record["forecasts"]})
    lines = [
        f"{title}: every run of {prompts} held-out prompts foretold from others "
        f"({_where(record)}).",
        "",
        "| foretold from | forecasts | PSNR off by, median | nine in ten | worst | within its bar "
        "| speedup off by, median | nine in ten |",
        f"|{'---|' * 8}",
    ]
    for name, words in (("one", "one other run"), ("all", "all other runs")):
        found = record[name]
        if found is None:
            continue
        psnr, speed = found["psnr_off_db"], found["speedup_off"]
        lines.append(
            f"| {words} | {found['count']} | {psnr['median']:.1f} dB "
            f"| {psnr['nine_in_ten']:.1f} dB | {psnr['worst']:.1f} dB "
            f"| {found['within_bar']:.0%} | {speed['median']:.1%} | {speed['nine_in_ten']:.1%} |"
        )
    return "\n".join([*lines, ""])


def _cpu(record: dict[str, Any] | None) -> str:
    title = "Cluster attention against dense SDPA in the same process, attention alone"
    if record is None:
        return f"{title}: {_NOT_MEASURED}\n"
    rows = [r for r in record["attention"] if r["method"] == PAPER_METHOD]
    lines = [
        f"{title} (fp32, heads of {rows[0]['head_dim']}; {_where(record)}):",
        "",
        "| tokens, heads | clusters | density | dense | ours | speedup | bound 1 / density |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['tokens']:,}, {r['heads']} | {r['num_q_clusters']}/{r['num_k_clusters']} "
        f"| {r['density']:.0%} | {r['dense_ms']:.0f} ms | {r['sparse_ms']:.0f} ms "
        f"| {r['speedup']:.2f}× | {r['flop_ratio']:.2f}× |"
        for r in rows
    ]
    return "\n".join([*lines, ""])


def _gpu(record: dict[str, Any] | None) -> str:
    title = "Cluster attention on a GPU, at the sizes of real models"
    if record is None or record["toy"]:
        return f"{title}: {_NOT_MEASURED}\n"
    lines = [
        f"{title} ({record['dtype']}; {_where(record)}); useful TFLOP/s count kept pairs alone:",
        "",
        "| sizes of | tokens, heads, clusters | density | | time | useful TFLOP/s | of best dense "
        "| speedup |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = {}
    for r in record["attention"]:
        sizes = f"{r['tokens']:,}, {r['heads']}, {r['num_q_clusters']}/{r['num_k_clusters']}"
        # The fastest dense kernel is timed again at each density; the first time is shown.
        rows.setdefault((r["case"], sizes, r["contestant"], r["density"]), r)
    cases = list(dict.fromkeys(key[:2] for key in rows))
    dense = ("sdpa", "dense")
    for key in sorted(rows, key=lambda k: (cases.index(k[:2]), not k[2].startswith(dense), k[3])):
        case, sizes, contestant, density = key
        r = rows[key]
        lines.append(
            f"| {case} | {sizes} | {density:.0%} | {contestant} | {r['ms']:.2f} ms "
            f"| {r['useful_tflops']:.0f} | {r['share']:.2f} | {r['speedup']:.2f}× |"
        )
    beside = [
        f"{r['share_of_dense']:.0%} ({r['case']}, {r['tokens']:,} tokens)" for r in record["steps"]
    ]
    lines += [
        "",
        "Beside attention, a sparse call clusters, selects and gathers. Of the best dense "
        f"attention's time that takes {', '.join(beside)}.",
    ]
    missing = dict.fromkeys(
        f"{left['contestant']} ({left['why']})"
        if "contestant" in left
        else f"{left['case']} with {left['heads']} heads and "
        f"{left['num_q_clusters']}/{left['num_k_clusters']} clusters"
        + (f" at {left['density_asked']:.0%}" if "density_asked" in left else "")
        for left in record["left_out"]
    )
    if missing:
        lines.append(f"Not measured, for want of time or the reason given: {', '.join(missing)}.")
    return "\n".join([*lines, ""])


def _e2e(record: dict[str, Any] | None) -> str:
    title = "Whole transformers with random weights on a GPU, dense against sparse"
    if record is None or record["toy"]:
        return f"{title}: {_NOT_MEASURED}\n"
    of = "forwards"
    if record.get("blocks"):
        of = f"times of {record['blocks']} blocks of each kind, in place of all blocks"
    lines = [
        f"{title} (runs put together from measured {of}; {_where(record)}):",
        "",
        "| model | method | density | dense warm-up | speedup | bound at no cost |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['model']} | {r['method']} | {r['density']:.1%} | {r['warmup_fraction']:.0%} "
        f"| {r['speedup']:.2f}× | {r['bound']:.2f}× |"
        for r in record["runs"]
    ]
    if record["left_out"]:
        missing = "; ".join(f"{left['model']} ({left['why']})" for left in record["left_out"])
        lines += ["", f"Not measured: {missing}."]
    return "\n".join([*lines, ""])


def _versions(record: dict[str, Any] | None) -> str:
    title = (
        "On the oldest and the newest versions that the requirements allow, of torch the newest"
    )
    if record is None:
        return f"{title}: {_NOT_MEASURED}\n"
    packages = ("torch", "triton", "diffusers", "transformers")
    lines = [
        f"{title} (`make test-versions`):",
        "",
        f"| {' | '.join(packages)} | tests | kernels compiled | with faults | date |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for which in ("oldest", "newest"):
        result = record.get(which)
        if result is None:
            lines.append(f"| {which}: {_NOT_MEASURED} |{' |' * (len(packages) + 3)}")
            continue
        chips = result["kernels"].values()
        row = [result["versions"][package] for package in packages]
        tests = result.get("tests")
        row += [
            f"{tests['passed']} passed, {tests['failed'] + tests['errors']} failed"
            if tests
            else "`make test`",
            f"{sum(chip['builds'] for chip in chips)} for {len(chips)} chips",
            str(sum(len(chip["faults"]) for chip in chips)),
            result["date"][:10],
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def _where(record: dict[str, Any]) -> str:
    return f"{record['hardware']}, torch {record['versions']['torch']}, {record['date'][:10]}"


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


if __name__ == "__main__":
    bench = ROOT / "assets" / "bench"
    write_atomic(bench / "README.md", tables(bench).encode())
