"""The ``print fmt`` of an event → names of the values of one field.

Understands what stands around ``__print_symbolic`` and ``__print_flags`` in the kernel's own formats: C constant
expressions, casts, and ``?:`` over exactly one field. What it does not understand gets no names.

Source: lib/traceevent event-parse.c print_str_arg() (TEP_PRINT_FLAGS, TEP_PRINT_SYMBOL): what perf script prints.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

_TOKEN = re.compile(
    r"\s*(?:(?P<string>\"(?:[^\"\\]|\\.)*\")|(?P<number>0[xX][0-9a-fA-F]+|\d+)[uUlL]*|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<op>->|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^~!<>?:(){},\[\].]))"
)
_ESCAPE = re.compile(r"\\(.)")
_MASK = (1 << 64) - 1
_TYPE_WORDS = frozenset(
    [
        "unsigned",
        "signed",
        "long",
        "int",
        "short",
        "char",
        "const",
        "u8",
        "u16",
        "u32",
        "u64",
        "s8",
        "s16",
        "s32",
        "s64",
        "__u8",
        "__u16",
        "__u32",
        "__u64",
        "gfp_t",
        "bool",
        "size_t",
        "__s32",
        "__s64",
        "isolate_mode_t",
        "blk_opf_t",
        "fmode_t",
        "pid_t",
        "enum",
        "struct",
        "union",
        "void",
        "uintptr_t",
        "vm_flags_t",
    ]
)
_BINARY = ("||", "&&", "|", "^", "&", "== !=", "< > <= >=", "<< >>", "+ -", "* / %")
_MAX_DEPTH = 60

Value = int | str
Evaluate = Callable[[int], Value]


class _NotUnderstoodError(Exception):
    pass


class Namer(NamedTuple):
    """How the values of one field are printed."""

    field: str
    name: Callable[[int], str]  # of one value, sign-extended


def namers(print_fmt: str) -> list[Namer]:
    """One Namer for each field that ``print_fmt`` prints by name and this module understands."""
    found: dict[str, Namer] = {}
    if "__print_" not in print_fmt:  # nine in ten: all system calls
        return []
    try:
        arguments = _split(_tokens(print_fmt))
    except _NotUnderstoodError:
        return []
    for tokens in arguments[1:]:
        if not any(text in {"__print_symbolic", "__print_flags"} for _, text in tokens):
            continue
        parser = _Parser(tokens)
        try:
            evaluate = parser.whole()
        except (_NotUnderstoodError, RecursionError):
            continue
        if len(parser.fields) == 1:
            field = next(iter(parser.fields))
            found.setdefault(field, Namer(field, _printed(evaluate)))
    return list(found.values())


def _printed(evaluate: Evaluate) -> Callable[[int], str]:
    def name(value: int) -> str:
        try:
            result = evaluate(value & _MASK)
        except _NotUnderstoodError:  # a branch that adds a string to a number
            result = value & _MASK
        return result if isinstance(result, str) else hex(result)

    return name


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            raise _NotUnderstoodError
        tokens.append((found.lastgroup, found[found.lastgroup]))
        position = found.end()
    return tokens


def _split(tokens: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Cut at the commas outside of all brackets."""
    parts: list[list[tuple[str, str]]] = [[]]
    depth = 0
    for kind, text in tokens:
        if kind == "op":
            depth += text in "({["
            depth -= text in ")}]"
            if text == "," and depth == 0:
                parts.append([])
                continue
        parts[-1].append((kind, text))
    return parts


