"""The command line: one function per verb, no logic. Heavy imports live inside the verbs (--help < 0.3 s)."""

import signal
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import tracekit
from tracekit import _process
from tracekit import _terminal as terminal
from tracekit.errors import TracekitError

if TYPE_CHECKING:
    from tracekit.trace import Trace

EXIT_FAULT, EXIT_USAGE, EXIT_LOSS, EXIT_INTERRUPTED = 1, 2, 3, 130

app = typer.Typer(
    help="What-if replay of Linux memory-management traces. Exit status: 0 done; 1 input or request at fault; 2 usage; "
    "3 done, with losses above --max-loss; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PathArgument = Annotated[Path, typer.Argument(metavar="PATH", help="A trace file or a trace directory.")]
OutOption = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout and nothing else.")]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help="NAME[:KEY=VALUE,…] or FILE.py[:…], repeatable; KEY=1,2,4 is a sweep, A+B a combination. See: tracekit "
        "policies.",
    ),
]
CostsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--costs",
        metavar="TRACE|TOML",
        help="Take prices from this trace of the same machine, or this cost table, too; repeatable.",
    ),
]
MaxLossOption = Annotated[
    float, typer.Option(min=0, max=1, help="Share of events that may be lost before the exit status is 3.")
]


def _show_version(value: bool) -> None:
    if value:
        terminal.say(f"tracekit {tracekit.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def ingest(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|-",
            help="A trace: see tracekit formats. -: standard input, with -o; what perf record -o - writes is read as "
            "it comes, anything else is put by beside the target first.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Trace directory; default FILE.tracekit.")
    ] = None,
    force: ForceOption = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Threads; default: one per core, at most 4.")] = None,
    event: Annotated[
        list[str] | None, typer.Option("--event", metavar="GLOB", help="Only events such as 'migrate:*'; repeatable.")
    ] = None,
    from_time: Annotated[
        str | None, typer.Option("--from", metavar="T", help="Not before: seconds as perf script prints them, or 12ns.")
    ] = None,
    to_time: Annotated[str | None, typer.Option("--to", metavar="T", help="Not after.")] = None,
    cpu: Annotated[str | None, typer.Option("--cpu", metavar="LIST", help="Only these CPUs: 0,2-3")] = None,
    pid: Annotated[str | None, typer.Option("--pid", metavar="LIST", help="Only these processes or threads.")] = None,
    max_loss: MaxLossOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Read a trace into a directory of Parquet tables.

    The options that choose events leave the tables of tasks, mappings and losses whole.
    """
    from tracekit.formats import _selection as selection
    from tracekit.ingest import ingest as ingest_file
    from tracekit.trace import open_trace

    _process.for_ingest()
    target = ingest_file(
        file,
        output,
        force=force,
        jobs=jobs,
        events=event or (),
        from_ns=selection.nanoseconds("--from", from_time),
        to_ns=selection.nanoseconds("--to", to_time),
        cpus=selection.numbers("--cpu", cpu),
        pids=selection.numbers("--pid", pid),
        progress=terminal.progress("ingest"),
    )
    trace = open_trace(target)
    terminal.show(trace.manifest, f"{trace.path}: {trace.size}", as_json=as_json)
    _leave(trace, max_loss)


@app.command()
def info(path: PathArgument, max_loss: MaxLossOption = 0.0, as_json: JsonOption = False) -> None:
    """Say what a trace holds, what was lost, what can be judged and what is missing for the rest."""
    from tracekit import inspect, pipeline

    trace = pipeline.load(path, progress=terminal.progress("ingest"))
    document = inspect.inspect(trace)
    terminal.show(document, inspect.text(document), as_json=as_json)
    _leave(trace, max_loss)


@app.command()
def replay(
    path: PathArgument,
    policy: PolicyOption = None,
    all_policies: Annotated[bool, typer.Option("--all", help="Every policy, with its default parameters.")] = False,
    fidelity: Annotated[
        str | None, typer.Option(help="Use no more than this: observed, reconstructed, counts.")
    ] = None,
    costs: CostsOption = None,
    kernel_has: Annotated[
        list[str] | None,
        typer.Option(
            "--kernel-has",
            metavar="NAME=VARIANT",
            help="The traced kernel has this variant of a policy, whatever trace and release say; repeatable.",
        ),
    ] = None,
    output: OutOption = None,
    report_file: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write a report, too; by suffix: .html .md .json .txt .png .svg"),
    ] = None,
    force: ForceOption = False,
    max_loss: MaxLossOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Replay a trace and predict what it would have cost under other policies."""
    from tracekit import pipeline, registry, reports
    from tracekit.policies import read_variants
    from tracekit.result import check_target

    if output is not None:
        check_target(output, force=force)
    if report_file is not None:
        reports.check_suffix(report_file)
    names = registry.names("tracekit.policies") if all_policies else []
    has = read_variants(kernel_has or [])
    trace = pipeline.load(path, progress=terminal.progress("ingest"))
    result = pipeline.run(trace, [*names, *(policy or [])], fidelity=fidelity, costs=costs or (), kernel_has=has)
    if output is not None:
        result.write(output, force=force)
    if report_file is not None:
        reports.write(result.document, report_file)
    terminal.say(reports.render(result.document, "json" if as_json else "txt").decode().rstrip("\n"))
    _leave(trace, max_loss)


