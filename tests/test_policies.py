"""The contract of every policy in the folder, on nothing, on hand-made tables and on every fixture."""

import dataclasses
import itertools
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import traces

import tracekit
from tracekit import pipeline, policies, registry, schema
from tracekit.errors import UsageError
from tracekit.ingest import ingest
from tracekit.machine import replay as machine
from tracekit.machine.operations import OPERATIONS, SCHEMA

ROOT = Path(__file__).resolve().parents[1]
NAMES = registry.names("tracekit.policies")
FIXTURES = {"demo": ROOT / "fixtures" / "demo.perf.data"} | {
    data.parent.name: data for data in sorted((ROOT / "fixtures").glob("*/perf.data"))
}
VISITS = ["try_to_migrate.vma_visit", "remove_migration_ptes.vma_visit"]
EMPTY = pl.DataFrame(schema=SCHEMA)


def specs(name):
    """``name`` with every choice of its parameters."""
    params = policies.describe(name)["params"].items()
    choices = {key: parameter["choices"] for key, parameter in params if parameter["choices"]}
    for values in itertools.product(*choices.values()):
        params = ",".join(f"{key}={value}" for key, value in zip(choices, values, strict=True))
        yield f"{name}:{params}" if params else name


SPECS = [spec for name in NAMES for spec in specs(name)]


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    @cache
    def of(name):
        out = tmp_path_factory.mktemp("policies") / "t.tracekit"
        return machine.replay(pipeline.load(ingest(FIXTURES[name], out))).operations

    return of


def made(ops, judgement):
    """VMA visits that a policy leaves."""
    return int(ops.with_columns(n=pl.Series(judgement.executed)).filter(pl.col("op").is_in(VISITS))["n"].sum())


def test_the_two_bounds_are_there():
    assert set(pipeline.BOUNDS) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_is_a_frozen_dataclass_that_says_what_it_needs(name):
    kind = registry.load("tracekit.policies", name).POLICY
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert isinstance(kind.needs, tuple)
    assert set(kind.needs) <= schema.variants().keys()
    assert set(getattr(kind, "touches", ())) <= OPERATIONS.keys()
    assert "needs" not in {field.name for field in dataclasses.fields(kind)}
    assert kind() == kind()


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_describes_itself(name):
    told = policies.describe(name)
    assert told["name"] == name
    assert told["text"]
    kind = registry.load("tracekit.policies", name).POLICY
    assert told["params"].keys() == {field.name for field in dataclasses.fields(kind)}
    for key, parameter in told["params"].items():
        assert parameter["usage"].startswith(f"{key}="), key
        assert not parameter["choices"] or str(parameter["default"]).lower() in parameter["choices"], key
    assert policies.params(kind()) == {key: parameter["default"] for key, parameter in told["params"].items()}


@pytest.mark.parametrize("spec", SPECS)
def test_a_policy_judges_nothing(spec):
    judgement = policies.parse(spec)[1].judge(EMPTY)
    assert judgement.executed.tolist() == []
    assert all(len(count) == 0 for count in judgement.added.values())
    assert set(judgement.unsafe.values()) | set(judgement.losses.values()) | set(judgement.open.values()) <= {0}


@pytest.mark.parametrize("name", FIXTURES)
def test_a_policy_spares_whole_operations_and_adds_named_ones(name, operations):
    ops = operations(name)
    before = ops.clone()
    for spec in SPECS:
        judgement = policies.parse(spec)[1].judge(ops)
        assert judgement.executed.dtype == np.int64, spec
        assert len(judgement.executed) == len(ops), spec
        assert set(np.unique(judgement.executed)) <= {0, 1}, spec
        changed = ops.filter(pl.Series(judgement.executed != 1))["op"].unique()
        assert set(changed) <= set(getattr(policies.parse(spec)[1], "touches", ())), spec
        assert judgement.added.keys() <= OPERATIONS.keys(), spec
        assert all(len(count) == len(ops) and (count >= 0).all() for count in judgement.added.values()), spec
        assert judgement.harmed is None or len(judgement.harmed) == len(ops), spec
        # what is spared unsafely is marked, so that it is never a saving
        entries = ops["op"].is_in(["migration_entry.set", "migration_entry.restore"]).to_numpy()
        entries &= judgement.executed == 0
        assert not entries.any() or judgement.harmed[entries].all(), spec
        assert ops.equals(before), spec


@pytest.mark.parametrize("name", FIXTURES)
def test_no_policy_spares_more_visits_than_the_upper_bound(name, operations):
    ops = operations(name)
    judged = {spec: policies.parse(spec)[1].judge(ops) for spec in SPECS}
    safe = [spec for spec, judgement in judged.items() if not any(judgement.unsafe.values())]
    assert set(NAMES) <= {spec.partition(":")[0] for spec in safe}
    assert made(ops, judged["upper_bound"]) == min(made(ops, judged[spec]) for spec in safe)
    assert made(ops, judged["as_traced"]) == max(made(ops, judgement) for judgement in judged.values())


