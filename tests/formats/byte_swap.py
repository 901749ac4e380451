"""A perf.data file of this machine → the same as a machine of the other byte order would have written it.

Plain, record by record, from the format texts in the file; shares nothing with tracekit.
"""

import re
import struct

_FIELD = re.compile(r"field:([^;]*);\s*offset:(\d+);\s*size:(\d+);")
_NUMBERS = {"char": 1, "u8": 1, "__u8": 1, "bool": 1, "short": 2, "u16": 2, "int": 4, "u32": 4, "unsigned": 4, "s32": 4}
_TRAILER = [(1 << 1, "II"), (1 << 2, "Q"), (1 << 6, "Q"), (1 << 9, "Q"), (1 << 7, "II"), (1 << 16, "Q")]
_BODIES = {1: "IIQQQ", 2: "QQ", 3: "II", 4: "IIIIQ", 5: "QQQ", 6: "QQQ", 7: "IIIIQ", 10: "IIQQQIIQQII", 13: "Q",
           64: "", 69: "Q*", 79: "Q*"}  # fmt: skip


def again(kinds: str, data: bytes) -> bytes:
    """Numbers in the other order; what follows them stays as it is."""
    size = struct.calcsize("<" + kinds)
    return struct.pack(">" + kinds, *struct.unpack_from("<" + kinds, data)) + data[size:]


def words(data: bytes) -> bytes:
    return again(f"{len(data) // 8}Q", data)


def attr(data: bytes) -> bytes:
    flags = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data[40:48])
    out = again("IIQQQQ", data[:40]) + flags + again("IIQQQQIiQIHHIIQ"[: 15], data[48:])[: len(data) - 48] \
        if len(data) >= 128 else again("IIQQQQ", data[:40]) + flags + again("IIQ", data[48:])  # fmt: skip
    assert len(out) == len(data)
    return out


