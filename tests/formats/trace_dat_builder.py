"""Makes small trace.dat files of either version, from trace-cmd.dat.v6.5.txt and trace-cmd.dat.v7.5.txt alone."""

import struct
import zlib
from typing import NamedTuple

import pyarrow as pa
import ring_buffer_naive as naive

COMMON = """format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

"""


def _format(name, number, *fields, print_fmt='"x"'):
    lines = "".join(f"\tfield:{text};\toffset:{at};\tsize:{size};\tsigned:{sign};\n" for text, at, size, sign in fields)
    return f"name: {name}\nID: {number}\n{COMMON}{lines}\nprint fmt: {print_fmt}\n"


FTRACE = [
    _format("function", 1, ("unsigned long ip", 8, 8, 0), ("unsigned long parent_ip", 16, 8, 0)),
    _format("kernel_stack", 4, ("int size", 8, 4, 1), ("unsigned long caller[8]", 16, 64, 0)),
    _format("print", 5, ("unsigned long ip", 8, 8, 0), ("char buf[]", 16, 0, 0)),
    _format("bprint", 6, ("unsigned long ip", 8, 8, 0), ("const char * fmt", 16, 8, 0), ("u32 buf[]", 24, 0, 0)),
    _format("funcgraph_entry", 11, ("unsigned long func", 8, 8, 0), ("int depth", 16, 4, 1)),
    _format(
        "funcgraph_exit", 10, ("unsigned long func", 8, 8, 0), ("int depth", 16, 4, 1),
        ("unsigned int overrun", 20, 4, 0), ("unsigned long long calltime", 24, 8, 0),
        ("unsigned long long rettime", 32, 8, 0),
    ),
    _format("bputs", 15, ("unsigned long ip", 8, 8, 0), ("const char * str", 16, 8, 0)),
]  # fmt: skip
EVENTS = {
    "test": [
        _format(
            "value", 100, ("u32 small", 8, 4, 0), ("s64 large", 16, 8, 1), ("u16 many[3]", 24, 6, 0),
            ("__data_loc char[] text", 32, 4, 0),
            print_fmt='"%s", __print_symbolic(REC->small, {1, "ONE"}, {2, "TWO"})',
        ),
        _format("same_name", 101, ("int a", 8, 4, 1)),
    ],
    "other": [_format("same_name", 102, ("int a", 8, 4, 1))],
}  # fmt: skip
KALLSYMS = b"ffffffff81000000 T first_function\nffffffff81001000 t second.isra.0\nffffffff81001000 t alias\n"
PRINTK = b'0xffffffff82000000 : "number %d of %s\\n"\n0xffffffff82000100 : "only text\\n"\n'
CMDLINES = b"7 worker\n8 a name-8 [x]\n9 <...>\n"


class Buffer(NamedTuple):
    """One ring buffer: pages by CPU."""

    pages: dict[int, bytes]
    name: str = ""
    clock: str = "local"


class File(NamedTuple):
    """What to write."""

    buffers: list[Buffer]
    version: int = 7
    order: str = "<"
    long_bytes: int = 8
    page_bytes: int = 4096
    codec: str = "none"
    options: tuple[tuple[int, bytes], ...] | list[tuple[int, bytes]] = ()
    clock: str = "[local] mono"
    chunk_pages: int = 2


def _compress(codec, data):
    if codec == "zlib":
        return zlib.compress(data)
    return pa.Codec("zstd").compress(data, asbytes=True)


def build(file):
    """The bytes of the file."""
    return _build6(file) if file.version == 6 else _build7(file)


def _pack(file, kinds, *values):
    return struct.pack(file.order + kinds, *values)


def _start(file):
    head = b"\x17\x08\x44tracing" + str(file.version).encode() + b"\0"
    return head + bytes([file.order == ">", file.long_bytes]) + _pack(file, "I", file.page_bytes)


def _parts(file):
    data = file.page_bytes - 8 - file.long_bytes
    page = (
        "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
        f"\tfield: local_t commit;\toffset:8;\tsize:{file.long_bytes};\tsigned:1;\n"
        "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
        f"\tfield: char data;\toffset:{8 + file.long_bytes};\tsize:{data};\tsigned:1;\n"
    ).encode()
    event = b"# compressed entry header\n"
    headers = b"header_page\0" + _pack(file, "Q", len(page)) + page
    headers += b"header_event\0" + _pack(file, "Q", len(event)) + event
    ftrace = _pack(file, "I", len(FTRACE)) + b"".join(_pack(file, "Q", len(text)) + text.encode() for text in FTRACE)
    events = _pack(file, "I", len(EVENTS))
    for system, texts in EVENTS.items():
        events += system.encode() + b"\0" + _pack(file, "I", len(texts))
        events += b"".join(_pack(file, "Q", len(text)) + text.encode() for text in texts)
    return [
        (16, headers), (17, ftrace), (18, events), (19, _pack(file, "I", len(KALLSYMS)) + KALLSYMS),
        (20, _pack(file, "I", len(PRINTK)) + PRINTK), (21, _pack(file, "Q", len(CMDLINES)) + CMDLINES),
    ]  # fmt: skip


def _options(file, options, following=None):
    body = b"".join(_pack(file, "HI", number, len(data)) + data for number, data in options)
    return body + (_pack(file, "H", 0) if following is None else _pack(file, "HIQ", 0, 8, following))