@app.command()
def report(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="A result directory, or its summary.json.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="By suffix: .html .md .json .txt .png .svg")],
) -> None:
    """Write a report of a result."""
    from tracekit import reports
    from tracekit.result import open_result

    reports.write(open_result(result).document, output)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A trace, or a result directory.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another of the same sort.")],
    policy: PolicyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put two traces or two results side by side, and what A predicts beside what B shows."""
    from tracekit import compare as comparison

    document = comparison.compare(a, b, policy or (), progress=terminal.progress("ingest"))
    terminal.show(document, comparison.text(document), as_json=as_json)


@app.command()
def validate(
    dirs: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folders with spec.json files below them.")],
    fidelity: Annotated[
        str | None, typer.Option(help="Use no more than this: observed, reconstructed, counts.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save the table as JSON, too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict what every spec.json below DIR asks for, beside what was measured."""
    from tracekit import validation

    rows = validation.validate(dirs, progress=terminal.progress("validate"), fidelity=fidelity)
    if output is not None:
        validation.write(rows, output)
    terminal.show(validation.document(rows), validation.text(rows), as_json=as_json)


@app.command()
def policies(
    operations: Annotated[bool, typer.Option("--operations", help="List the operations and what they mean.")] = False,
    template: Annotated[
        bool, typer.Option("--template", help="Print a policy of your own to begin with: --policy ./mine.py")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the policies and their parameters."""
    from tracekit import policies as package
    from tracekit import registry
    from tracekit.machine.operations import AMOUNTS, OPERATIONS

    if template:
        terminal.say(package.template().rstrip("\n"))
        return
    if operations:
        terminal.print_table({**OPERATIONS, **AMOUNTS}, as_json)
        return
    described = [package.describe(name) for name in registry.names("tracekit.policies")]
    if as_json:
        terminal.print_json(described)
        return
    for one in described:
        terminal.say(f"{one['name']}: {one['text']}")
        for param in one["params"].values():
            default = "decided by the policy" if param["default"] is None else param["default"]
            terminal.say(f"    {param['usage']}   default {default}")


@app.command()
def formats(as_json: JsonOption = False) -> None:
    """List the trace formats that can be read; a file's format is found by its content."""
    from tracekit import formats as package

    terminal.print_table({reader.NAME: reader.DESCRIPTION for reader in package.readers()}, as_json)


@app.command(context_settings={"allow_interspersed_args": False})
def record(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[--] CMD…", help="What to run; none: until --seconds or Ctrl-C.")
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            help="light: migrations, faults and life cycle; rmap: and probes on every VMA visit, which slow migration "
            "down 2 to 4 times; graph: function_graph of migrate_pages, for prices."
        ),
    ] = "light",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The trace; default perf.data or trace.dat.")
    ] = None,
    recorder: Annotated[str | None, typer.Option(help="perf or trace-cmd; default: perf where it will do.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.001, help="Record the machine for so long.")] = None,
    snapshot: Annotated[
        bool, typer.Option(help="Write beside it, as FILE.snapshot.json, which memory was mapped when it began.")
    ] = True,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Run CMD once more with profile rmap, into FILE.rmap: prices, for replay --costs."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands and run nothing.")] = False,
    force: ForceOption = False,
) -> None:
    """Record a trace with perf or trace-cmd, as root: the events that tracekit can use and this kernel has."""
    from tracekit import record as package

    if dry_run:
        terminal.say(package.dry_run(profile, output, command or [], recorder, seconds))
        return
    made = package.record(profile, output, command or [], recorder, seconds, with_snapshot=snapshot, force=force)
    if made.status:
        terminal.complain(f"{(command or ['sleep'])[0]} ended with exit status {made.status}")
    if calibrate:
        prices = package.calibrate(made.out, command or [], recorder, force=force)
        terminal.say(f"{prices}: {prices.stat().st_size:,} bytes; tracekit replay {made.out} --costs {prices}")
    terminal.say(f"{made.out}: {made.out.stat().st_size:,} bytes; what it holds: tracekit info {made.out}")


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine can record and analyse, and what to do about the rest; exit status 1 if nothing."""
    from tracekit import doctor as package

    findings = package.examine()
    terminal.show(
        {"schema": "tracekit/doctor/1", "findings": [one._asdict() for one in findings]},
        package.text(findings),
        as_json=as_json,
    )
    if not package.healthy(findings):
        raise typer.Exit(EXIT_FAULT)


@app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep the trace, result and report here.")
    ] = None,
) -> None:
    """Run the whole job on a small real capture that comes with tracekit."""
    from tracekit import demonstration

    demonstration.run(output, terminal.say)


def main() -> None:
    """Entry point: one line on stderr for what is the input's or the request's fault, a traceback for a bug of ours."""
    _process.settle()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files need not be in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = _run(sys.argv[1:])
    except BrokenPipeError:  # the reader of our stdout (head, less) has seen enough
        terminal.drop_stdout()
        status = 0
    sys.exit(status)


def _terminate(number: int, _frame: object) -> None:
    """End as an interrupt does: what is half-written is taken away on the way out."""
    sys.exit(128 + number)


def _run(args: list[str]) -> int:
    # Not app(): that makes exit statuses and tracebacks of its own out of a closed pipe and an interrupt.
    try:
        with typer.main.get_command(app).make_context("tracekit", args) as context:
            context.command.invoke(context)
    except TracekitError as error:
        terminal.complain(str(error))
        return EXIT_FAULT
    except typer.Exit as done:
        return done.exit_code
    except KeyboardInterrupt:
        terminal.complain("interrupted; nothing was left half-written")
        return EXIT_INTERRUPTED
    except Exception as error:
        # click's own know how to show themselves; anything else is a bug and keeps its traceback
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", EXIT_USAGE))
    return 0


def _leave(trace: "Trace", max_loss: float) -> None:
    """Exit 3 where more was lost than may be; says what."""
    from tracekit.inspect import loss

    share, what = loss(trace)
    if what is not None and (share is None or share > max_loss):
        terminal.complain(f"{trace.manifest['source']['name']}: {what}")
        raise typer.Exit(EXIT_LOSS)
