"""The package works from a checkout, from an editable install, from a wheel and from an sdist."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DATA = {path.relative_to(ROOT).as_posix() for path in (ROOT / "schemas").rglob("*") if path.is_file()}


def run(*args: str | Path, **options: Any) -> str:
    done = subprocess.run(list(map(str, args)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the build backend can be imported, fetched once for all builds here."""
    out = tmp_path_factory.mktemp("backend")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--target", out,
        *PROJECT["build-system"]["requires"])  # fmt: skip
    return {**os.environ, "PYTHONPATH": str(out)}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory, backend: dict[str, str]) -> Path:
    """The sdist, unpacked."""
    out = tmp_path_factory.mktemp("sdist")
    code = f"import {PROJECT['build-system']['build-backend']} as backend; print(backend.build_sdist({str(out)!r}))"
    name = run(sys.executable, "-c", code, cwd=ROOT, env=backend).split()[-1]
    with tarfile.open(out / name) as archive:
        archive.extractall(out, filter="data")
    return out / name.removesuffix(".tar.gz")


@pytest.fixture(scope="module", params=["checkout", "sdist"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, backend: dict[str, str]) -> Path:
    """A wheel built from the checkout, and one from the sdist."""
    source = ROOT if request.param == "checkout" else request.getfixturevalue("sdist")
    out = tmp_path_factory.mktemp(f"wheel-{request.param}")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-input", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", out, source, cwd=out, env=backend)
    return next(out.glob("*.whl"))


def test_the_sdist_holds_what_it_takes_to_build_and_to_test(sdist: Path) -> None:
    held = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    needed = {"pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", ".ci/run",
              "tests/test_packaging.py", "fixtures/demo.perf.data", "tracekit/cli.py"}  # fmt: skip
    assert needed | DATA <= held
    assert not [name for name in held if "__pycache__" in name or name.endswith(".pyc")]


def test_the_wheel_holds_the_data_once_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = email.message_from_bytes(
            archive.read(next(name for name in names if name.endswith(".dist-info/METADATA")))
        )
    held = [name for name in names if ".dist-info/" not in name]
    assert len(held) == len(set(held))
    assert {f"tracekit/_data/{name}" for name in DATA} | {"tracekit/_data/demo.perf.data", "tracekit/py.typed"} <= set(
        held
    )
    assert {name.split("/")[0] for name in held} == {"tracekit"}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    required = [one for one in metadata.get_all("Requires-Dist") if "extra ==" not in one]
    assert len(required) == len(PROJECT["project"]["dependencies"])


def works(command: list[str | Path], tmp_path: Path, python: Path, env: dict[str, str]) -> None:
    """The demo and the list of policies run far from the checkout, and all data is found."""
    assert "remove_migration_ptes.vma_visit  272        16" in run(*command, "demo", cwd=tmp_path, env=env)
    assert "counter_early_exit" in run(*command, "policies", cwd=tmp_path, env=env)
    code = "from tracekit import resources; print(resources.schemas()); print(resources.demo_capture())"
    schemas, capture = run(python, "-c", code, cwd=tmp_path, env=env).split()
    assert {
        f"schemas/{path.relative_to(schemas).as_posix()}" for path in Path(schemas).rglob("*") if path.is_file()
    } == DATA
    assert Path(capture).read_bytes() == (ROOT / "fixtures" / "demo.perf.data").read_bytes()


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", **changes}


def make_venv(path: Path) -> Path:
    """A virtualenv that finds this one's libraries behind its own: nothing is fetched twice."""
    run(sys.executable, "-m", "venv", path)
    python = path / "bin" / "python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (own / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_installed_from_a_wheel(wheel: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "venv")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, env=environment())
    works([python.with_name("tracekit")], tmp_path, python, environment())
    code = "import tracekit; print(tracekit.__file__)"
    assert run(python, "-c", code, cwd=tmp_path, env=environment()).startswith(str(tmp_path))


def test_from_the_checkout(tmp_path: Path) -> None:
    env = environment(PYTHONPATH=str(ROOT))
    works([sys.executable, "-c", "from tracekit.cli import main; main()"], tmp_path, Path(sys.executable), env)


def test_installed_editable(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("__pycache__", ".*_cache")
    for name in ("tracekit", "schemas", "fixtures"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, copy / name)
    python = make_venv(tmp_path / "venv")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-input", "--editable", copy, env=environment())
    works([python.with_name("tracekit")], tmp_path, python, environment())
    # an editable install sees a new data file at once: it has no copy
    (copy / "schemas" / "new.toml").touch()
    code = "from tracekit import resources; print((resources.schemas() / 'new.toml').exists())"
    assert run(python, "-c", code, cwd=tmp_path, env=environment()) == "True\n"


# --- one place for each thing ---


def test_the_version_stands_in_one_place(ingested: Callable[[str], Any]) -> None:
    import tracekit  # noqa: PLC0415

    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"] == {"path": "tracekit/__init__.py"}
    assert ingested("demo").manifest["tool"] == {"name": "tracekit", "version": tracekit.__version__}


def test_ci_takes_its_command_from_the_readme() -> None:
    commands = re.findall(r"^    (python3 -m venv .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 2, "one sets up and runs the demo, one sets up and runs the tests"
    assert commands[0].endswith(".venv/bin/tracekit demo")
    assert commands[1].endswith(".venv/bin/python -m pytest -n auto")
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script
    assert "bin/python -m pytest" not in script, "it has no command of its own"


def test_every_ignored_lint_rule_has_its_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    lint = text[text.index("[tool.ruff.lint]") : text.index("[tool.mypy]")]
    for line in lint.splitlines():
        if re.match(r'\s+"[A-Z]+\d*"', line):
            assert "#" in line, line