def _build6(file):
    out = _start(file) + b"".join(data for _, data in _parts(file))
    cpus = 1 + max(cpu for buffer in file.buffers for cpu in buffer.pages)
    top, *instances = file.buffers
    options = [*file.options, (4, file.clock.encode() + b"\0"), (8, _pack(file, "I", cpus))]
    size = len(out) + 4 + 20
    size += len(_options(file, [*options, *((3, bytes(8) + i.name.encode() + b"\0") for i in instances)]))
    tables = size + 16 * cpus
    named = []
    for instance in instances:
        named.append((3, _pack(file, "Q", tables) + instance.name.encode() + b"\0"))
        tables += 10 + 16 * cpus
    position = -(-tables // file.page_bytes) * file.page_bytes
    table = {}
    body = b""
    for buffer in file.buffers:
        table[buffer.name] = b""
        for cpu in range(cpus):
            data = buffer.pages.get(cpu, b"")
            table[buffer.name] += _pack(file, "QQ", position + len(body), len(data))
            body += data
    out += _pack(file, "I", cpus) + b"options  \0" + _options(file, [*options, *named]) + b"flyrecord\0"
    assert len(out) == size
    out += table[top.name] + b"".join(b"flyrecord\0" + table[instance.name] for instance in instances)
    return out.ljust(position, b"\0") + body


def _section(file, number, data, *, packed):
    if packed:
        squeezed = _compress(file.codec, data)
        data = _pack(file, "II", len(squeezed), len(data)) + squeezed
    return _pack(file, "HHIQ", number, int(packed), 0, len(data)) + data


def _build7(file):
    packed = file.codec != "none"
    out = _start(file) + file.codec.encode() + b"\0" + (b"1.0" if packed else b"") + b"\0"
    first_at = len(out)
    out += bytes(8)
    places = []
    for number, data in _parts(file):
        places.append((number, _pack(file, "Q", len(out))))
        out += _section(file, number, data, packed=packed)
    first = len(out)
    options = [*places, *file.options, (4, file.clock.encode() + b"\0")]
    length = len(_options(file, options, 0))
    following_at = first + 16 + length - 8
    out += _section(file, 0, _options(file, options, 0), packed=False)
    for buffer in file.buffers:
        out, option = _flyrecord(file, out, buffer, packed)
        here = len(out)
        out += _section(file, 0, _options(file, [option], 0), packed=False)
        out = out[:following_at] + _pack(file, "Q", here) + out[following_at + 8 :]
        following_at = len(out) - 8
    return out[:first_at] + _pack(file, "Q", first) + out[first_at + 8 :]


def _flyrecord(file, out, buffer, packed):
    start = len(out)
    out += bytes(16)
    rows = b""
    for cpu, pages in buffer.pages.items():
        out = out.ljust(-(-len(out) // file.page_bytes) * file.page_bytes, b"\0")
        data, uncounted = pages, 0
        if packed:
            size = file.chunk_pages * file.page_bytes
            chunks = [pages[at : at + size] for at in range(0, len(pages), size)]
            data, uncounted = _pack(file, "I", len(chunks)), 4
            for chunk in chunks:
                squeezed = _compress(file.codec, chunk)
                data += _pack(file, "II", len(squeezed), len(chunk)) + squeezed
        rows += _pack(file, "IQQ", cpu, len(out), len(data) - uncounted)
        out += data
    head = _pack(file, "HHIQ", 3, int(packed), 0, len(out) - start - 16)
    option = _pack(file, "Q", start) + buffer.name.encode() + b"\0" + buffer.clock.encode() + b"\0"
    option += _pack(file, "II", file.page_bytes, len(buffer.pages)) + rows
    return out[:start] + head + out[start + 16 :], (3, option)


class Writer:
    """Packs payloads in the byte order of a file."""

    def __init__(self, order="<", long_bytes=8, page_bytes=4096):
        self.layout = naive.Layout(page_bytes, long_bytes, order)

    def _event(self, number, tid, kinds, *values, tail=b"", flags=0, preempt=0):
        body = struct.pack(self.layout.order + "HBBi" + kinds, number, flags, preempt, tid, *values) + tail
        return body.ljust(-(-len(body) // 4) * 4, b"\0")

    def value(self, tid, small, large, text="text"):
        encoded = text.encode() + b"\0"
        return self._event(100, tid, "I4xq3H2xI", small, large, 1, 2, 3, len(encoded) << 16 | 36, tail=encoded)

    def same_name(self, tid, a, number=101):
        return self._event(number, tid, "i", a)

    def mark(self, tid, text):
        return self._event(5, tid, "Q", 0xFFFFFFFF81000010, tail=text.encode() + b"\n\0")

    def function(self, tid, ip, parent_ip):
        return self._event(1, tid, "QQ", ip, parent_ip)

    def stack(self, tid, *ips):
        return self._event(4, tid, f"i4x{len(ips)}Q", len(ips), *ips)

    def bprint(self, tid, pattern, data):
        return self._event(6, tid, "QQ", 0xFFFFFFFF81000010, pattern, tail=data)

    def bputs(self, tid, pattern):
        return self._event(15, tid, "QQ", 0xFFFFFFFF81000010, pattern)

    def entry(self, tid, func, depth):
        return self._event(11, tid, "Qi", func, depth)

    def exit(self, tid, func, depth, calltime, rettime, overrun=0):  # noqa: PLR0917
        return self._event(10, tid, "QiIQQ", func, depth, overrun, calltime, rettime)

    def page(self, stamp, *items, missed=None):
        """A page of ``items``: (delta, payload) or records of ring_buffer_naive."""
        records = [naive.Data(*item) if type(item) is tuple else item for item in items]
        return naive.page(self.layout, stamp, records, missed)
