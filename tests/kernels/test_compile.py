"""Offline compilation: what ships fits its chip, spills nothing and uses the tensor cores."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from kernels import compile as offline
from kernels.build import Build
from kernels.machine_code import loops_with

pytestmark = pytest.mark.slow

CHIPS = tuple(offline.SHARED_LIMITS)
TENSOR_CORES = {"sm_8": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05", "sm_120": "mma.sync"}
# Each kernel once, in the variant with the most registers; `nightly` compiles all that ships.
SOME = re.compile(
    r"attend (\S+ )?(main|tail) \S+ D128 bf16\+comp\+pairs\+perm$"
    r"|(assign|update|gather|scatter).* D128|route \S+ D128 bf16\+pairs$"
    r"|list keys \S+ K1024\+comp\+weights$|list items|count|scan|place"
)
PRODUCTS = re.compile(r"(attend main|assign|route) \S+ D128 bf16(\+comp\+perm|\+pairs)?$")


def compiled(chip, pattern=""):
    """Reports of the builds whose names have the pattern, in bf16; all without one."""
    dtypes = ("bf16",) if pattern else offline.DTYPES
    builds = [b for b in offline.shipped_builds(chip, dtypes) if re.search(pattern, b.name)]
    return [offline.compile_for(build, chip) for build in builds]


def assert_sound(reports):
    """Nothing spills, all fits, and products run on the tensor cores."""
    assert not [fault for report in reports for fault in report.faults]
    for report in reports:
        if not report.build.name.startswith(("attend", "assign", "route")):
            continue
        unit = "mfma" if report.chip.startswith("gfx") else None
        unit = unit or next(u for c, u in TENSOR_CORES.items() if report.chip.startswith(c))
        assert unit in report.assembly, (report.chip, report.build.name)


def test_each_kernel_is_sound_on_one_chip():
    reports = compiled("sm_90", SOME)
    kernels = {report.build.kernel.__name__ for report in reports}
    assert kernels == {build.kernel.__name__ for build in offline.shipped_builds("sm_90")}
    assert_sound(reports)


def test_products_are_sound_on_another():
    reports = compiled("sm_80", PRODUCTS)
    assert len(reports) == 5
    assert_sound(reports)


@pytest.mark.nightly
@pytest.mark.parametrize("chip", CHIPS)
def test_all_that_ships_is_sound(chip):
    reports = compiled(chip)
    assert len(reports) > 30
    assert_sound(reports)


def test_instructions_of_the_loop_of_full_tiles():
    """A loop holds the products of its tile, and the Gluon kernel has the shortest."""
    found = {}
    for report in compiled("sm_90", r"attend (gluon |tma )?main 128×\S+ D128 bf16$"):
        for count, products in loops_with("HGMMA", offline.disassemble(report.binary)):
            assert count > products
        found[report.build.name.split()[1]] = report.instructions
    assert found.keys() == {"main", "tma", "gluon"}
    assert all(200 < x < 900 for x in found.values())
    assert found["gluon"] < found["main"]


def test_loops_are_the_innermost():
    text = """
        .L_x_0:
            /*0000*/ HGMMA R0 ;
        .L_x_1:
            /*0010*/ HGMMA R1 ;
            /*0020*/ FADD R1, R1, R1 ;
            /*0030*/ @P0 BRA `(.L_x_1) ;
            /*0040*/ @P1 BRA `(.L_x_0) ;
            /*0050*/ BRA `(.L_x_2) ;
        .L_x_2:
    """
    assert loops_with("HGMMA", text) == [(3, 1)]
    assert loops_with("QGMMA", text) == []


@pytest.mark.parametrize("dim", [64, 128])
def test_softmax_runs_beside_the_product_in_gluon(dim):
    """Between the waits for scores and for values stand all exponentials of a tile."""
    (report,) = compiled("sm_90", rf"attend gluon main \S+ D{dim} bf16$")
    code = offline.disassemble(report.binary)
    assert len(re.findall(r"DEPBAR.LE gsb0, 0x1 ", code)) == 4
    for part in re.split(r"DEPBAR.LE gsb0, 0x1 ", code)[1:]:
        beside, *_ = re.split(r"DEPBAR.LE gsb0, 0x0 ", part)
        assert beside.count("MUFU.EX2") >= 64


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


def test_a_build_of_gluon_with_types_of_its_own():
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl

    @gluon.jit
    def double_kernel(x_ptr, N, BLOCK: gl.constexpr):
        layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
        i = gl.arange(0, BLOCK, layout=layout)
        x = gl.load(x_ptr + i, mask=i < N)
        gl.store(x_ptr + i, x + x, mask=i < N)

    build = Build("double", double_kernel, "bf16", {"BLOCK": 128}, types={"N": "i64"})
    report = offline.compile_for(build, "sm_90")
    assert not report.faults
    assert ".param .u64 double_kernel_param_1" in report.assembly
