"""Text traces are told apart, and from all other text, by their first 128 bytes."""

from pathlib import Path

import pytest

from tracekit import formats
from tracekit.errors import UnknownFormatError

PIPE = b"            bash-142     [001] d....   408.503454: page_fault_user: address=0x5602e1a86428 ip=0x5602be6b54a7\n"
REPORT = b"         forkcow-2932  [000] d..1.   389.280791412: function:             migrate_disable_switch.isra.0\n"
SCRIPT = b"            perf  1565 [001]   308.433172:       tlb:tlb_flush: pages=-1 reason=flush on task switch (0)\n"

TEXTS = {
    "ftrace_text": [
        b"# tracer: nop\n#\n# entries-in-buffer/entries-written: 1092/1092   #P:2\n#\n",
        b"##### CPU 1 buffer started ####\n" + PIPE,
        b"CPU:3 [LOST 57 EVENTS]\n" + PIPE,
        PIPE,
        PIPE.replace(b" d....", b""),
        PIPE.replace(b"     [001]", b"     (    142) [001]"),
        b"  kvm-pit/29757-29767   [003] d..2.   408.503454: sys_clone(clone_flags: 0x1200011, newsp: 0)\n",
        b"    bash-142       0..... 276969us*: sys_clone(clone_flags: 0x1200011, newsp: 0, parent_tidptr: 0)\n",
        b"3555 0 424082459452 type: 680\n3555 0 424082555922 type: 679\n",
        b"            bash-142     [001] d....   408503454123: set_migration_pte: addr=1000, pte=0 order=0\n",
    ],
    "trace_cmd_report": [
        b"cpus=2\n" + REPORT,
        b"version = 7\ncpus=4\n",
        b"CPU:0 [EVENTS DROPPED]\n" + REPORT,
        b"cpus=2\nCPU:0 [212 EVENTS DROPPED]\n",
        REPORT,
        b"inst1:          forkcow-2707  [000] ...1.   368.254641172: set_migration_pte:    addr=4ca000, pte=0\n",
    ],
    "perf_script": [
        SCRIPT,
        b"       perf-exec    1159/1159    [000]   133.493879484:   task:task_rename: pid=1159 oldcomm=a newcomm=b\n",
        b"  308.433172102:   tlb:tlb_flush: pages=-1 reason=flush on task switch (0)\n",
        b" 1565   308.433172:   tlb:tlb_flush: pages=-1\n",
        b"[001]   308.433172:   tlb:tlb_flush: pages=-1\n",
        b"            perf  1565   308.433172:     250000 cycles:  ffffffff81000000 native_write_msr ([k])\n",
        b"            perf  1565   308.433172:     250000 cpu/cycles/: \n\tffffffff81000000 native_write_msr\n",
        b"# ========\n# captured on    : Fri Nov 20 21:24:01 2026\n# header version : 1\n# data offset    : 1\n",
        b":1234  1234 [001]   308.433172:       tlb:tlb_flush: pages=-1\n",
    ],
}

OTHERS = [
    b"",
    b"\n\n\n",
    b"#!/bin/sh\nset -e\nfor f in *; do echo $f; done\n",
    b"# A heading\n\nSome words about tracers: they trace.\n",
    b"# tracer\n",
    b"#include <stdio.h>\nint main(void) { return 0; }\n",
    b"Nov 20 21:24:01 host kernel: [  308.433172] Linux version 7.2.13\n",
    b"[  308.433172] usb 1-1: new high-speed USB device number 2 using xhci_hcd\n",
    b"[    0.000000] Linux version 7.2.13+deb14-cloud-amd64 (gcc) #1 SMP\n",
    b"2026-11-20T21:24:01.123456Z INFO server: started\n",
    b"12.345678: not an event\n",
    b'127.0.0.1 - - [20/Nov/2026:21:24:01 +0000] "GET / HTTP/1.1" 200 12\n',
    b"time,cpu,event\n308.433172,1,sched_switch\n",
    b'{"traceEvents": [{"name": "a", "ts": 308.433172}]}\n',
    b"import re\nfrom pathlib import Path\n\nPATTERN = re.compile('x')\n",
    b"1 2 3\n4 5 6\n",
    b"3555 0 424082459452\n3555 0 424082555922\n",
    b"version = 1\n[section]\n",
    b"PERFILE2" + bytes(120),
    b"\x17\x08\x44tracing7\0" + bytes(100),
    b"\xff\xfe\x00\x01" * 32,
]


def claims(head: bytes) -> set[str]:
    return {reader.NAME for reader in formats.readers() if reader.sniff(head[: formats.HEAD_BYTES])}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in TEXTS.items() for text in texts])
def test_one_reader_claims_it(kind: str, text: bytes) -> None:
    assert claims(text) == {kind}


@pytest.mark.parametrize("text", OTHERS)
def test_none_of_the_text_readers_claims_it(text: bytes) -> None:
    assert not claims(text) & TEXTS.keys()


def test_a_compressed_text_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "report.xz").write_bytes(b"\xfd7zXZ\0" + bytes(100))
    with pytest.raises(UnknownFormatError):
        formats.detect(tmp_path / "report.xz")


def test_no_source_of_ours_is_a_trace() -> None:
    root = Path(__file__).parents[2]
    for path in [*root.glob("tracekit/**/*.py"), *root.glob("*.toml"), *root.glob("*.md"), *root.glob("schemas/*/*/*")]:
        assert claims(path.read_bytes()[:128]) == set(), path
