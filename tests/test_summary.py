"""summary.json: its form for every capture, and what its numbers promise each other."""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import tracekit
from tracekit import inspect, resources, validation

SCHEMAS = {
    name: json.loads((resources.schemas() / f"{name}.schema.json").read_text()) for name in ("summary", "accuracy")
}


def check(document: dict[str, Any], schema: str = "summary") -> None:
    jsonschema.Draft202012Validator(SCHEMAS[schema]).validate(document)


@pytest.mark.parametrize("schema", sorted(SCHEMAS))
def test_the_schemas_are_json_schemas(schema: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[schema])


def test_every_capture_has_the_form(capture: str, replayed: Callable[..., Any]) -> None:
    check(replayed(capture).document)


def test_forced_to_counts(capture: str, replayed: Callable[..., Any]) -> None:
    document = replayed(capture, fidelity="counts").document
    check(document)
    assert document["fidelity"] == "counts"
    judged = {policy["spec"]: policy["judgeable"] for policy in document["policies"]}
    assert [spec for spec, judgeable in judged.items() if judgeable] == ["as_traced"]
    visits = [op for op in document["policies"][0]["operations"] if op.endswith("vma_visit")]
    assert visits == [], "counts knows nothing about VMAs"


def test_with_nothing_to_reconstruct_from_nothing_is_judged_and_the_way_out_is_named(
    ingested: Callable[..., Any],
) -> None:
    trace = copy.copy(ingested("6.12-forkcow-c4-all"))
    # as from a machine whose page table entries are not decoded: nothing can be reconstructed there
    trace.manifest = copy.deepcopy(trace.manifest)
    trace.manifest["machine"]["arch"] = "riscv64"
    document = tracekit.replay(trace, ["counter_early_exit"]).document
    assert document["fidelity"] == "counts"
    policy = document["policies"][-1]
    assert not policy["judgeable"]
    assert policy["reason"] == "the trace has no try_to_migrate_one, remove_migration_pte_visit"
    assert "p:kprobes/try_to_migrate_one" in policy["record"]
    assert "perf record" in policy["record"]
    assert not {"ratio", "time_ns", "calls"} & policy.keys()


def test_with_losses_no_call_is_priced(replayed: Callable[..., Any]) -> None:
    document = replayed("7.2-rec-lost").document
    assert document["trace"]["lost"] == {"events": 10227, "records": 62}
    assert document["anomalies"]["call_with_lost_events"] > 0
    assert document["policies"][0]["ratio"] is None
    assert document["policies"][0]["reason"]


def test_with_hidden_probes_recording_more_is_not_advised(replayed: Callable[..., Any]) -> None:
    policy = replayed("demo", fidelity="counts").document["policies"][-1]
    assert "--fidelity counts" in policy["reason"]
    assert policy["record"] is None


