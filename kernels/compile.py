"""Compile every shipped kernel for every chip without a GPU, and read what each one takes.

    python -m kernels.compile                     the table, as Markdown
    python -m kernels.compile --write             and into kernels/README.md
    python -m kernels.compile --chips sm_90 --kernels attend --dtypes bf16
    python -m kernels.compile --chips sm_90 --raced

Exit code 1: a kernel exceeds the shared memory of a chip, or spills registers.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.build import Build
from kernels.cluster_attention.fused import lists
from kernels.cluster_attention.fused.tiling import (
    RACED,
    Config,
    attend_kernel,
    config_for,
    variants_for,
)
from kernels.impl import HEAD_DIMS
from kernels.kmeans import fused as kmeans
from kernels.machine_code import instructions_per_128_keys
from kernels.permutation import fused as permutation
from kernels.routing import fused as routing

README = Path(__file__).with_name("README.md")
TABLE_START, TABLE_END = "<!-- table: python -m kernels.compile --write -->\n", "<!-- end -->"

# Shared memory that one block may have, in bytes.
SHARED_LIMITS = {
    "sm_80": 163 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx942": 64 << 10,
}
# The table has the attention builds with the least and the most options, and of the list kernel
# the variant with the most.
IN_TABLE = r"^(?!attend|list keys)|bf16$|bf16\+comp\+pairs\+perm$|K1024\+comp\+weights$"
DTYPES = ("fp16", "bf16")

# What pointers point to, other than q, k, v and what has their dtype.
_POINTEES = {
    **dict.fromkeys(("perm_ptr", "order_ptr"), "i64"),
    **dict.fromkeys(
        """means_ptr v_means_ptr half_norms_ptr bias_ptr weights_ptr mass_ptr
        error_ptr""".split(),
        "fp32",
    ),
    "kept_ptr": "u8",
    **dict.fromkeys(
        """labels_ptr ranks_ptr counts_ptr totals_ptr offsets_ptr q_offsets_ptr k_offsets_ptr
        tiles_ptr chunks_ptr work_ptr ends_ptr main_ptr tail_ptr items_ptr num_items_ptr
        ticket_ptr sizes_ptr""".split(),
        "i32",
    ),
}
# These point into the middle of a tensor, which may not be aligned.
_UNALIGNED = ("num_items_ptr", "ticket_ptr")


@dataclass(frozen=True)
class Report:
    """What one kernel takes on one chip.

    Attributes:
        build: the kernel.
        chip: "sm_90" or "gfx942".
        registers: per thread.
        spills: bytes of stack per thread, or spilled registers on AMD.
        shared_bytes: of one block.
        assembly: PTX, or AMD's assembly.
        binary: the machine code, for `nvdisasm`.
    """

    build: Build
    chip: str
    registers: int
    spills: int
    shared_bytes: int
    assembly: str
    binary: bytes

    @property
    def instructions(self) -> int | None:
        """Per warp and 128 keys in the loop of full tiles; of attend kernels on sm_90 alone."""
        if self.chip != "sm_90" or not self.build.name.startswith("attend"):
            return None
        return instructions_per_128_keys(disassemble(self.binary), int(self.build.constants["D"]))

    @property
    def faults(self) -> list[str]:
        """Reasons not to ship this build, as sentences."""
        name = f"{self.build.name} on {self.chip}"
        found = []
        if self.shared_bytes > SHARED_LIMITS[self.chip]:
            found.append(f"{name}: {self.shared_bytes} bytes of shared memory, too many")
        if self.spills:
            found.append(f"{name}: spills {self.spills} bytes")
        return found


def shipped_builds(chip: str, dtypes: tuple[str, ...] = DTYPES) -> Iterator[Build]:
    """Every kernel that runs on a chip, in every variant, with its default tiles.

    Kernels that only move or list tokens are built for one dtype, of 2 bytes.
    """
    for dtype in dtypes:
        for head_dim in HEAD_DIMS:
            for config in variants_for(chip, head_dim).values():
                yield from attention_builds(config, head_dim, dtype)
            yield from kmeans_builds(chip, head_dim, dtype)
            yield from routing.builds(chip, head_dim, dtype)
    yield from list_builds(chip)
    yield from permutation_builds(chip)


def attention_builds(config: Config, head_dim: int, dtype: str) -> Iterator[Build]:
    """The attend kernel that a configuration names, in all its variants."""
    return attend_kernel(config.attend).builds(config, head_dim, dtype)


def kmeans_builds(chip: str, head_dim: int, dtype: str) -> Iterator[Build]:
    """Assignment and update of k-means."""
    yield assign_build(kmeans.default_tiling(chip), head_dim, dtype)
    no_centroids = ("centroids_ptr", "half_norms_ptr")
    for name, absent in (
        ("update", ()),
        ("means", no_centroids),
        ("means of sorted", ("perm_ptr", *no_centroids)),
    ):
        yield Build(
            f"{name} D{head_dim} {dtype}",
            kmeans.update_kernel,
            dtype,
            {"D": head_dim, "BLOCK_N": kmeans.UPDATE_ROWS},
            absent,
        )


def assign_build(tiling: kmeans.Tiling, head_dim: int, dtype: str) -> Build:
    """Assignment of k-means with a given tiling."""
    return Build(
        f"assign {tiling.block_n}×{tiling.block_c} D{head_dim} {dtype}",
        kmeans.assign_kernel,
        dtype,
        kmeans.assign_constants(tiling, head_dim),
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )


def list_builds(chip: str) -> Iterator[Build]:
    """The list kernels of attention, for each tile size that runs on a chip."""
    configs = [x for head_dim in HEAD_DIMS for x in variants_for(chip, head_dim).values()]
    yield from {build.name: build for x in configs for build in lists.builds(x)}.values()


def permutation_builds(chip: str) -> Iterator[Build]:
    """The counting sort, and moving tokens."""
    tiling = permutation.default_tiling(chip)
    block_n = tiling.block_n
    yield count_build(tiling)
    yield Build(
        "scan",
        permutation.scan_kernel,
        "bf16",
        {"BLOCK_B": permutation.BLOCK_B, "BLOCK_C": permutation.BLOCK_C},
    )
    yield Build("place", permutation.place_kernel, "bf16", {"BLOCK_N": block_n})
    for head_dim in HEAD_DIMS:
        for inverse in (False, True):
            yield Build(
                f"{'scatter' if inverse else 'gather'} rows D{head_dim}",
                permutation.move_kernel,
                "bf16",
                {
                    "INVERSE": inverse,
                    "BLOCK_N": permutation.MOVE_ELEMENTS // head_dim,
                    "BLOCK_D": head_dim,
                },
                num_warps=8,
            )


def count_build(tiling: permutation.Tiling) -> Build:
    """The ranking of the counting sort with a given tiling."""
    compare = {"BLOCK_N": tiling.block_n, "BLOCK_COMPARE": tiling.block_compare}
    return Build("count", permutation.count_kernel, "bf16", compare, num_warps=tiling.num_warps)


def raced_builds(chip: str, dtypes: tuple[str, ...] = DTYPES) -> Iterator[Build]:
    """What a race times beside the default tiles, at D 128, in the order of the kernels."""
    for dtype in dtypes:
        for config in RACED.values() if chip == "sm_90" else ():
            yield from attention_builds(config, 128, dtype)
        for tiling in kmeans.RACED:
            build = assign_build(tiling, 128, dtype)
            yield replace(build, name=f"{build.name}{', per tile' * tiling.per_tile}")
        for tiling in routing.RACED:
            yield from routing.builds(chip, 128, dtype, tiling)
    for tiling in permutation.RACED:
        yield replace(count_build(tiling), name=f"count {tiling.block_n}×{tiling.block_compare}")


def compile_for(build: Build, chip: str) -> Report:
    """Compile one kernel for one chip with what its launcher passes, and read the report."""
    names = build.kernel.arg_names
    constants = {**build.constants, **dict.fromkeys(build.absent)}
    signature = {
        name: "constexpr" if name in constants else _type_of(name, build) for name in names
    }
    attributes = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name in names
        if name not in constants and name not in build.types and _is_aligned(name)
    }
    if chip.startswith("sm_"):
        target = GPUTarget("cuda", int(chip.removeprefix("sm_")), 32)
    else:
        target = GPUTarget("hip", chip, 64)
    source = ASTSource
    if build.kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource as source
    compiled = triton.compile(
        source(build.kernel, signature, constants, attributes),
        target=target,
        options={
            "num_warps": build.num_warps,
            "num_stages": build.num_stages,
            "enable_fp_fusion": True,
            **({"maxnreg": build.max_registers} if build.max_registers else {}),
        },
    )
    if chip.startswith("sm_"):
        registers, spills = _read_cubin(compiled.asm["cubin"])
        assembly, binary = compiled.asm["ptx"], compiled.asm["cubin"]
    else:
        assembly, binary = compiled.asm["amdgcn"], compiled.asm["hsaco"]
        registers = _read_number(r"\.vgpr_count:\s+(\d+)", assembly)
        spills = _read_number(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    return Report(build, chip, registers, spills, compiled.metadata.shared, assembly, binary)


def _type_of(name: str, build: Build) -> str:
    if name in build.types:
        return build.types[name]
    if name.endswith("_ptr"):
        return "*" + _POINTEES.get(name, build.dtype)
    return "fp32" if name == "scale" else "i32"


def _is_aligned(name: str) -> bool:
    # Strides of tokens are multiples of the head dimension.
    if name.endswith("_ptr"):
        return name not in _UNALIGNED
    return name.startswith(("stride_", "bias_", "half_"))


def disassemble(cubin: bytes) -> str:
    """NVIDIA's machine code as text."""
    return _run_on(cubin, triton.knobs.nvidia.nvdisasm.path, "-c")


