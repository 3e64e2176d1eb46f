"""The floors kernels ← svg2 ← viz ← app, the wings of svg2, and sizes of all things.

Imports are read from the syntax tree of every file, nested and dynamic ones included, so that
a lazy import inside a function is held to the same rule.
"""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from pathlib import Path

import pytest

from tests.javascript import javascript_functions
from tests.tree import ROOT, project_files

PACKAGES = ("kernels", "svg2", "viz", "app")
TOP_LEVEL = {
    *("app.py", "svg2", "kernels", "viz", "assets", "tests", "requirements.txt", "Dockerfile"),
    *("README.md", "LICENSE", "Makefile", "pyproject.toml", "requirements-dev.txt"),
    *(".ci", ".gitignore", ".dockerignore", ".gitattributes"),
}
MAX_FILE_BYTES = 10_000_000
MAX_TREE_BYTES = 48_000_000
MAX_MODULE_LINES = 450
MAX_FUNCTION_LINES = 100
MAX_KERNEL_FUNCTION_LINES = 130
MAX_APP_LINES = 150
ATTEND_KERNELS = Path("kernels/cluster_attention/fused")  # one kernel is as long as it is

# What a wing of svg2 imports of the others, beside errors and config, which all may.
WINGS = {
    "svg2.errors": (),
    "svg2.config": ("svg2.method.selection",),
    "svg2.method": (),
    "svg2.hooks": ("svg2.method",),
    "svg2.models": (),
    "svg2.trace": ("svg2.method",),
    "svg2.runs": ("svg2.method", "svg2.hooks", "svg2.models", "svg2.trace"),
}
LEAVES = ("svg2.bench", "svg2.training")  # imported by their own commands and by tests alone
# What viz may know of svg2: frozen records and the registry of methods, never a pipeline.
VIZ_SEES = ("svg2.trace", "svg2.method.selection", "svg2.errors")
PAGE_SEES = (*VIZ_SEES, "svg2.runs", "svg2.models", "svg2.config")
DIFFUSERS_ROOMS = ("svg2.hooks", "svg2.models", "svg2.runs", *LEAVES)


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

    if "fused" not in path.with_suffix("").parts and path != Path("kernels/compile.py"):
        forbid(("triton",), "only files under fused and kernels/compile.py know Triton")
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
        if not within(module, (*LEAVES, "svg2.cli")):
            forbid(LEAVES, "bench and training are leaves")
        wing = next((wing for wing in WINGS if within(module, (wing,))), None)
        if wing is not None:
            seen = (wing, "svg2.errors", "svg2.config", *WINGS[wing])
            faults.extend(
                f"{path}: imports {i}: {wing} sees {', '.join(seen[1:])} only"
                for i in sorted(imports)
                if within(i, tuple(WINGS)) and not within(i, seen)
            )
    if floor == "viz":
        is_page = within(module, ("viz.page",))
        sees = PAGE_SEES if is_page else VIZ_SEES
        drawn = () if is_page else ("gradio",)
        forbid(
            ("torch", "diffusers", "transformers", "kernels", "app", *drawn),
            "pictures are drawn from traces alone",
        )
        if not is_page:
            forbid(("viz.page",), "only the page knows the page")
        faults.extend(
            f"{path}: imports {i}: {'viz.page' if is_page else 'viz'} sees {', '.join(sees)} only"
            for i in sorted(imports)
            if within(i, ("svg2",)) and i != "svg2" and not within(i, sees)
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
        ("svg2/config.py", "from svg2.models.spec import ModelSpec"),
        ("svg2/bench/run.py", "from .. import hooks\nimport plotly.express"),
        ("svg2/method/call.py", "from svg2.hooks.stats import RunStats"),
        ("svg2/hooks/enable.py", "from svg2.trace.recording import Recorder"),
        ("svg2/trace/recording.py", "from svg2.hooks.session import Session"),
        ("svg2/models/spec.py", "from svg2.trace.video import decode_mp4"),
        ("svg2/runs/compare.py", "from svg2.bench.turns import time_in_turns"),
        ("viz/figures.py", "from svg2 import enable"),
        ("viz/figures.py", "from svg2.runs.run import Run"),
        ("viz/figures.py", "import gradio"),
        ("viz/figures.py", "from viz.page import words"),
        ("viz/figures.py", "import torch.nn"),
        ("viz/page/words.py", "from svg2.hooks.enable import enable"),
        ("kernels/kmeans/api.py", "import numpy"),
        ("kernels/kmeans/reference.py", "import triton.language as tl"),
        ("app.py", "from kernels import kmeans"),
    ],
)
def test_the_floors_test_can_fail(path: str, source: str) -> None:
    assert broken_floors(Path(path), source)


