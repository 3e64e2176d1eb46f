"""The tables of a race for assets/bench/README.md."""

import json
from pathlib import Path
from typing import Any


def race_records(folder: Path) -> list[dict[str, Any]]:
    """Records of races in a folder, without rehearsals."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("race-*.json"))]
    return [record for record in records if record["suite"] == "race" and not record["toy"]]


def block_records(folder: Path) -> list[dict[str, Any]]:
    """Records of blocks of whole transformers in a folder, without rehearsals."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("race-*-blocks.json"))]
    return [record for record in records if not record["toy"]]


def race_table(record: dict[str, Any], where: str) -> str:
    """Markdown of one race.

    Args:
        where: hardware, versions and date in words.
    """
    lines = [
        f"A race of kernel variants ({record['dtype']}; {where}); each was right on sampled rows "
        "before it was timed, and the best third of ours was timed longer:",
        "",
        "| op | sizes of | density | | time | useful TFLOP/s | over the default | over dense |",
        f"|{'---|' * 8}",
    ]
    for contest in record["contests"]:
        density = f"{contest['density']:.0%}" if "density" in contest else ""
        for row in sorted(contest["rows"], key=lambda row: row["ms"]):
            lines.append(
                f"| {contest['op']} | {contest['case']}, {contest['tokens']:,} tokens | {density} "
                f"| {row['name']}{'' if row['is_finalist'] else ' (short)'} | {row['ms']:.2f} ms "
                f"| {_number(row.get('useful_tflops'), '.0f')} "
                f"| {_number(row['over_default'], '.2f', '×')} "
                f"| {_number(row.get('over_dense'), '.2f', '×')} |"
            )
    won = ", ".join(f"{op}: {row['name']}" for op, row in record.get("winners", {}).items())
    lines += ["", f"Won on {record['chip']}, and runs there from now on: {won or 'nothing'}."]
    missing = [
        *(f"{name} ({why})" for name, why in record["absent"].items()),
        *(f"{left['name']} ({left['why']})" for left in record["dropped"]),
        *(
            f"{left.get('op', 'all')} at {left['case']} ({left['why']})"
            for left in record["left_out"]
        ),
    ]
    if missing:
        lines.append(f"Not measured: {'; '.join(missing)}.")
    return "\n".join([*lines, ""])


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
