"""How a line of text names its event, and where its message starts."""

import numpy as np

from tracekit.formats import _text_known as known_formats
from tracekit.formats._text_bytes import Places, Text
from tracekit.formats._text_events import CALL, FUNCTION, PRINT, RAW, RETURN, STACK, USER_STACK, Name, perf_name
from tracekit.formats._text_lines import Heads

# "": none of the others
FORMS = ("", known_formats.EVENT, known_formats.ENTER, known_formats.EXIT, FUNCTION, STACK, USER_STACK, RAW, "perf")
# lines "name: …" that are no tracepoint
_NO_TRACEPOINTS = {
    "tracing_mark_write": PRINT,
    "kernel_stack": STACK,
    "user_stack": USER_STACK,
    "function": FUNCTION,
    CALL: CALL,
    RETURN: RETURN,
}


def forms_of(text: Text, heads: Heads, ends: Places, *, perf: bool) -> tuple[Places, np.ndarray]:
    """Where each line's message starts, and how it names its event (a number in FORMS)."""
    end = ends[heads.line]
    if perf:
        return heads.text, np.full(len(end), FORMS.index("perf"))
    stop = heads.name_end
    after = np.minimum(text.skip_spaces(np.minimum(stop + 1, end)), end)
    forms = np.full(len(end), FORMS.index(""))
    messages = after
    named = (text.bytes[stop] == ord(":")) & (stop > heads.name_start)
    forms[named & ((text.bytes[stop + 1] == ord(" ")) | (stop + 1 >= end))] = FORMS.index(known_formats.EVENT)
    rest = np.flatnonzero(forms == FORMS.index(""))
    if len(rest) == 0:
        return messages, forms
    messages = messages.copy()
    for form, start, behind in _other(text, heads, end):
        mine = rest[start[rest]]
        forms[mine], messages[mine] = FORMS.index(form), behind[mine]
    return messages, forms


def _other(text: Text, heads: Heads, end: Places) -> list[tuple[str, np.ndarray, Places]]:
    name, stop = heads.name_start, heads.name_end
    call = text.equals(name, b"sys_")
    raw = text.equals(heads.text, b"type: ") & (heads.text < name)
    arrow = text.find(stop, ord("<"), end)
    function = (arrow < end) & text.equals(np.minimum(arrow, end), b"<-") & (stop > name)
    return [
        (FUNCTION, function, name),
        (known_formats.ENTER, call & (text.bytes[stop] == ord("(")), stop + 1),
        (known_formats.EXIT, call & text.equals(np.minimum(stop, end), b" -> "), stop + 4),
        (STACK, text.equals(name, b"<stack trace"), name),
        (USER_STACK, text.equals(name, b"<user stack tra"), name),
        (RAW, raw, name),
    ]


def name_of(printed: bytes, form: str) -> Name:
    """What an event is called of which a line of that form shows ``printed``."""
    name = printed.decode("utf-8", "replace")
    if form == "perf":
        return perf_name(name)
    if form == known_formats.EVENT and name in _NO_TRACEPOINTS:
        return Name("", "", _NO_TRACEPOINTS[name])
    if form in {FUNCTION, STACK, USER_STACK}:
        return Name("", "", form)
    return Name("", f"tracepoint_{name}" if form == RAW else name, form)
