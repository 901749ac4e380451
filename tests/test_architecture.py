"""Imports point one way, a plug-in is one file, --help is light, and what is raised on purpose is a TracekitError."""

import ast
import builtins
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tracekit"

# Low to high. A module imports from lines above its own; a package counts as one, and imports freely within.
LAYERS = (
    "errors _process",
    "_terminal",
    "registry resources _columns _workers profiles",
    "formats _parquet",
    "snapshot",
    "ingest trace record",
    "schema",
    "machine recording",
    "policies",
    "costs",
    "blocking",
    "predict exposure",
    "summary",
    "reports",
    "result",
    "pipeline",
    "inspect demonstration validation doctor compare",
    "__init__",  # the face: import tracekit as tk
    "cli",
)
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer.split()}
HEAVY = {"polars", "pyarrow", "numpy", "matplotlib", "pandas"}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in SOURCES}


def unit_of(module: str) -> str:
    """``tracekit.machine.walks`` → ``machine``; the package itself is ``__init__``."""
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Every module that is imported by the statements ``nodes``."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else str(node.module)


TREES = {module_of(path): ast.parse(path.read_text()) for path in SOURCES}
# Wherever they stand: at the top, in a function, for types alone
IMPORTS = {module: sorted(set(imports_of(ast.walk(tree)))) for module, tree in TREES.items()}


def own(module: str) -> list[str]:
    return [imported for imported in IMPORTS[module] if imported.split(".")[0] == "tracekit"]


def test_every_module_has_its_layer() -> None:
    assert {unit_of(module) for module in MODULES} == set(RANK), "name it in LAYERS, and that order is the design"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_go_down(module: str) -> None:
    unit = unit_of(module)
    up = [other for other in own(module) if unit_of(other) != unit and RANK[unit_of(other)] >= RANK[unit]]
    assert not up, f"{module} may import only from layers below {unit}"