class Swapper:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.formats: dict[int, list[tuple[int, int, int, int]]] = {}  # id → (offset, size, width, width of dynamic)
        self.attrs: dict[int, bytes] = {}  # id → attribute
        self.first = b""

    def file(self) -> bytes:
        data = self.data
        size, stride, attrs_at, attrs_size, at, length = struct.unpack_from("<6Q", data, 8)
        flags = struct.unpack_from("<4Q", data, 72)
        bits = [bit for bit in range(256) if flags[bit // 64] >> bit % 64 & 1]
        out = bytearray(data)
        out[:104] = b"2ELIFREP" + again("12Q", data[8:104])
        assert size == 104
        for place in range(attrs_at, attrs_at + attrs_size, stride):
            one = data[place : place + stride - 16]
            ids_at, ids_size = struct.unpack_from("<QQ", data, place + stride - 16)
            out[place : place + stride] = attr(one) + again("QQ", data[place + stride - 16 : place + stride])
            out[ids_at : ids_at + ids_size] = words(data[ids_at : ids_at + ids_size])
            self.first = self.first or one
            for number in struct.unpack_from(f"<{ids_size // 8}Q", data, ids_at):
                self.attrs[number] = one
        table = at + length
        out[table : table + 16 * len(bits)] = words(data[table : table + 16 * len(bits)])
        for place, bit in enumerate(bits):
            begin, count = struct.unpack_from("<QQ", data, table + 16 * place)
            out[begin : begin + count] = self.feature(bit, data[begin : begin + count])
        position = at
        while position < at + length:
            end = position + struct.unpack_from("<H", data, position + 6)[0]
            out[position:end] = self.record(data[position:end])
            position = end
        assert len(out) == len(data)
        return bytes(out)

    # --- features

    def feature(self, bit: int, body: bytes) -> bytes:
        if bit == 1:
            return self.tracing(body)
        if bit in {3, 4, 5, 6, 8, 9}:
            return again("I", body)
        if bit == 11:
            return self.strings(body, "I")
        if bit == 12:
            return self.descriptions(body)
        if bit == 14:
            return self.nodes(body)
        kinds = {7: "II", 10: "Q", 21: "QQ", 23: "Q", 29: "IIQQ"}
        return again(kinds[bit], body) if bit in kinds else bytes(len(body))

    def strings(self, body: bytes, head: str) -> bytes:
        out, position = again(head, body)[: struct.calcsize(head)], struct.calcsize(head)
        for _ in range(struct.unpack_from("<I", body)[0]):
            size = 4 + struct.unpack_from("<I", body, position)[0]
            out += again("I", body[position : position + size])
            position += size
        return out + body[position:]

    def nodes(self, body: bytes) -> bytes:
        out, position = again("I", body)[:4], 4
        for _ in range(struct.unpack_from("<I", body)[0]):
            size = 24 + struct.unpack_from("<I", body, position + 20)[0]
            out += again("IQQI", body[position : position + size])
            position += size
        return out + body[position:]

    def descriptions(self, body: bytes) -> bytes:
        count, size = struct.unpack_from("<II", body)
        out, position = again("II", body)[:8], 8
        for _ in range(count):
            out += attr(body[position : position + size])
            position += size
            ids, length = struct.unpack_from("<II", body, position)
            out += again("II", body[position : position + 8 + length])
            position += 8 + length
            out += words(body[position : position + 8 * ids])
            position += 8 * ids
        return out + body[position:]

    def tracing(self, body: bytes) -> bytes:
        position = body.index(b"\0", 10) + 1
        out = body[:position] + bytes([1, body[position + 1]]) + again("I", body[position + 2 : position + 6])
        position += 6

        def sized(kind: str) -> bytes:
            nonlocal position
            width = struct.calcsize("<" + kind)
            size = struct.unpack_from("<" + kind, body, position)[0]
            whole = body[position : position + width + size]
            position += width + size
            return again(kind, whole)

        def number() -> tuple[int, bytes]:
            nonlocal position
            position += 4
            return struct.unpack_from("<I", body, position - 4)[0], again("I", body[position - 4 : position])

        for name in (b"header_page\0", b"header_event\0"):
            assert body[position:].startswith(name)
            position += len(name)
            out += name + sized("Q")
        count, piece = number()
        out += piece + b"".join(sized("Q") for _ in range(count))
        systems, piece = number()
        out += piece
        for _ in range(systems):
            end = body.index(b"\0", position) + 1
            out += body[position:end]
            position = end
            count, piece = number()
            out += piece
            for _ in range(count):
                begin = position
                out += sized("Q")
                self.learn(body[begin + 8 : position].decode())
        out += sized("I") + sized("I")
        return out + (sized("Q") if position < len(body) else b"")

    def learn(self, text: str) -> None:
        fields = []
        for declared, offset, size in _FIELD.findall(text.split("print fmt:", maxsplit=1)[0]):
            kind = " ".join(declared.split()[:-1])
            width, inner = int(size), 0
            if "__data_loc" in declared or "__rel_loc" in declared:
                width, inner = 4, self.width(kind.replace("__data_loc", "").replace("__rel_loc", "").replace("[]", ""))
            elif "[" in declared:
                width = 8 if "*" in declared else self.width(re.sub(r"\w+\[.*", "", declared))
            fields.append((int(offset), int(size), width if width in {2, 4, 8} else 1, inner))
        self.formats[int(re.search(r"^ID: (\d+)", text, re.MULTILINE)[1])] = fields

    @staticmethod
    def width(kind: str) -> int:
        words = [word for word in kind.split() if word not in {"const", "signed"}]
        return 8 if words[0] == "long" or words[-1] == "long" else _NUMBERS.get(words[-1], 8)

    # --- records

    def record(self, data: bytes) -> bytes:
        kind = struct.unpack_from("<I", data)[0]
        head, body = again("IHH", data[:8]), data[8:]
        if kind == 9:
            return head + self.sample(body)
        if kind >= 64:
            return head + words(body)
        one = self.attrs.get(struct.unpack_from("<Q", body, len(body) - 8)[0], self.first)
        sample_type = struct.unpack_from("<Q", one, 24)[0]
        kinds = "".join(kinds for bit, kinds in _TRAILER if sample_type & bit)
        cut = len(body) - struct.calcsize("<" + kinds)
        return head + again(_BODIES.get(kind, ""), body[:cut]) + again(kinds, body[cut:])

    def sample(self, body: bytes) -> bytes:
        one = self.attrs.get(struct.unpack_from("<Q", body)[0], self.first)
        sample_type = struct.unpack_from("<Q", one, 24)[0]
        fixed = [
            (1 << 16, "Q"),
            (1, "Q"),
            (2, "II"),
            (4, "Q"),
            (8, "Q"),
            (64, "Q"),
            (512, "Q"),
            (128, "II"),
            (256, "Q"),
        ]
        kinds = "".join(kinds for bit, kinds in fixed if sample_type & bit)
        place = struct.calcsize("<" + kinds)
        out = again(kinds, body[:place])
        assert not sample_type & 16, "READ is not swapped here"
        if sample_type & 32:
            count = 1 + struct.unpack_from("<Q", body, place)[0]
            out += words(body[place : place + 8 * count])
            place += 8 * count
        if sample_type & 1024:
            size = struct.unpack_from("<I", body, place)[0]
            out += again("I", body[place : place + 4]) + self.raw(body[place + 4 : place + 4 + size])
            place += 4 + size
        return out + words(body[place:])

    def raw(self, data: bytes) -> bytes:
        out = bytearray(data)
        for offset, size, width, inner in self.formats[struct.unpack_from("<H", data)[0]]:
            for place in range(offset, offset + size, width):
                out[place : place + width] = data[place : place + width][::-1]
            if inner > 1:
                begin, count = (half for half in struct.unpack_from("<HH", data, offset))
                for place in range(begin, begin + count, inner):
                    out[place : place + inner] = data[place : place + inner][::-1]
        return bytes(out)
