"""What the kernels of ../shared/truth counted themselves, in the words of the operations table."""

import json
from pathlib import Path
from typing import NamedTuple

SHARED = Path(__file__).resolve().parents[2] / "shared" / "truth"

# The kernel's own counter → the operations that it counts. A zap step is one rmap removal, and so is a step of
# try_to_unmap_one; *_walk and rmp_early count what is no operation, zap_call is zap_rmap where no PMD is zapped.
OPERATIONS = {
    "ttm_visit": "try_to_migrate.vma_visit",
    "rmp_visit": "remove_migration_ptes.vma_visit",
    "ttm_pte": "migration_entry.set",
    "rmp_pte": "migration_entry.restore",
    "zap_call": "rmap.remove",
    "zap_rmap": "rmap.remove",
    "zap_pte": "rmap.remove_pages",
    "ttu_loop": "rmap.remove",
    "ttu_pte": "rmap.remove_pages",
    "dsplit": "deferred_split.enqueue",
}


class Asked(NamedTuple):
    """One prediction, with what the kernel counted: operation → per call, as traced and under the policy."""

    name: str
    trace: Path
    policy: str
    call: str
    traced: dict
    under: dict


def asked(*families):
    """Every prediction of ``families`` (3-zap-rmap, …) whose call was counted; costs do not change what is counted."""
    found = {}
    for file in sorted(path for family in families for path in SHARED.glob(f"{family}/*/spec.json")):
        for one in json.loads(file.read_text())["predictions"]:
            counted = one["operations_per_call"]
            if counted is None:
                continue
            name = f"{file.parent.name}, {one['trace']}, {one['policy']}"
            sides = (_operations(file, counted[side]) for side in ("traced", "policy"))
            found[name] = Asked(name, file.parent / one["trace"], one["policy"], one["call"], *sides)
    return list(found.values())


def _operations(spec, counted):
    """The counters of one call as operations; one that is 0 is left out.

    The specs of 4-lazyfree-unmap leave dsplit out, which truth.json has of the same call.
    """
    results = json.loads((spec.parent / "truth.json").read_text()).get("results", {}).values()
    calls = [one for result in results for one in result.get("counters_one_call", {}).values()]
    same = [call for call in calls if all(call.get(name) == n for name, n in counted.items())]
    queued = next((call["dsplit"] for call in same if "dsplit" in call and "ttu_loop" in counted), 0)
    every = {**counted, **({"dsplit": queued} if queued else {})}
    return {OPERATIONS[name]: n for name, n in every.items() if name in OPERATIONS}


def differences(one, document):
    """(operation, side, the kernel's count, ours) where they differ, over all such calls of the trace."""
    policy = next(policy for policy in document["policies"] if policy["spec"] == one.policy)
    call = next((call for call in policy.get("calls", ()) if call["call"] == one.call), None)
    if call is None:
        return [(policy.get("reason"), "", 0, 0)]
    found = []
    for side, expected in (("traced", one.traced), ("policy", one.under)):
        own = {op: both[side] for op, both in call["operations"].items() if op in OPERATIONS.values()}
        names = sorted(expected.keys() | own.keys())
        both = [(op, side, expected.get(op, 0) * call["n"], own.get(op, 0)) for op in names]
        found += [row for row in both if row[2] != row[3]]
    return found
