"""Operations of the marked calls against the counters that patched kernels kept, as traced and under the policy."""

from functools import cache

import pytest
import truth

import tracekit

ASKED = truth.asked("3-zap-rmap", "4-lazyfree-unmap")

pytestmark = pytest.mark.skipif(not ASKED, reason="needs ../shared/truth")


@cache
def document(trace):
    """The summary of a trace under every policy that is asked of it."""
    return tracekit.replay(trace, [one.policy for one in ASKED if one.trace == trace]).document


@pytest.mark.parametrize("one", ASKED, ids=[one.name for one in ASKED])
def test_counts_are_the_kernels_own(one):
    assert truth.differences(one, document(one.trace)) == []


def test_all_of_these_were_counted():
    assert len(ASKED) == 17
