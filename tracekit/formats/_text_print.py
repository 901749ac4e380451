"""The ``print fmt`` of an event, read backwards: which literals and which values make up its line.

Source: kernel Documentation/trace/events.rst section 2.2; include/trace/stages/stage3_trace_output.h for what the
arguments look like. What an argument computes and cannot be undone is skipped, never guessed.
"""

import ast
import re
from collections.abc import Callable
from typing import NamedTuple

from tracekit.formats._event_format import EventFormat

_STRINGS = re.compile(r'\s*"((?:[^"\\]|\\.)*)"')
_CONVERSION = re.compile(
    r"%(?P<flags>[-+ #0]*)\d*(?:\.\d+)?(?:hh|h|ll|l|z|j|t|L)?(?P<type>[diuxXcsp%])(?P<more>[sSfF]?)"
)
_TYPE = (
    r"(?:const |unsigned |signed |enum |struct )*(?:long long|long|int|short|char|void|gfp_t|bool|size_t|unsigned|page"
    r"|[us](?:8|16|32|64)|__[us](?:8|16|32|64)|isolate_mode_t|blk_opf_t|fmode_t|pid_t)(?: int)? ?\**"
)
_CAST = re.compile(rf"\(\s*{_TYPE}\s*\)")
_PAIR = re.compile(r'\{\s*(?P<number>[^"{}]*?),\s*"(?P<name>(?:[^"\\]|\\.)*)"\s*\}')
Evaluate = Callable[[], int]
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\"": '"', r"\\": "\\"}


class Piece(NamedTuple):
    """A stretch of an event's text."""

    kind: str  # literal, decimal, hex, pointer, symbol, string, name, flags, truth, skip
    field: str = ""
    literal: bytes = b""
    names: tuple[tuple[str, int], ...] = ()  # of kind name, flags, truth
    exact: bool = True  # False: 0 may stand for something else


def pieces_of(event: EventFormat, print_fmt: str | None = None) -> list[Piece] | None:
    """What a line of ``event`` consists of; None if its print fmt is beyond this module."""
    source = print_fmt or event.print_fmt
    parts = []
    position = 0
    while (found := _STRINGS.match(source, position)) is not None:
        parts.append(found[1])
        position = found.end()
    arguments = _arguments(source[position:])
    pieces: list[Piece] = []
    text = "".join(parts)
    last = 0
    for conversion in _CONVERSION.finditer(text):
        _literal(pieces, text[last : conversion.start()])
        last = conversion.end()
        if conversion["type"] == "%":
            _literal(pieces, "%")
            continue
        if not arguments:
            return None
        pieces.append(_piece(event, conversion, arguments.pop(0)))
    _literal(pieces, text[last:])
    return None if arguments or not parts else _merge_skips(pieces)


def literal(text: str) -> Piece:
    """A piece that is always the same."""
    return Piece("literal", literal=text.encode())


def _literal(pieces: list[Piece], text: str) -> None:
    for escape, char in _ESCAPES.items():
        text = text.replace(escape, char)
    if not text:
        return
    if pieces and pieces[-1].kind == "literal":
        text = pieces.pop().literal.decode() + text
    pieces.append(literal(text))


def _merge_skips(pieces: list[Piece]) -> list[Piece]:
    """Texts without a literal between them cannot be told apart: they become one that is skipped."""
    merged: list[Piece] = []
    for piece in pieces:
        if merged and "literal" not in (piece.kind, merged[-1].kind):
            fields = {merged[-1].field, piece.field} - {""}
            merged[-1] = Piece("skip", fields.pop() if len(fields) == 1 else "")
        else:
            merged.append(piece)
    return merged


def _arguments(text: str) -> list[str]:
    """Cut at the commas outside of brackets and strings."""
    parts = [""]
    depth = 0
    for part in re.findall(r'"(?:[^"\\]|\\.)*"|.', text, re.DOTALL):
        depth += (part in "({[") - (part in ")}]") if len(part) == 1 else 0
        if part == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += part
    return parts[1:]