def intervals(value: Any) -> Iterator[dict[str, float]]:
    if isinstance(value, dict):
        if value.keys() == {"low", "median", "high"}:
            yield value
        for inner in value.values():
            yield from intervals(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from intervals(inner)


def test_the_numbers_agree_with_each_other(capture: str, replayed: Callable[..., Any]) -> None:
    document = replayed(capture).document
    for interval in intervals(document):
        assert interval["low"] <= interval["median"] <= interval["high"]
        assert all(map(math.isfinite, interval.values()))
    as_traced, upper_bound, *others = document["policies"]
    traced = {op: count["traced"] for op, count in as_traced["operations"].items()}
    assert all(count["traced"] == count["policy"] for count in as_traced["operations"].values())
    assert as_traced["ratio"] in (None, {"low": 1, "median": 1, "high": 1})
    for policy in filter(lambda one: one["judgeable"], (upper_bound, *others)):
        own = {op: count["traced"] for op, count in policy["operations"].items() if count["traced"]}
        assert own == traced, "all policies judge the same operations"
        for op, bound in upper_bound["operations"].items():
            assert bound["policy"] <= policy["operations"][op]["policy"] <= bound["traced"]
        if policy["ratio"]:
            assert policy["ratio"]["median"] >= upper_bound["ratio"]["median"] - 1e-4
        for call in policy["calls"]:
            assert call["priced"] <= call["n"]
            assert (call["ratio"] is None) == (call["reason"] is not None)
            if call["ratio"]:
                time = {key: call["time_ns"][key]["median"] for key in ("traced", "policy", "saving")}
                assert time["traced"] <= call["traced_ns"], "tracing only adds"
                assert time["policy"] / time["traced"] == pytest.approx(call["ratio"]["median"], abs=1e-3)
                assert time["traced"] - time["policy"] == pytest.approx(time["saving"], abs=2)


def test_the_same_trace_gives_the_same_document(replayed: Callable[..., Any], ingested: Callable[[str], Any]) -> None:
    import tracekit as tk  # noqa: PLC0415

    again = tk.replay(ingested("forkmig-zapped"), ("counter_early_exit", "counter_early_exit:counter=posted"))
    assert json.dumps(again.document) == json.dumps(replayed("forkmig-zapped").document)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.update(extra=1),
        lambda d: d.pop("coverage"),
        lambda d: d.update(coverage=1.5),
        lambda d: d["policies"].reverse(),
        lambda d: d["policies"][2].pop("ratio"),
        lambda d: d["policies"][2].update(ratio=0.9),
        lambda d: d["policies"][2]["operations"].update({"folio.copy": {"traced": -1, "policy": 0}}),
        lambda d: d["policies"][2]["calls"][0].pop("reason"),
        lambda d: d["policies"][2].update(judgeable=False),
    ],
)
def test_the_schema_refuses(spoil: Callable[[dict[str, Any]], object], replayed: Callable[..., Any]) -> None:
    document = json.loads(json.dumps(replayed("demo").document))
    spoil(document)
    with pytest.raises(jsonschema.ValidationError):
        check(document)


# --- validate ---


def spec(**changes: Any) -> dict[str, Any]:
    asked = {
        "trace": "demo.perf.data", "policy": "counter_early_exit", "costs": [], "call": "move_pages",
        "measured_ratio": 0.95, "clock": "none", **changes,
    }  # fmt: skip
    return {"config": "demo", "predictions": [asked]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"call": "munmap"}, "no call munmap in the trace"),
        ({"policy": "nope"}, "'nope' is not among the policies: as_traced, batched_copy"),
        ({"trace": "missing.data"}, "cannot be read"),
    ],
)
def test_validate(changes: dict[str, Any], said: str | None, tmp_path: Path, captures: dict[str, Path]) -> None:
    shutil.copyfile(captures["demo"], tmp_path / "demo.perf.data")
    (tmp_path / "spec.json").write_text(json.dumps(spec(**changes)))
    rows = validation.validate([tmp_path])
    document = validation.document(rows)
    check(document, "accuracy")
    row = document["predictions"][0]
    if said is None:
        assert row["error"] == pytest.approx(100 * abs(row["predicted"] - 0.95))
        assert row["covered"] == (row["low"] <= 0.95 <= row["high"])
        assert document["all"]["predicted"] == 1
        assert row["width"] == pytest.approx(100 * (row["high"] - row["low"]))
        assert document["classes"][0]["prices"] == "own"
        assert "   1 of 1 " in validation.text(rows)
        validation.write(rows, tmp_path / "table.json")
        assert json.loads((tmp_path / "table.json").read_text()) == document
    else:
        assert said in row["reason"]
        nothing = {"median_error": None, "worst_error": None, "median_width": None}
        assert document["all"] == {"asked": 1, "predicted": 0, "covered": 0, **nothing}
        assert "1 not predicted:" in validation.text(rows)


def test_the_error_of_a_slowdown_is_relative(tmp_path: Path, captures: dict[str, Path]) -> None:
    shutil.copyfile(captures["demo"], tmp_path / "demo.perf.data")
    (tmp_path / "spec.json").write_text(json.dumps(spec(measured_ratio=2.0)))
    row = validation.validate([tmp_path])[0]
    assert row.predicted is not None
    assert row.error == pytest.approx(100 * (2.0 - row.predicted) / 2.0)


def test_a_clock_that_counts_no_time_is_not_printed_as_time(ingested: Callable[..., Any]) -> None:
    document = inspect.inspect(ingested("forkcow-c4-all"))
    manifest = document["manifest"] | {"clock": {"name": "counter", "unit": "counts", "wall_offset_ns": None}}
    span = manifest["time_range_ns"]
    line = inspect.text(document | {"manifest": manifest}).splitlines()[2]
    assert line == f"clock counter, {span['last'] - span['first']:,} counts"
