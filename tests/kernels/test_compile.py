"""Offline compilation: what ships fits its chip, spills nothing and uses the tensor cores."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from kernels import compile as offline

pytestmark = pytest.mark.slow

CHIPS = tuple(offline.SHARED_LIMITS)
TENSOR_CORES = {"sm_8": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05", "sm_120": "mma.sync"}
# The whole matrix takes minutes: `python -m kernels.compile --dtypes fp16 bf16` does it. These
# hold the most registers of each kind, in either dtype and head dimension.
SOME = re.compile(
    r"attend (main|tail) \S+ D128 bf16\+comp\+perm$|attend main \S+ D64 fp16$"
    r"|assign \S+ D128 bf16$"
)
ON_ONE_CHIP = re.compile(r"^(update|list|count|scan|place|gather|scatter)(?!.*(D64|fp16))")


@pytest.fixture(scope="module")
def reports():
    """A report of each of these builds by chip."""
    builds = {chip: list(offline.shipped_builds(chip)) for chip in CHIPS}
    wanted = [(chip, b) for chip in CHIPS for b in builds[chip] if SOME.search(b.name)]
    wanted += [("sm_90", b) for b in builds["sm_90"] if ON_ONE_CHIP.search(b.name)]
    return [offline.compile_for(build, chip) for chip, build in wanted]


def test_nothing_spills_and_all_fits(reports):
    assert {report.chip for report in reports} == set(CHIPS)
    assert len(reports) > 20
    assert not [fault for report in reports for fault in report.faults]


def test_products_run_on_the_tensor_cores(reports):
    for report in reports:
        if not report.build.name.startswith(("attend", "assign")):
            continue
        unit = "mfma" if report.chip.startswith("gfx") else None
        unit = unit or next(u for c, u in TENSOR_CORES.items() if report.chip.startswith(c))
        assert unit in report.assembly, (report.chip, report.build.name)


def test_a_fault_is_found():
    build = next(b for b in offline.shipped_builds("sm_80") if b.name.startswith("attend main"))
    large = {**build.constants, "BLOCK_M": 128, "BLOCK_N": 128, "LIST_N": 128}
    report = offline.compile_for(replace(build, constants=large, num_warps=4), "sm_80")
    assert report.spills > 0
    assert report.faults
    assert not replace(report, spills=0).faults
    assert replace(report, spills=0, chip="gfx942", shared_bytes=70_000).faults


def test_the_page_has_the_table_of_what_ships():
    page = Path(offline.README).read_text()
    table = page.split(offline.TABLE_START)[1].split(offline.TABLE_END)[0]
    header, _, *rows = table.strip().splitlines()
    assert header == "| kernel | " + " | ".join(CHIPS) + " |"
    names = {row.split("|")[1].strip() for row in rows}
    shipped = {
        f"{build.name}, {build.num_warps} warps"
        for chip in CHIPS
        for build in offline.shipped_builds(chip, ("bf16",))
        if re.search(offline.IN_TABLE, build.name)
    }
    assert names == shipped