def _bare(expression: str) -> str:
    """The field or string that the expression is, casts and parentheses aside; "" if it is more than that."""
    text = expression.strip()
    before = ""
    while before != text:
        before = text
        text = _CAST.sub("", text, count=1).strip() if _CAST.match(text) else text
        if text.startswith("(") and _closes(text) == len(text) - 1:
            text = text[1:-1].strip()
    found = re.fullmatch(r"REC->(\w+)|__get_str\((\w+)\)", text)
    return (found[1] or found[2]) if found else ""


def _closes(text: str) -> int:
    depth = 0
    for place, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return place
    return -1


def _piece(event: EventFormat, conversion: re.Match[str], argument: str) -> Piece:  # noqa: PLR0911 - one per conversion
    kind = conversion["type"]
    field = _bare(argument)
    if kind == "s":
        return Piece("string", field) if field else _named(event, argument)
    if kind == "p":
        return Piece("symbol" if conversion["more"] else "pointer" if field else "skip", field)
    if kind == "c":
        return Piece("skip", field)
    number = "hex" if kind in "xX" else "decimal"
    if field:
        return Piece(number, field)
    found = re.fullmatch(r"\s*REC->(\w+) != -1[uUlL]* \? REC->(\w+) : 0\s*", argument)
    if found and found[1] == found[2]:
        return Piece(number, found[1], exact=False)
    # IS_ERR_VALUE(x) ? 0 : x beside IS_ERR_VALUE(x) ? x : 0 (mmap:vm_unmapped_area): one of them is the value
    found = re.search(r"\? (?:0 : (?:\([\w ]+\))?REC->(\w+)|(?:\([\w ]+\))?REC->(\w+) : 0)\s*$", argument)
    if found and "__builtin_expect" in argument:
        return Piece(number, found[1] or found[2], exact=False)
    return Piece(number)


def _named(event: EventFormat, argument: str) -> Piece:
    truth = re.fullmatch(r'\s*\(?REC->(\w+)\)? \? "([^"]*)" : "([^"]*)"\s*', argument)
    if truth:
        is_bool = any(field.name == truth[1] and field.type in {"bool", "_Bool"} for field in event.fields)
        return Piece("truth", truth[1], names=((truth[2], 1), (truth[3], 0))) if is_bool else Piece("skip", truth[1])
    call = re.match(
        r"\s*(?:\(?REC->(?P<test>\w+)\)? \? )?__print_(?P<kind>symbolic|flags)\((?P<shown>[^,]*),", argument
    )
    field = _bare(call["shown"]) if call else ""
    if call is None or not field or call["test"] not in (None, field):
        mentioned = set(re.findall(r"REC->(\w+)", argument))
        return Piece("skip", mentioned.pop() if len(mentioned) == 1 else "")
    names = [(pair["name"], constant(pair["number"])) for pair in _PAIR.finditer(argument)]
    known = [(name, number) for name, number in names if number is not None]
    if call["kind"] == "flags":
        nothing = re.search(r':\s*"([^"]*)"\s*$', argument)
        known.append((nothing[1] if nothing else "", 0))
    return Piece("flags" if call["kind"] == "flags" else "name", field, names=tuple(known))


def constant(expression: str) -> int | None:
    """The value of a C constant expression; None if it is none."""
    text = _CAST.sub("", expression)
    text = re.sub(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]+\b", r"\1", text).strip()
    try:
        return _evaluate(ast.parse(text, mode="eval").body) & ((1 << 64) - 1)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.UnaryOp):
        value = _evaluate(node.operand)
        return ~value if isinstance(node.op, ast.Invert) else -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left), _evaluate(node.right)
        operations: dict[type, Evaluate] = {
            ast.BitOr: lambda: left | right,
            ast.BitAnd: lambda: left & right,
            ast.BitXor: lambda: left ^ right,
            ast.LShift: lambda: left << (right & 63),
            ast.RShift: lambda: left >> (right & 63),
            ast.Add: lambda: left + right,
            ast.Sub: lambda: left - right,
            ast.Mult: lambda: left * right,
        }
        if type(node.op) in operations:
            return operations[type(node.op)]()
    raise ValueError