def test_within_a_package_imports_go_in_no_circle() -> None:
    """At the top of modules, that is; a package may lean on its parts in its functions."""
    left = {
        module: {
            other for other in imports_of(tree.body) if other in MODULES and not f"{module}.".startswith(f"{other}.")
        }
        for module, tree in TREES.items()
    }
    while left:
        free = [module for module, others in left.items() if not others & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for module in free:
            del left[module]


@pytest.mark.parametrize("module", sorted(m for m in MODULES if unit_of(m) == "policies"))
def test_policies_see_the_operations_table_and_nothing_else(module: str) -> None:
    allowed = {"tracekit.errors", "tracekit.registry", "tracekit.policies", "tracekit.machine.operations"}
    allowed |= {"tracekit.resources"}  # tables that come as data
    assert {other for other in own(module) if not other.startswith("tracekit.policies.")} <= allowed


@pytest.mark.parametrize("module", sorted(m for m in MODULES if unit_of(m) == "reports"))
def test_reports_compute_nothing(module: str) -> None:
    allowed = {"tracekit.errors", "tracekit.registry", "tracekit.reports"}
    assert {other for other in own(module) if not other.startswith("tracekit.reports.")} <= allowed
    assert not {other.split(".")[0] for other in IMPORTS[module]} & (HEAVY - {"matplotlib"})


def test_bytes_are_read_in_one_place() -> None:
    users = {unit_of(module) for module in MODULES if any(unit_of(other) == "formats" for other in own(module))}
    assert users == {"formats", "ingest", "cli"}, "all others work on trace directories; cli lists the formats"


def test_the_machine_knows_neither_bytes_nor_judgements() -> None:
    for module in (m for m in MODULES if unit_of(m) == "machine"):
        assert {unit_of(other) for other in own(module)} <= {"errors", "machine", "schema", "trace"}, module


def run_python(code: str, *, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(cwd or ROOT)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd or ROOT,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import contextlib, io
from tracekit import cli
verbs = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
for args in [["--help"], ["--version"], [], *([verb, "--help"] for verb in verbs)]:
    sys.argv = ["tracekit", *args]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        cli.main()
import tracekit
print(sorted({HEAVY!r} & sys.modules.keys()), len(verbs))
"""
    found, _, verbs = run_python(code).rpartition(" ")
    assert found == "[]"
    assert int(verbs) >= 8


def test_listing_formats_and_reports_imports_nothing_heavy() -> None:
    code = f"""
from tracekit import formats, registry
registry.names("tracekit.reports"), formats.readers()
print(sorted({HEAVY!r} & sys.modules.keys()))
"""
    assert run_python(code).strip() == "[]"


# --- a plug-in is one file ---


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout's package and data, to drop files into."""
    root = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, root / "tracekit", ignore=ignore)
    shutil.copytree(ROOT / "schemas", root / "schemas")
    (root / "fixtures").mkdir()
    shutil.copyfile(ROOT / "fixtures" / "demo.perf.data", root / "fixtures" / "demo.perf.data")
    return root


def tracekit_in(copy: Path, *args: str) -> str:
    return run_python(f"from tracekit.cli import main; sys.argv = ['tracekit', *{list(args)!r}]; main()", cwd=copy)


def test_a_policy_is_one_file(copy: Path) -> None:
    (copy / "tracekit/policies/no_copies.py").write_text('''
"""Nothing is copied."""
from dataclasses import dataclass
from typing import ClassVar, Literal
from tracekit.policies import Judgement

@dataclass(frozen=True)
class NoCopies:
    """No folio is copied."""
    depth: Literal["1", "2"] = "1"
    needs: ClassVar[tuple[str, ...]] = ("folio_copy",)

    def judge(self, ops):
        return Judgement((ops["op"] != "folio.copy").cast(int).to_numpy())

POLICY = NoCopies
''')
    assert "no_copies: No folio is copied." in tracekit_in(copy, "policies")
    shown = json.loads(
        tracekit_in(copy, "replay", "fixtures/demo.perf.data", "--policy", "no_copies:depth=2", "--json")
    )
    policy = shown["policies"][-1]
    assert (policy["name"], policy["params"], policy["judgeable"]) == ("no_copies", {"depth": "2"}, True)
    assert policy["operations"]["folio.copy"] == {"traced": 16, "policy": 0}


def test_a_report_is_one_file(copy: Path) -> None:
    (copy / "tracekit/reports/names.py").write_text('''
"""Names of the policies."""

def render(document):
    return ",".join(policy["name"] for policy in document["policies"]).encode()
''')
    tracekit_in(copy, "replay", "fixtures/demo.perf.data", "-o", "result")
    tracekit_in(copy, "report", "result", "-o", "out.names")
    assert (copy / "out.names").read_text().startswith("as_traced,upper_bound")


def test_a_format_is_one_file(copy: Path) -> None:
    (copy / "tracekit/formats/wrapped.py").write_text('''
"""A perf.data behind eight bytes of its own."""
from tracekit.formats import perf_data

NAME = "wrapped"
DESCRIPTION = "perf.data behind eight bytes"
EXTENSIONS = (".wrapped",)

def sniff(head):
    return head.startswith(b"WRAPPED.")

def read(path, sink, options):
    inner = path.with_name("inner")
    inner.write_bytes(path.read_bytes()[8:])
    return perf_data.read(inner, sink, options)._replace(format=NAME, source_bytes=path.stat().st_size)
''')
    capture = (copy / "fixtures/demo.perf.data").read_bytes()
    (copy / "a.wrapped").write_bytes(b"WRAPPED." + capture)
    assert "perf.data behind eight bytes" in tracekit_in(copy, "formats")
    manifest = json.loads(tracekit_in(copy, "ingest", "a.wrapped", "--json"))
    assert (manifest["source"]["format"], manifest["source"]["size_bytes"]) == ("wrapped", 8 + len(capture))


def test_a_kernel_variant_is_one_file(copy: Path) -> None:
    """The machine reads its event from a tracepoint of another name as soon as a variant file says so."""
    known = copy / "schemas/events/kprobes/try_to_migrate_one.folio.toml"
    before = known.read_text()
    moved = re.sub(r"^names = .*$", 'names = ["kprobes:of_another_kernel"]', before, flags=re.MULTILINE)
    assert moved != before
    command = ("replay", "fixtures/demo.perf.data", "--json")
    try:
        known.write_text(moved)
        assert json.loads(tracekit_in(copy, *command))["fidelity"] == "reconstructed"
        (copy / "schemas/events/kprobes/try_to_migrate_one.this_kernel.toml").write_text(before)
        assert json.loads(tracekit_in(copy, *command))["fidelity"] == "observed"
    finally:
        known.write_text(before)
        (copy / "schemas/events/kprobes/try_to_migrate_one.this_kernel.toml").unlink(missing_ok=True)


def test_one_broken_plug_in_does_not_break_the_rest(copy: Path) -> None:
    broken = [copy / "tracekit" / package / "broken.py" for package in ("policies", "reports")]
    for file in broken:
        file.write_text("raise RuntimeError\n")
    try:
        tracekit_in(copy, "replay", "fixtures/demo.perf.data", "--policy", "counter_early_exit")
    finally:
        for file in broken:
            file.unlink()


# --- errors ---


def raised_in(tree: ast.AST) -> Iterator[ast.Raise]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None)


