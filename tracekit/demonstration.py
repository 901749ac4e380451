"""``tracekit demo``: the whole job on the small real capture that ships with the package."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tracekit import pipeline, reports, resources
from tracekit.errors import OutputError
from tracekit.ingest import ingest
from tracekit.trace import open_trace


def run(out: Path | None, say: Callable[[str], None]) -> None:
    """Ingest, replay and report; keep what was made in ``out``.

    Raises:
        OutputError: ``out`` exists or cannot be written.
    """
    if out is not None and out.exists():
        raise OutputError(f"{out} exists; give another -o")
    with ExitStack() as stack:
        try:
            beside = None if out is None else out.absolute().parent
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=".tracekit-demo-", dir=beside))
            folder = Path(scratch, "demo")
            folder.mkdir()
            capture = folder / "demo.perf.data"
            shutil.copyfile(resources.demo_capture(), capture)
        except OSError as error:
            raise OutputError(f"{out or tempfile.gettempdir()}: cannot be written: {error.strerror}") from error
        say(f"$ tracekit ingest {capture.name}")
        trace = open_trace(ingest(capture))
        say(f"{trace.size}\n")
        policies = ["counter_early_exit", "counter_early_exit:counter=posted"]
        say(f"$ tracekit replay {capture.name}.tracekit {' '.join('--policy ' + one for one in policies)}")
        result = pipeline.run(trace, policies)
        say(reports.render(result.document, "txt").decode())
        if out is not None:
            result.write(folder / "result")
            reports.write(result.document, folder / "report.html")
            folder.rename(out)
            say(f"kept in {out}: the trace, the result and report.html")
