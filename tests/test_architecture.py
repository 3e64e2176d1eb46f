"""The floors kernels ← svg2 ← viz ← app, the top level, and the size of the tree.

Imports are read from the syntax tree of every file, nested and dynamic ones included, so that
a lazy import inside a function is held to the same rule.
"""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from pathlib import Path

import pytest

from tests.tree import ROOT, project_files

PACKAGES = ("kernels", "svg2", "viz", "app")
TOP_LEVEL = {
    *("app.py", "svg2", "kernels", "viz", "assets", "tests", "requirements.txt", "Dockerfile"),
    *("README.md", "LICENSE", "Makefile", "pyproject.toml", "requirements-dev.txt"),
    *(".ci", ".gitignore", ".dockerignore", ".gitattributes"),
}
MAX_FILE_BYTES = 10_000_000
MAX_TREE_BYTES = 48_000_000
# What viz may know of svg2: frozen records and the video files in them, never a pipeline.
VIZ_SEES = ("svg2.trace.file", "svg2.trace.video", "svg2.trace.metrics")
DIFFUSERS_ROOMS = (
    "svg2.hooks.families",
    "svg2.models.finding",
    "svg2.runs.dense_sparse",
    "svg2.bench",
    "svg2.training",
)


def module_name(path: Path) -> str:
    """`svg2/bench/__init__.py` is `svg2.bench`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, is_package: bool = False) -> set[str]:
    """Absolute names of all that a module imports; `from a import b` counts as `a.b` too."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call):
            callee = node.func.attr if isinstance(node.func, ast.Attribute) else None
            callee = node.func.id if isinstance(node.func, ast.Name) else callee
            if callee in {"import_module", "__import__"} and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    found.add(name.value)
    return found


def within(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def broken_floors(path: Path, source: str) -> list[str]:
    """Each import in `path` that reaches where its floor may not, as a sentence."""
    module = module_name(path)
    floor = module.split(".")[0]
    imports = imports_of(source, module, path.name == "__init__.py")
    faults = []

    def forbid(roots: tuple[str, ...], why: str) -> None:
        faults.extend(f"{path}: imports {i}: {why}" for i in sorted(imports) if within(i, roots))

    if path.name != "fused.py" and path != Path("kernels/compile.py"):
        forbid(("triton",), "only fused.py and kernels/compile.py know Triton")
    if floor == "kernels":
        known = (*sys.stdlib_module_names, "torch", "jaxtyping", "triton", "kernels")
        faults.extend(
            f"{path}: imports {i}: kernels are tensor operations on torch alone"
            for i in sorted(imports)
            if not within(i, known)
        )
    if floor == "svg2":
        forbid(("gradio", "plotly", "viz", "app"), "the method does not know how it is shown")
        if not within(module, DIFFUSERS_ROOMS):
            forbid(("diffusers",), f"only {', '.join(DIFFUSERS_ROOMS)} know diffusers")
    if floor == "viz":
        forbid(
            ("torch", "diffusers", "transformers", "gradio", "kernels", "app"),
            "pictures are drawn from traces alone",
        )
        faults.extend(
            f"{path}: imports {i}: viz sees {', '.join(VIZ_SEES)} only"
            for i in sorted(imports)
            if within(i, ("svg2",)) and i != "svg2" and not within(i, VIZ_SEES)
        )
    if floor == "app":
        forbid(("kernels", "diffusers", "transformers"), "the page wires svg2 and viz together")
    return faults


def sources() -> list[Path]:
    return [p for p in project_files() if p.suffix == ".py" and p.parts[0] != "tests"]


def test_no_import_goes_up_a_floor() -> None:
    faults = [f for path in sources() for f in broken_floors(path, (ROOT / path).read_text())]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("svg2/config.py", "def f():\n    import gradio as gr"),
        ("svg2/config.py", "from importlib import import_module\nimport_module('viz.figures')"),
        ("svg2/config.py", "from diffusers import WanPipeline"),
        ("svg2/bench/run.py", "from .. import processors\nimport plotly.express"),
        ("viz/figures.py", "from svg2 import enable"),
        ("viz/figures.py", "import torch.nn"),
        ("kernels/kmeans/api.py", "import numpy"),
        ("kernels/kmeans/reference.py", "import triton.language as tl"),
        ("app.py", "from kernels import kmeans"),
    ],
)
def test_the_floors_test_can_fail(path: str, source: str) -> None:
    assert broken_floors(Path(path), source)


def test_relative_imports_are_resolved() -> None:
    assert "svg2.trace.file" in imports_of("from .trace import Trace", "svg2.runs.dense_sparse")
    assert "svg2.bench.timing" in imports_of("from . import timing", "svg2.bench", is_package=True)
    assert "kernels.dims" in imports_of("from ..dims import B", "kernels.kmeans.api")


def test_top_level_holds_what_the_design_names() -> None:
    found = {path.parts[0] for path in project_files()}
    assert not found - TOP_LEVEL, f"not in the layout: {sorted(found - TOP_LEVEL)}"
    assert not TOP_LEVEL - found - {".gitattributes"}, f"missing: {sorted(TOP_LEVEL - found)}"


def test_hugging_face_kernels_is_not_installed() -> None:
    """It shares its name with our folder, and diffusers breaks when it finds ours in its place."""
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("kernels")


def test_the_tree_stays_small() -> None:
    sizes = {path: (ROOT / path).stat().st_size for path in project_files()}
    large = {str(path): size for path, size in sizes.items() if size >= MAX_FILE_BYTES}
    assert not large, f"files of 10 MB or more: {large}"
    assert sum(sizes.values()) < MAX_TREE_BYTES
