"""What tests share: the small captures of fixtures/, ingested and replayed once each, and the real command."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CAPTURES = {"demo": ROOT / "fixtures" / "demo.perf.data"} | {
    path.parent.name: path for path in sorted((ROOT / "fixtures").glob("*/perf.data"))
}

Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate-golden", action="store_true", help="write tests/golden anew instead of comparing")


@pytest.fixture(params=sorted(CAPTURES))
def capture(request: pytest.FixtureRequest) -> str:
    """Name of a capture; a test that takes it runs once for each."""
    return request.param


@pytest.fixture(scope="session")
def captures() -> dict[str, Path]:
    """The file of each capture, by name."""
    return CAPTURES


@pytest.fixture(scope="session")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The opened trace of a capture. Not to be written to: all tests share it."""
    import tracekit as tk  # noqa: PLC0415 -- tests that never ask for it stay quick

    @cache
    def ingest(name: str) -> Any:
        return tk.ingest(CAPTURES[name], tmp_path_factory.mktemp("ingested") / f"{name}.tracekit")

    return ingest


@pytest.fixture(scope="session")
def replayed(ingested: Callable[[str], Any]) -> Callable[..., Any]:
    """The result of a capture: replayed(name, *policies, fidelity=None)."""
    import tracekit as tk  # noqa: PLC0415

    @cache
    def replay(name: str, *policies: str, fidelity: str | None = None) -> Any:
        chosen = policies or ("counter_early_exit", "counter_early_exit:counter=posted")
        return tk.replay(ingested(name), chosen, fidelity=fidelity)

    return replay


@pytest.fixture(scope="session")
def command() -> list[str]:
    """The installed ``tracekit``; where it is not installed, its entry point."""
    script = Path(sysconfig.get_path("scripts"), "tracekit")
    if script.exists():
        return [str(script)]
    return [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tracekit.cli import main; main()",
    ]


@pytest.fixture(scope="session")
def tracekit(command: list[str]) -> Run:
    """Runs ``tracekit ARGS`` to its end; stdin is empty, no terminal anywhere."""

    def run(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        env = {**os.environ, **options.pop("env", {})}
        return subprocess.run([*command, *map(str, args)], text=True, check=False, timeout=100, env=env, **options)

    return run