def import_graph(files: dict[Path, str]) -> dict[Path, set[Path]]:
    """Which of our files each of them imports, those for type checkers alone included."""
    by_module = {module_name(path): path for path in files}
    graph = {}
    for path, source in files.items():
        names = imports_of(source, module_name(path), path.name == "__init__.py")
        found = {by_module[name] for name in names if name in by_module}
        # `from a import b` counts as `a` and `a.b`: where that is a module, it alone is meant.
        parents = {by_module.get(n.rpartition(".")[0]) for n in names if n in by_module}
        packages = {p for p in parents if p is not None and p.name == "__init__.py"}
        graph[path] = found - packages - {path}
    return graph


def circles(graph: dict[Path, set[Path]]) -> list[str]:
    """Files that import each other, each circle once, as a sentence."""
    found, done = [], set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        if path in trail:
            found.append(" → ".join(map(str, (*trail[trail.index(path) :], path))))
        elif path not in done:
            for needed in sorted(graph[path]):
                visit(needed, (*trail, path))
            done.add(path)

    for path in sorted(graph):
        visit(path, ())
    return found


def test_no_circle_of_files() -> None:
    assert not circles(import_graph({path: (ROOT / path).read_text() for path in sources()}))


def test_the_circles_test_can_fail() -> None:
    a, b, c = Path("svg2/a.py"), Path("svg2/b.py"), Path("svg2/c.py")
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from svg2.a import A"
    files = {a: "from svg2.b import B", b: "def f():\n    import svg2.c", c: lazy}
    assert circles(import_graph(files)) == ["svg2/a.py → svg2/b.py → svg2/c.py → svg2/a.py"]
    assert not circles(import_graph({a: "from svg2.b import B", b: "import svg2.c", c: ""}))


def too_long(path: Path, source: str) -> list[str]:
    """A module or functions of it that outgrew their limit, as sentences."""
    limit = MAX_APP_LINES if path == Path("app.py") else MAX_MODULE_LINES
    lines = source.count("\n")
    is_attend = path.parent == ATTEND_KERNELS and "attend" in path.name
    found = [f"{path}: {lines} lines, {limit} at most"] if lines > limit and not is_attend else []
    if path.suffix == ".js":
        lengths = javascript_functions(source)
    else:
        lengths = [
            (node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
    in_kernels = path.parts[0] == "kernels"
    most = MAX_KERNEL_FUNCTION_LINES if in_kernels else MAX_FUNCTION_LINES
    return found + [
        f"{path}: {name} has {n} lines, {most} at most" for name, n in lengths if n > most
    ]


def test_no_module_or_function_outgrows_one_idea() -> None:
    paths = [
        *sources(),
        *(p for p in project_files() if p.suffix == ".js" and p.parts[0] == "viz"),
    ]
    faults = [fault for path in paths for fault in too_long(path, (ROOT / path).read_text())]
    assert not faults, "\n".join(faults)


def test_the_length_test_can_fail() -> None:
    body = "    pass\n" * 101
    assert too_long(Path("svg2/a.py"), f"def f():\n{body}")
    assert not too_long(Path("kernels/a.py"), f"def f():\n{body}")
    assert too_long(Path("app.py"), "\n" * 151)
    lines = "  let x = 1;\n" * 101
    assert too_long(Path("viz/explorer/a.js"), f"function f() {{\n{lines}}}\n")


def test_only_the_registry_spells_a_methods_name() -> None:
    """Everybody else reads titles, symbols and rules from `svg2.method.selection.METHODS`."""
    suffixes = {".py", ".js", ".css", ".html", ".toml"}
    paths = [p for p in project_files() if p.suffix in suffixes and p.parts[0] != "tests"]
    spelled = [str(p) for p in paths if "svg2-comp" in (ROOT / p).read_text()]
    assert set(spelled) == {"svg2/method/selection/__init__.py"}


def test_relative_imports_are_resolved() -> None:
    assert "svg2.runs.call" in imports_of("from .call import load", "svg2.runs.compare")
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
