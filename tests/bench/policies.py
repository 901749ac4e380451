"""How fast policies judge: CPU seconds of twenty of them over one table of ten million operations.

    python tests/bench/policies.py TRACE [--operations 10000000]

The table is that of TRACE, over and over, each time with calls, episodes, runs and lives of its own. Judging is timed
alone: the replay comes once before it, however many policies there are.
"""

import argparse
import time
from pathlib import Path

import polars as pl

from tracekit import _process, pipeline, policies, registry
from tracekit.machine.replay import replay

SPECS = (
    *registry.names("tracekit.policies"),
    "counter_early_exit:counter=posted",
    "counter_early_exit:scope=all",
    "counter_early_exit:device_path=exclude",
    "batched_copy:threads=1,2,8,16",
    "batched_copy:engine=dma,channels=16,batch=1,64",
    "batched_zap:rule=none,v1",
    "single_trylock:rule=retry2",
    "counter_early_exit+batched_copy",
)
NUMBERED = ("call", "episode", "run", "life")


def tiled(ops: pl.DataFrame, n_ops: int) -> pl.DataFrame:
    """``ops`` so often that there are ``n_ops`` of them."""
    steps = {name: (ops[name].max() or 0) + 1 for name in NUMBERED}
    times = -(-n_ops // max(len(ops), 1))
    tiles = [
        ops.with_columns((pl.col(name) + number * step) for name, step in steps.items()) for number in range(times)
    ]
    return pl.concat(tiles).head(n_ops).rechunk()


def main() -> None:
    """Print a line per policy, and the sum."""
    _process.settle()  # as the command line does
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--operations", type=int, default=10_000_000)
    given = parser.parse_args()
    ops = tiled(replay(pipeline.load(given.trace)).operations, given.operations)
    chosen = [one for spec in SPECS for one in policies.expand(spec)]
    total = 0.0
    for one in chosen:
        began = time.process_time()
        policies.judge(one.name, one.policy, ops)
        took = time.process_time() - began
        total += took
        print(f"{took:7.2f} s  {len(ops) / took / 1e6:7.1f} M operations/s  {one.spec}")
    print(f"{total:7.2f} s  {len(ops):,} operations, {len(chosen)} policies")


if __name__ == "__main__":
    main()
