"""Which text traces a file may be, told from its first bytes. A log, a table or source code is none of them.

trace_pipe and perf script have no header, so the shape of the first whole lines decides; where 128 bytes hold no whole
line, the front of the line must do.
"""

import re

_BLANK = re.compile(rb"(?:[ \t]*\r?\n)*")
_FTRACE_HEADER = re.compile(
    rb"# tracer: \S|# entries-in-buffer|# WARNING: TRACE|#{2,} CPU \d+ buffer started #|CPU:\s?\d+ \[LOST "
)
_TRACE_CMD_HEADER = re.compile(
    rb"cpus=\d+\s|(?:trace-cmd: )?\s*version = [67]\s|CPU:\s?\d+ \[(?:\d+ )?EVENTS DROPPED\]"
)
_PERF_HEADER = re.compile(rb"# =+\n# captured on +: ")  # perf script --header
_FLAGS = rb"[dDbX.][A-Za-z.][A-Za-z.][0-9a-f.]{1,2} +"
_TASK = (
    rb" *\S[^\n]{0,60}?-\d{1,10} +(?:\( *(?:\d+|-+)\) +)?\[\d{3,5}\] +(?:" + _FLAGS + rb")?"
    rb"\d+(?:\.(?P<part>\d{6}|\d{9}))?: "
)
_TASK_LINE = re.compile(rb"(?P<instance>[^\s:]+: +)?" + _TASK + rb"(?P<name>\S+?)(?P<pad>:( +)|\(|:$| )")
_LATENCY_LINE = re.compile(rb" *\S[^\n]{0,15}?-\d{1,10} +\d+" + _FLAGS + rb"\d+us.: \S")
_RAW_LINE = re.compile(rb"\d{1,10} \d{1,5} \d{6,19} (?:type: \d+|\S)[^\n]*\n\d{1,10} \d{1,5} \d{6,19} ")
_PERF_LINE = re.compile(
    rb"(?: *(?:\S[^\n]{0,40}? +)?-?\d{1,10}(?:/-?\d{1,10})?(?: +\[\d{3,5}\])? +| *(?:\[\d{3,5}\] +)?)"
    rb"\d+\.(?:\d{6}|\d{9}): +"
    rb"(?:\d+ +)?(?:[A-Za-z_][\w./=,-]*(?::[A-Za-z_][\w]*)*|[\w-]+/[^/\n]*/\w*):(?:\s|$)"
)


def kind_of(head: bytes) -> str:
    """``ftrace_text``, ``trace_cmd_report``, ``perf_script`` or ``""``."""
    head = head[_BLANK.match(head).end() :] if _BLANK.match(head) else head  # type: ignore[union-attr]
    if _FTRACE_HEADER.match(head):
        return "ftrace_text"
    if _TRACE_CMD_HEADER.match(head):
        return "trace_cmd_report"
    if _PERF_HEADER.match(head):
        return "perf_script"
    found = _TASK_LINE.match(head)
    if found is not None:
        padded = found["instance"] or (found["part"] and len(found["part"]) == 9) or len(found["pad"]) > 2
        return "trace_cmd_report" if padded else "ftrace_text"
    if _LATENCY_LINE.match(head) or _RAW_LINE.match(head):
        return "ftrace_text"
    return "perf_script" if _PERF_LINE.match(head) else ""