def _read_cubin(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack, from the report that the compiler leaves in the cubin."""
    usage = _run_on(cubin, triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage")
    return _read_number(r"REG:(\d+)", usage), _read_number(r"STACK:(\d+)", usage)


def _run_on(cubin: bytes, *command: str) -> str:
    """What one of NVIDIA's tools, as Triton brings them, says of machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([*command, file.name], check=True, capture_output=True, text=True)
    return done.stdout


def _read_number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"the compiler's report has no {pattern}")
    return int(match[1])


def table(reports: list[Report]) -> str:
    """Registers, shared memory and instructions by kernel and chip, as Markdown."""
    chips = list(dict.fromkeys(report.chip for report in reports))
    by_name: dict[str, dict[str, str]] = {}
    for report in reports:
        cell = f"{report.registers} / {report.shared_bytes / 1024:.0f} KiB"
        if report.instructions:
            cell += f" / {report.instructions}"
        if report.spills:
            cell += f" / spills {report.spills}"
        name = f"{report.build.name}, {report.build.num_warps} warps"
        by_name.setdefault(name, {})[report.chip] = cell
    lines = [
        "| kernel | " + " | ".join(chips) + " |",
        "| --- |" + " --- |" * len(chips),
        *(
            f"| {name} | " + " | ".join(cells.get(chip, "") for chip in chips) + " |"
            for name, cells in by_name.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.compile", description=__doc__)
    parser.add_argument("--chips", nargs="+", choices=SHARED_LIMITS, default=list(SHARED_LIMITS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16"])
    parser.add_argument("--kernels", default="", help="pattern of the names of those to build")
    parser.add_argument("--write", action="store_true", help="put the table into the README")
    parser.add_argument("--save", type=Path, help="folder for assembly and machine code")
    parser.add_argument(
        "--tiling",
        help="block_m=…,block_n=…,num_warps=…,num_stages=… of another main attention tiling",
    )
    parser.add_argument(
        "--raced", action="store_true", help="what a race times beside the default tiles"
    )
    parser.add_argument("--attend", help="another attend kernel, by the name of its module")
    arguments = parser.parse_args(argv)
    reports = []
    pattern = arguments.kernels or (IN_TABLE if arguments.write else "")
    for chip in arguments.chips:
        of_chip = raced_builds if arguments.raced else shipped_builds
        builds = of_chip(chip, tuple(arguments.dtypes))
        if arguments.tiling or arguments.attend:
            builds = _trial_builds(chip, arguments)
        for build in builds:
            if not re.search(pattern, build.name):
                continue
            report = compile_for(build, chip)
            reports.append(report)
            line = f"{report.registers} registers, {report.shared_bytes} bytes shared"
            print(f"{chip} {build.name}: {line}, {report.spills} spilled", file=sys.stderr)
            if arguments.save:
                arguments.save.mkdir(parents=True, exist_ok=True)
                path = arguments.save / f"{chip} {build.name}".replace(" ", "_")
                path.with_name(path.name + ".s").write_text(report.assembly)
                path.with_name(path.name + ".bin").write_bytes(report.binary)
    text = table(reports)
    print(text)
    if arguments.write:
        page = README.read_text()
        before, rest = page.split(TABLE_START)
        README.write_text(before + TABLE_START + text + TABLE_END + rest.split(TABLE_END)[1])
    faults = [fault for report in reports for fault in report.faults]
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


def _trial_builds(chip: str, arguments: argparse.Namespace) -> Iterator[Build]:
    pairs = (pair.split("=") for pair in (arguments.tiling or "").split(",") if pair)
    changes = {name: int(value) for name, value in pairs}
    for head_dim in HEAD_DIMS:
        shipped = config_for(chip, head_dim)
        main_tiling = replace(shipped.main, **changes)
        config = Config(main_tiling, attend=arguments.attend or shipped.attend)
        for dtype in arguments.dtypes:
            yield from attention_builds(config, head_dim, dtype)


if __name__ == "__main__":
    sys.exit(main())
