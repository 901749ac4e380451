"""Coverage-guided fuzzing of one reader through the whole ingest, for a bounded time.

    pip install atheris
    python tests/fuzz/fuzz.py perf_data --seconds 1800

Whatever the bytes, ingest may end in a trace directory or in a TracekitError; anything else is a find, and so is a
directory left behind, an input that takes 20 s or one that takes 2 GB. Finds are kept (one input per traceback) and the
run goes on; exit status 1 says that there were some. The seeds are fixtures and the shared captures.

Inside of libFuzzer a process grows by megabytes for each input that shows something new, which it does not outside:
before that is too much, a run starts itself anew and goes on from some of its corpus.
"""

import argparse
import hashlib
import importlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "captures"
SEED_BYTES = 400_000
SECONDS_EACH = 20
KEPT_UNITS = 64
LIMIT_BYTES, ANEW_PAGES = 3 << 30, (1 << 30) // 4096
SEEDS = {
    "perf_data": [*ROOT.glob("fixtures/*/*perf.data"), *SHARED.glob("*/rec.perf-*/perf.*")],
    "trace_dat": sorted(SHARED.glob("*/*/trace.dat"), key=lambda path: path.stat().st_size)[:12],
    "ftrace_text": [*SHARED.glob("*/rec.txt-*/trace*.txt")],
    "perf_script": [*SHARED.glob("*/*/oracle.script.txt")],
    "trace_cmd_report": [*SHARED.glob("*/*/oracle.report.txt")],
}
TEXT = ("ftrace_text", "perf_script", "trace_cmd_report")
INTERESTING = (0, 1, 7, 8, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)

with atheris.instrument_imports(include=["tracekit"]):
    from tracekit import formats
    from tracekit.errors import TracekitError
    from tracekit.ingest import ingest

    formats.readers()
    if len(sys.argv) > 1 and sys.argv[1] in formats.registry.names("tracekit.formats"):
        private = {"perf_data": "_perf_read", "trace_dat": "_trace_dat_read"}.get(sys.argv[1], "_text_read")
        importlib.import_module(f"tracekit.formats.{private}")  # what a reader brings in only when it reads


class Run:
    """One fuzzing run: where it works, how long, what it found."""

    def __init__(self, args: argparse.Namespace, corpus: Path, work: Path) -> None:
        self.reader, self.finds, self.corpus, self.work = args.reader, args.finds, corpus, work
        self.end = time.monotonic() + args.seconds
        self.executions, self.read = args.done
        self.seen = {path.stem.partition("-")[2] for path in self.finds.glob(f"{self.reader}-*.txt")}

    def one(self, data: bytes) -> None:
        """Ingest ``data``."""
        if time.monotonic() > self.end:
            print(
                f"{self.reader}: {self.executions} executions, {self.read} readable, {len(self.seen)} finds", flush=True
            )
            shutil.rmtree(self.work, ignore_errors=True)
            os._exit(1 if self.seen else 0)  # libFuzzer has no other way out
        if self.executions % 64 == 0 and int(Path("/proc/self/statm").read_text().split()[1]) > ANEW_PAGES:
            self.start_anew()
        self.executions += 1
        source, out = self.work / "input", self.work / "out.tracekit"
        source.write_bytes(data)
        began = time.monotonic()
        try:
            ingest(source, out, force=True, jobs=1)
            self.read += 1
        except TracekitError as error:
            if "\n" in str(error):
                self.keep(data, f"more than one line: {error!r}")
        except BaseException:  # noqa: BLE001 -- that is what is looked for
            self.keep(data, traceback.format_exc())
        if time.monotonic() - began > SECONDS_EACH:
            self.keep(data, f"took {time.monotonic() - began:.0f} s")
        left = {path.name for path in self.work.iterdir()} - {"input", "out.tracekit"}
        if left:
            self.keep(data, f"left behind: {left}")
            for name in left:
                shutil.rmtree(self.work / name, ignore_errors=True)

    def start_anew(self) -> None:
        """Become a new process that goes on from some of the corpus: all of it would fill the memory again."""
        units = sorted(self.corpus.iterdir())
        for unit in random.sample(units, max(len(units) - KEPT_UNITS, 0)):
            unit.unlink()
        signal.setitimer(signal.ITIMER_REAL, 0)
        shutil.rmtree(self.work, ignore_errors=True)
        options = ["--seconds", self.end - time.monotonic(), "--finds", self.finds, "--corpus", self.corpus]
        done = ["--done", self.executions, self.read]
        os.execv(sys.executable, [sys.executable, *map(str, [sys.argv[0], self.reader, *options, *done])])

    def keep(self, data: bytes, what: str) -> None:
        """Keep an input that shows something new."""
        lines = [line.strip() for line in what.splitlines() if "line " in line][-3:] or [what[:60]]
        key = hashlib.sha256("".join(lines).encode()).hexdigest()[:12]
        if key in self.seen:
            return
        self.seen.add(key)
        (self.finds / f"{self.reader}-{key}.bin").write_bytes(data)
        (self.finds / f"{self.reader}-{key}.txt").write_text(what)
        print(f"FIND {key}: {what.splitlines()[-1][:150]}", flush=True)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """A few changes, most of them where a file's structure is: near its beginning, near its end, at sizes."""
    chance = random.Random(seed)
    if chance.random() < 0.2:
        return atheris.Mutate(data, max_size)
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = _place(out, chance)
        kind = chance.randrange(6)
        if kind == 0 and out:
            out[place] ^= 1 << chance.randrange(8)
        elif kind in (1, 2):
            width = chance.choice((1, 2, 4, 8))
            value = chance.choice(INTERESTING) if kind == 1 else chance.randrange(1 << 16)
            out[place : place + width] = (value & ((1 << (8 * width)) - 1)).to_bytes(width, "little")
        elif kind == 3:
            del out[place : place + chance.choice((1, 4, 8, 64, 4096))]
        elif kind == 4:
            out[place:place] = out[_place(out, chance) :][: chance.choice((8, 64, 512))]
        else:
            del out[place:]
    return bytes(out[:max_size])


def _place(data: bytearray, chance: random.Random) -> int:
    size = max(len(data), 1)
    window = min(size, 4096)
    where = chance.random()
    if where < 0.4:
        return chance.randrange(window)
    return size - 1 - chance.randrange(window) if where < 0.6 else chance.randrange(size)


def _seeds(reader: str) -> Path:
    corpus = Path(tempfile.mkdtemp(prefix="tracekit-corpus-"))
    for number, seed in enumerate(path for path in SEEDS[reader] if path.is_file()):
        content = seed.read_bytes()
        content = content[:20_000] if reader in TEXT else content
        if len(content) <= SEED_BYTES:
            (corpus / f"{number}").write_bytes(content)
    return corpus


def main() -> None:
    """Fuzz the reader that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reader", choices=sorted(SEEDS))
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--finds", type=Path, default=Path("finds"))
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--done", type=int, nargs=2, default=[0, 0], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.finds.mkdir(exist_ok=True, parents=True)
    work = Path(tempfile.mkdtemp(prefix="tracekit-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    corpus = args.corpus or _seeds(args.reader)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    run = Run(args, corpus, work)
    options = [sys.argv[0], str(corpus), f"-max_len={SEED_BYTES}", "-timeout=60", "-rss_limit_mb=4096", "-verbosity=0"]
    atheris.Setup(options, run.one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
