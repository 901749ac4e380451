"""No capture is left out: each is compared with its oracle by one of the tests beside this one.

All of them, and nothing else: python -m pytest tests/formats -k "corpus or variants"
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import oracle
import test_perf_variants
import text_oracle
import trace_cmd_oracle

if not oracle.CAPTURES.is_dir():
    pytest.skip("needs the captures beside the checkout", allow_module_level=True)


def test_every_folder_is_compared_with_its_oracle() -> None:
    folders = {path.parent for path in oracle.CAPTURES.glob("*/*/meta.json")}
    variants = {oracle.CAPTURES / Path(name).parent for name in test_perf_variants.VARIANTS}
    traces = {path.parent for path in oracle.CAPTURES.glob("*/rec.txt-*/*.txt")}
    assert folders == {*oracle.regular_captures(), *trace_cmd_oracle.reported_captures(), *variants, *traces}
    assert {folder for folder in folders if list(folder.glob("oracle.script.txt*"))} == {
        *text_oracle.having("oracle.script.txt")
    }
    assert {folder for folder in folders if list(folder.glob("oracle.report.txt*"))} == {
        *text_oracle.having("oracle.report.txt")
    }