def test_the_upper_bound_is_lower_where_there_is_something_to_spare(operations):
    found = {
        name: tuple(made(operations(name), policies.parse(spec)[1].judge(operations(name))) for spec in pipeline.BOUNDS)
        for name in ("demo", "forkcow-c4-keeplast", "forkcow-c4-none")
    }
    assert found == {
        "demo": (288, 32),  # 16 pages, 1 + 17 visits each
        "forkcow-c4-keeplast": (160, 32),
        "forkcow-c4-none": (160, 160),
    }


@pytest.mark.parametrize("name", FIXTURES)
def test_as_traced_changes_nothing(name, operations):
    judgement = policies.parse("as_traced")[1].judge(operations(name))
    assert (judgement.executed == 1).all()
    assert judgement == dataclasses.replace(judgement, added={}, harmed=None, unsafe={}, losses={}, open={})


def test_in_a_result_as_traced_is_what_was_traced():
    document = tracekit.replay(FIXTURES["demo"], []).document
    by_name = {policy["name"]: policy for policy in document["policies"]}
    assert by_name.keys() == set(pipeline.BOUNDS)
    assert all(count["traced"] == count["policy"] for count in by_name["as_traced"]["operations"].values())
    assert by_name["as_traced"]["ratio"] == {"low": 1.0, "median": 1.0, "high": 1.0}


def test_a_policy_that_lacks_its_events_is_not_judged(tmp_path):
    script = traces.Script()
    script.migrate(0x10_0000, 0x20_0000, [-1], [-1, 2])
    always = ["migrate:set_migration_pte", "migrate:remove_migration_pte"]
    events = [event for event in script.events if event.name in always]
    document = tracekit.replay(traces.write(tmp_path / "t", events, always=always), ["counter_early_exit"]).document
    policy = document["policies"][-1]
    assert policy["judgeable"] is False
    assert "try_to_migrate_one" in policy["reason"]
    assert "remove_migration_pte_visit" in policy["reason"]
    assert "operations" not in policy


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("no_such_policy", ["no_such_policy", *NAMES]),
        ("counter_early_exit:counter=maybe", ["counter is one of", "exact, posted", "not 'maybe'"]),
        ("counter_early_exit:scope=", ["scope", "small", "all"]),
        ("counter_early_exit:colour=red", ["colour", "counter=exact|posted", "device_path=include|exclude"]),
        ("counter_early_exit:counter", ["counter", "counter=exact|posted", "scope=small|all"]),
        ("upper_bound:counter=exact", ["counter", "upper_bound takes none"]),
    ],
)
def test_errors_of_a_spec_name_the_choices(spec, words):
    with pytest.raises(UsageError) as error:
        policies.parse(spec)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_spec_sets_what_it_names_and_nothing_else():
    name, policy = policies.parse("counter_early_exit:scope=all,counter=posted")
    assert name == "counter_early_exit"
    assert policies.params(policy) == {"counter": "posted", "scope": "all", "device_path": "include"}


def test_folios_of_any_order_where_the_scope_is_all(tmp_path):
    script = traces.Script()
    script.migrate(0x10_0000, 0x20_0000, [-1], [-1, 2, 3], order=4)
    ops = tracekit.replay(traces.write(tmp_path / "t", script.events)).operations
    left = {
        scope: made(ops, policies.parse(f"counter_early_exit:scope={scope}")[1].judge(ops))
        for scope in ("small", "all")
    }
    assert left == {"small": 4, "all": 2}  # the try walk's visit with them


def test_a_drivers_folios_keep_their_visits_where_its_path_is_left_out(tmp_path):
    script = traces.Script()
    script.enter("ioctl")
    script.try_to_migrate(0x10_0000, [-1])
    script.copy(0x10_0000, 0x20_0000)
    script.remove(0x20_0000, [-1, -2, 3])
    script.exit("ioctl")
    ops = tracekit.replay(traces.write(tmp_path / "t", script.events)).operations
    for counter, left in (("exact", 2), ("posted", 1)):
        with_it, without = (
            policies.parse(f"counter_early_exit:counter={counter},device_path={path}")[1].judge(ops)
            for path in ("include", "exclude")
        )
        assert (made(ops, with_it), made(ops, without)) == (1 + left, 1 + 3)
        assert without.unsafe == {"stale_migration_entries": 0}


def test_the_counter_pays_for_each_update(tmp_path):
    """D.2: one atomic operation per entry set, copied, zapped and restored."""
    script = traces.Script()
    script.enter("move_pages")
    script.start()
    script.migrate(0x10_0000, 0x20_0000, [-1, -2], [-1, 2, -3])
    script.end()
    script.exit("move_pages")
    ops = tracekit.replay(traces.write(tmp_path / "t", script.events)).operations
    judgement = policies.parse("counter_early_exit")[1].judge(ops)
    counted = ops.filter(pl.Series(judgement.added["counter.update"] > 0))["op"].value_counts()
    assert dict(counted.cast({"op": pl.String}).iter_rows()) == {
        "migration_entry.set": 2,
        "migration_entry.restore": 2,
        "migration_entry.fork_copy": 1,
        "migration_entry.zap": 1,
    }
