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
        OutputError: ``out`` exists.
    """
    with ExitStack() as stack:
        if out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tracekit-demo-")))
        elif out.exists():
            raise OutputError(f"{out} exists; give another -o")
        else:
            folder = out
            folder.mkdir(parents=True)
        capture = folder / "demo.perf.data"
        shutil.copyfile(resources.demo_capture(), capture)
        say(f"$ tracekit ingest {capture.name}")
        trace = open_trace(ingest(capture))
        say(f"{sum(trace.rows(event) for event in trace.event_names):,} records of {len(trace.event_names)} events\n")
        policies = ["counter_early_exit", "counter_early_exit:counter=posted"]
        say(f"$ tracekit replay {capture.name}.tracekit {' '.join('--policy ' + one for one in policies)}")
        result = pipeline.run(trace, policies)
        say(reports.render(result.document, "txt").decode())
        if out is not None:
            result.write(folder / "result")
            reports.write(result.document, folder / "report.html")
            say(f"kept in {out}: the trace, the result and report.html")
