"""What the traced kernel has of a policy: from its trace, its release or the user, and that it changes nothing."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tracekit as tk
from tracekit import policies, registry
from tracekit.errors import UsageError

CAPTURES = Path(__file__).resolve().parents[2] / "shared" / "captures"
Run = Callable[..., subprocess.CompletedProcess[str]]


def own(policy: str) -> list[str]:
    """The specs of every variant of a policy."""
    described = policies.describe(policy)["params"]
    return [f"{policy}:{key}={choice}" for key, one in described.items() for choice in one["choices"]] or [policy]


ABLE = [
    name
    for name in registry.names("tracekit.policies")
    if hasattr(registry.load("tracekit.policies", name).POLICY, "variant")
]


@pytest.mark.parametrize("name", ABLE)
def test_what_the_kernel_has_changes_nothing(name: str, ingested: Callable[[str], Any]) -> None:
    for spec in own(name):
        variant = policies.parse(spec)[1].variant  # type: ignore[attr-defined]
        document = tk.replay(ingested("demo"), [spec], kernel_has={name: variant}).document
        policy = document["policies"][-1]
        assert document["trace"]["kernel_has"][name] == {"variant": variant, "source": "given", "why": "as asked for"}
        if policy["judgeable"]:
            assert policy["kernel_has"]
            assert all(count["traced"] == count["policy"] for count in policy["operations"].values())
            assert policy["ratio"] in (None, {"low": 1.0, "median": 1.0, "high": 1.0})


def test_what_it_spared_cannot_be_put_back(ingested: Callable[[str], Any]) -> None:
    document = tk.replay(
        ingested("demo"), ["counter_early_exit:counter=posted"], kernel_has={"counter_early_exit": "exact"}
    ).document
    policy = document["policies"][-1]
    assert not policy["judgeable"]
    assert "the traced kernel has counter_early_exit=exact" in policy["reason"]
    assert policy["record"] is None


def test_a_kernel_without_it_is_judged_as_ever(ingested: Callable[[str], Any], replayed: Callable[..., Any]) -> None:
    said = tk.replay(ingested("demo"), ["counter_early_exit"], kernel_has={"counter_early_exit": "none"}).document
    unsaid = replayed("demo", "counter_early_exit").document
    assert said["policies"] == unsaid["policies"]
    assert unsaid["trace"]["kernel_has"]["counter_early_exit"]["source"] == "release"


@pytest.mark.parametrize(
    ("has", "words"),
    [
        ({"upper_bound": "x"}, "no kernel has upper_bound"),
        ({"counter_early_exit": "x"}, "counter_early_exit is one of exact, none, posted"),
        ({"nope": "x"}, "'nope' is not among the policies"),
    ],
)
def test_what_no_kernel_has_is_refused(has: dict[str, str], words: str, ingested: Callable[[str], Any]) -> None:
    with pytest.raises(UsageError, match=words):
        tk.replay(ingested("demo"), [], kernel_has=has)


def test_on_the_command_line(tracekit: Run, captures: dict[str, Path]) -> None:
    args = ["replay", captures["demo"], "--policy", "counter_early_exit", "--kernel-has", "counter_early_exit=exact"]
    ran = tracekit(*args)
    assert ran.returncode == 0
    assert "as traced: the kernel has it" in ran.stdout
    assert "exact (given: as asked for)" in ran.stdout
    document = json.loads(tracekit(*args, "--json").stdout)
    assert document["policies"][-1]["kernel_has"] is True
    for wrong in ("counter_early_exit", "=exact", "counter_early_exit="):
        assert "say NAME=VARIANT" in tracekit(*args[:-1], wrong).stderr
    twice = tracekit(*args, "--kernel-has", "counter_early_exit=none")
    assert twice.returncode == 1
    assert "counter_early_exit=exact was said, too" in twice.stderr


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="the shared captures are not here")
def test_the_trace_goes_before_the_release_and_the_user_before_both(tmp_path: Path) -> None:
    folder = CAPTURES / "7.2" / "lazyfree64-full.tc"
    trace = tk.ingest(next(folder.glob("*.dat")), tmp_path / "t.tracekit")
    found = tk.replay(trace, ["batched_unmap"]).document
    assert found["trace"]["kernel_has"]["batched_unmap"]["source"] == "trace"
    assert found["trace"]["kernel_has"]["batched_unmap"]["variant"] == "partial"
    told = tk.replay(trace, ["batched_unmap"], kernel_has={"batched_unmap": "page"}).document
    assert told["trace"]["kernel_has"]["batched_unmap"]["source"] == "given"