class _Parser:
    """Recursive descent over one argument; builds closures from the field's value to what is printed."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.fields: set[str] = set()

    def whole(self) -> Evaluate:
        result = self.ternary()
        if self.position != len(self.tokens):
            raise _NotUnderstoodError
        return result

    def peek(self, ahead: int = 0) -> str:
        place = self.position + ahead
        return self.tokens[place][1] if place < len(self.tokens) else ""

    def take(self, expected: str = "") -> tuple[str, str]:
        if self.position >= len(self.tokens) or (expected and self.peek() != expected):
            raise _NotUnderstoodError
        self.position += 1
        return self.tokens[self.position - 1]

    def ternary(self) -> Evaluate:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _NotUnderstoodError
        condition = self.binary(0)
        if self.peek() == "?":
            self.take()
            yes = self.ternary()
            self.take(":")
            no = self.ternary()
            self.depth -= 1
            return lambda value: yes(value) if condition(value) else no(value)
        self.depth -= 1
        return condition

    def binary(self, level: int) -> Evaluate:
        if level == len(_BINARY):
            return self.unary()
        left = self.binary(level + 1)
        operators = _BINARY[level].split()
        while self.peek() in operators and self.tokens[self.position][0] == "op":
            operator = self.take()[1]
            left = _apply(operator, left, self.binary(level + 1))
        return left

    def unary(self) -> Evaluate:
        operator = self.peek()
        if operator in {"-", "~", "!", "+"} and self.tokens[self.position][0] == "op":
            self.take()
            return _apply_unary(operator, self.unary())
        if operator == "(" and self.is_cast():
            while self.take()[1] != ")":
                pass
            return self.unary()
        return self.primary()

    def is_cast(self) -> bool:
        ahead = 1
        while self.peek(ahead) in _TYPE_WORDS or (ahead > 1 and self.peek(ahead) == "*"):
            ahead += 1
        return ahead > 1 and self.peek(ahead) == ")"

    def primary(self) -> Evaluate:
        kind, text = self.take()
        if kind == "number":
            number = int(text, 8) if re.fullmatch(r"0[0-7]+", text) else int(text, 0)
            return lambda _: number
        if kind == "string":
            string = _ESCAPE.sub(r"\1", text[1:-1])
            return lambda _: string
        if text == "(":
            inner = self.ternary()
            self.take(")")
            return inner
        if text == "REC":
            self.take("->")
            self.fields.add(self.take()[1])
            return lambda value: value
        if text in {"__print_symbolic", "__print_flags"}:
            return self.names(flags=text == "__print_flags")
        raise _NotUnderstoodError

    def names(self, *, flags: bool) -> Evaluate:
        self.take("(")
        shown = self.ternary()
        delimiter = ""
        if flags:
            self.take(",")
            kind, text = self.take()
            if kind != "string":
                raise _NotUnderstoodError
            delimiter = text[1:-1]
        end = self._closing()
        table, fields = _table(tuple(self.tokens[self.position : end]))
        self.fields |= fields
        self.position = end + 1
        return _flags(shown, delimiter, table) if flags else _symbol(shown, table)

    def _closing(self) -> int:
        """Where the bracket that is open closes."""
        depth = 0
        for place in range(self.position, len(self.tokens)):
            kind, text = self.tokens[place]
            if kind == "op" and text in "({[":
                depth += 1
            elif kind == "op" and text in ")}]":
                if depth == 0:
                    return place
                depth -= 1
        raise _NotUnderstoodError


@lru_cache(256)
def _table(tokens: tuple[tuple[str, str], ...]) -> tuple[list[tuple[int, str]], frozenset[str]]:
    """Values and their names, and the fields that occur in them.

    Events share tables: that of the GFP flags takes 12 ms, and of the 75 events in a trace ten have it.
    """
    parser = _Parser(list(tokens))
    table: list[tuple[int, str]] = []
    while parser.peek() == ",":
        parser.take()
        parser.take("{")
        number = parser.ternary()(0)
        parser.take(",")
        shown_as = parser.ternary()(0)
        parser.take("}")
        if not isinstance(number, int):
            raise _NotUnderstoodError
        if isinstance(shown_as, str):  # else it is the {0, NULL} that ends some tables
            table.append((number & _MASK, shown_as))
    if parser.position != len(tokens):
        raise _NotUnderstoodError
    return table, frozenset(parser.fields)


def _integer(value: Value) -> int:
    if isinstance(value, str):
        raise _NotUnderstoodError
    return value


def _apply(operator: str, left: Evaluate, right: Evaluate) -> Evaluate:
    operations: dict[str, Callable[[int, int], int]] = {
        "||": lambda a, b: int(bool(a or b)),
        "&&": lambda a, b: int(bool(a and b)),
        "|": lambda a, b: a | b,
        "^": lambda a, b: a ^ b,
        "&": lambda a, b: a & b,
        "==": lambda a, b: int(a == b),
        "!=": lambda a, b: int(a != b),
        "<": lambda a, b: int(a < b),
        ">": lambda a, b: int(a > b),
        "<=": lambda a, b: int(a <= b),
        ">=": lambda a, b: int(a >= b),
        "<<": lambda a, b: a << min(b, 64),
        ">>": lambda a, b: a >> min(b, 64),
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": lambda a, b: a // b if b else 0,
        "%": lambda a, b: a % b if b else 0,
    }
    operation = operations[operator]
    return lambda value: operation(_integer(left(value)), _integer(right(value))) & _MASK


def _apply_unary(operator: str, operand: Evaluate) -> Evaluate:
    operations: dict[str, Callable[[int], int]] = {
        "-": lambda a: -a,
        "+": lambda a: a,
        "~": lambda a: ~a,
        "!": lambda a: int(not a),
    }
    operation = operations[operator]
    return lambda value: operation(_integer(operand(value))) & _MASK


def _symbol(shown: Evaluate, table: list[tuple[int, str]]) -> Evaluate:
    names: dict[int, str] = {}
    for number, text in table:
        names.setdefault(number, text)

    def name(value: int) -> Value:
        number = _integer(shown(value))
        return names.get(number, hex(number))

    return name


def _flags(shown: Evaluate, delimiter: str, table: list[tuple[int, str]]) -> Evaluate:
    def name(value: int) -> Value:
        left = _integer(shown(value))
        parts = []
        for number, text in table:
            if number and number >> 63 == 0 and left & number == number:
                parts.append(text)
                left &= ~number
        if left:
            parts.append(hex(left))
        return delimiter.join(parts)

    return name
