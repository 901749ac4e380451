"""What --policy may say: parameters and their types, sweeps, combinations, a user's own file and the template."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import polars as pl
import pytest

import tracekit as tk
from tracekit import policies, registry
from tracekit.errors import UsageError
from tracekit.machine.operations import SCHEMA
from tracekit.policies import Judgement, _combination, _parameters

VISIT = "remove_migration_ptes.vma_visit"
MINE = """\
from dataclasses import dataclass
from typing import Annotated, Literal
import numpy as np
from tracekit.policies import Judgement
from tracekit.policies._parameters import Range

@dataclass(frozen=True)
class Mine:
    '''All as it is.'''
    threads: Annotated[int, Range(1, 64)] = 4
    setup_ns: Annotated[float, Range(0)] | None = None
    fast: bool = True
    engine: Literal["cpu", "dma"] = "cpu"
    file: str = "none"
    needs = ()
    touches = ("folio.copy",)

    def judge(self, ops):
        return Judgement(np.ones(len(ops), dtype=np.int64))

POLICY = Mine
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def specs(text: str) -> list[str]:
    return [chosen.spec for chosen in policies.expand(text)]


def test_values_have_the_type_of_their_field(mine: Path) -> None:
    (one,) = policies.expand(f"{mine}:threads=8,setup_ns=1e+3,fast=no,engine=dma,file=a b.toml")
    assert one.params == {"threads": 8, "setup_ns": 1000.0, "fast": False, "engine": "dma", "file": "a b.toml"}
    assert type(one.params["threads"]) is int
    assert one.name == "mine"
    (default,) = policies.expand(str(mine))
    assert default.params == {"threads": 4, "setup_ns": None, "fast": True, "engine": "cpu", "file": "none"}


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ("threads=0", "threads is a whole number, at least 1, at most 64, not '0'"),
        ("threads=65", "at most 64"),
        ("threads=2.5", "a whole number"),
        ("threads=", "not ''"),
        ("setup_ns=-1", "setup_ns is a number, at least 0, not '-1'"),
        ("setup_ns=nan", "not 'nan'"),
        ("fast=maybe", "fast is one of true, false, not 'maybe'"),
        ("file=", "file has no value"),
        ("colour=red", "threads=1…64; setup_ns=0…; fast=true|false; engine=cpu|dma; file=STR"),
        ("4", "'4' is not a parameter"),
        ("threads=1,engine=dma,threads=2", "threads is given twice"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(params: str, words: str, mine: Path) -> None:
    with pytest.raises(UsageError) as error:
        policies.expand(f"{mine}:{params}")
    assert words in str(error.value)


def test_a_list_is_a_sweep_and_a_piece_without_a_key_goes_on_with_the_list(mine: Path) -> None:
    assert specs(f"{mine}:threads=1,2,4,engine=dma") == [f"{mine}:threads={n},engine=dma" for n in (1, 2, 4)]
    assert specs(f"{mine}:threads=1,2,engine=cpu,dma") == [
        f"{mine}:threads={n},engine={engine}" for n in (1, 2) for engine in ("cpu", "dma")
    ]


def test_a_sweep_in_a_combination_is_swept(mine: Path) -> None:
    found = policies.expand(f"counter_early_exit:counter=exact,posted+{mine}:threads=1,2,setup_ns=1e+3")
    assert [one.spec for one in found] == [
        f"counter_early_exit:counter={counter}+{mine}:threads={n},setup_ns=1e+3"
        for counter in ("exact", "posted")
        for n in (1, 2)
    ]
    assert found[0].name == "counter_early_exit+mine"
    assert found[3].params["counter_early_exit.counter"] == "posted"
    assert found[3].params["mine.threads"] == 2


def test_a_path_may_have_plus_signs_and_colons(tmp_path: Path) -> None:
    folder = tmp_path / "c++:a+b"
    folder.mkdir()
    (folder / "mine.py").write_text(MINE)
    (one,) = policies.expand(f"{folder}/mine.py:threads=2+counter_early_exit")
    assert one.name == "mine+counter_early_exit"
    assert one.params["mine.threads"] == 2


def test_policies_that_change_the_same_operation_are_not_combined() -> None:
    with pytest.raises(UsageError, match=f"counter_early_exit and upper_bound cannot be combined: both .* {VISIT}"):
        policies.expand("counter_early_exit+upper_bound")
    with pytest.raises(UsageError, match="as_traced cannot be combined"):
        policies.expand("as_traced+counter_early_exit")


@dataclass(frozen=True)
class Part:
    """Spares one operation and adds one."""

    spares: str = VISIT
    own: str = "x.y"
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def touches(self) -> tuple[str, ...]:
        return (self.spares,)

    def judge(self, ops: pl.DataFrame) -> Judgement:
        mine = (ops["op"] == self.spares).to_numpy()
        own = {self.own: mine.astype(np.int64)}
        return Judgement(1 - mine.astype(np.int64), own, mine, {"a": 1}, {"b": 2}, {self.own: 3})


def test_a_combination_spares_adds_and_harms_what_its_parts_do() -> None:
    names = [VISIT, "folio.copy", "migration_entry.set"]
    ops = pl.DataFrame({"op": names}).with_columns(
        pl.lit(None, kind).alias(name) for name, kind in SCHEMA.items() if name != "op"
    )
    both = _combination.combine([("a", Part()), ("b", Part("folio.copy"))]).judge(ops)
    assert both.executed.tolist() == [0, 0, 1]
    assert both.added["x.y"].tolist() == [1, 1, 0]
    assert both.harmed is not None
    assert both.harmed.tolist() == [True, True, False]
    assert (both.unsafe, both.losses, both.open) == ({"a": 2}, {"b": 4}, {"x.y": 6})


def test_a_field_of_another_type_is_no_parameter() -> None:
    @dataclass(frozen=True)
    class Wrong:
        names: tuple[str, ...] = ()

    with pytest.raises(UsageError, match="a parameter is a Literal"):
        _parameters.parameters(Wrong)

    @dataclass(frozen=True)
    class Right:
        n: Annotated[int, _parameters.Range(0)] | None = None
        word: Literal["a", "b"] = "b"

    assert [one.usage for one in _parameters.parameters(Right).values()] == ["n=0…", "word=a|b"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("import numpy as np", "import numpy as np\ndef (", ":4: "),
        ("import numpy as np", "import numpy as np\n1 / 0", ":4: ZeroDivisionError"),
        ("POLICY = Mine", "", "has no class POLICY"),
        ("(frozen=True)", "", "is no @dataclass(frozen=True)"),
        ("def judge", "def judged", "has no judge(self, ops)"),
        ("needs = ()", "", "Mine.needs is no tuple of names"),
        ('touches = ("folio.copy",)', 'touches = "folio.copy"', "Mine.touches is no tuple of names"),
        ("fast: bool = True", "fast: bool", "default"),
        ("fast: bool = True", "fast: list = None", "Mine.fast: a parameter is a Literal"),
    ],
)
def test_a_file_that_is_no_policy_is_refused_with_its_place(old: str, new: str, words: str, mine: Path) -> None:
    assert old in MINE
    mine.write_text(MINE.replace(old, new))
    with pytest.raises(UsageError) as error:
        policies.expand(str(mine))
    assert str(error.value).startswith(str(mine))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1 / 0", ":19: judge: ZeroDivisionError"),
        ("return None", "judge returned NoneType, not a Judgement"),
        ("return Judgement(np.ones(3, dtype=np.int64))", "executed is int64[3], not int64["),
        ("return Judgement(np.ones(len(ops)))", "executed is float64["),
        ("return Judgement(-np.ones(len(ops), dtype=np.int64))", "executed has a count below 0"),
    ],
)
def test_a_judgement_that_fails_says_where(body: str, words: str, mine: Path, ingested: Callable[[str], Any]) -> None:
    mine.write_text(MINE.replace("return Judgement(np.ones(len(ops), dtype=np.int64))", body))
    with pytest.raises(UsageError) as error:
        tk.replay(ingested("demo"), [str(mine)])
    assert str(error.value).startswith(str(mine))
    assert words in str(error.value)


def test_the_template_works(
    tracekit: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, captures: dict[str, Path]
) -> None:
    printed = tracekit("policies", "--template")
    assert printed.returncode == 0
    (tmp_path / "mine.py").write_text(printed.stdout)
    spec = f"{tmp_path / 'mine.py'}:after=1,2"
    ran = tracekit("replay", captures["demo"], "--policy", spec, "--json")
    assert ran.returncode == 0, ran.stderr
    import json  # noqa: PLC0415

    made = [one["operations"][VISIT] for one in json.loads(ran.stdout)["policies"][2:]]
    # 16 folios, tree of 17 VMAs, the first mapped
    assert made == [{"traced": 272, "policy": 16}, {"traced": 272, "policy": 32}]


def test_one_replay_and_a_table_of_all(ingested: Callable[[str], Any]) -> None:
    names = registry.names("tracekit.policies")
    document = tk.replay(ingested("demo"), [*names, "counter_early_exit:counter=exact,posted"]).document
    found = [policy["spec"] for policy in document["policies"]]
    assert found[:2] == ["as_traced", "upper_bound"]
    assert sorted(set(found)) == sorted(found), "each once"
    assert set(names) | {"counter_early_exit:counter=exact", "counter_early_exit:counter=posted"} == set(found)