def name_of(expression: ast.expr) -> str:
    return ast.unparse(expression.func if isinstance(expression, ast.Call) else expression)


PRIVATE = {  # raised by private modules of the readers, and caught there again
    "_NotUnderstoodError": "tracekit.formats._",
    "FormatTextError": "tracekit.formats._",
    "ValueError": "tracekit.formats._",
}
BUGS = {("tracekit.resources", "FileNotFoundError")}  # a broken installation is nobody's input: it keeps its traceback


def makers() -> dict[str, str]:
    """Functions and methods by name, and what they say they return; where two of one name differ, neither counts."""
    found: dict[str, set[str]] = {}
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                found.setdefault(node.name, set()).add(ast.unparse(node.returns) if node.returns else "None")
    return {name: kinds.pop() for name, kinds in found.items() if len(kinds) == 1}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_what_is_raised_on_purpose_is_a_tracekit_error(module: str) -> None:
    from tracekit import errors  # noqa: PLC0415

    made = makers()
    caught = {node.name for node in ast.walk(TREES[module]) if isinstance(node, ast.ExceptHandler)}
    for node in raised_in(TREES[module]):
        name = name_of(node.exc)
        kind = getattr(errors, name, None) or getattr(errors, made.get(name.rpartition(".")[2], ""), None)
        if kind is not None:
            assert issubclass(kind, errors.TracekitError)
        elif name in PRIVATE:
            assert module.startswith(PRIVATE[name])
        else:
            known = name in caught or name == "typer.Exit" or (module, name) in BUGS
            assert known, f"{module}:{node.lineno}: {name} is no TracekitError"


def test_private_errors_stay_inside() -> None:
    handlers = [
        handler.type
        for module, tree in TREES.items()
        if module.startswith("tracekit.formats.")
        for handler in ast.walk(tree)
        if isinstance(handler, ast.ExceptHandler) and handler.type is not None
    ]
    kinds = [kind for caught in handlers for kind in (caught.elts if isinstance(caught, ast.Tuple) else [caught])]
    assert set(PRIVATE) <= {name_of(kind) for kind in kinds}


def test_errors_are_drawn_in_the_text_of_their_module() -> None:
    from tracekit import errors  # noqa: PLC0415

    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert all(name in (errors.__doc__ or "") for name in kinds)
    assert not kinds & set(dir(builtins)), "a name of Python's own would be caught by mistake"
