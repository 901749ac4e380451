"""Finds the records of a window: through damage, payloads that are no records, and a header that comes in between."""

from tracekit.formats import Truncation
from tracekit.formats._perf_index import (
    AUXTRACE,
    COMPRESSED,
    TRACING_DATA,
    Found,
    Words,
    joined,
    link,
)
from tracekit.formats._perf_known import Known
from tracekit.formats._perf_pipe import PipeHeader
from tracekit.formats._perf_sideband import Tally
from tracekit.formats._perf_stream import Cut, Segment
from tracekit.formats._perf_swap import hop_swapped, to_native


class Scan:
    """The way through the segments of all windows."""

    def __init__(self, known: Known, pipe: PipeHeader | None, tally: Tally) -> None:
        self.known = known
        self.tally = tally
        self.truncated: Truncation | None = None
        self._pipe = pipe
        self._swapped = known.header.order == ">"
        header = known.header
        self._packed = pipe is not None or "compression" in header.features or not header.data_complete

    def segment(self, words: Words, segment: Segment) -> tuple[Found, Cut]:
        """The records of a segment that may be wanted, in this machine's byte order from here on."""
        pieces = []
        following: int | None = segment.first
        while following is not None:
            found, cut, problem = self._piece(words, segment, following)
            pieces.append(found)
            end = 8 * cut.stop + cut.skip_bytes
            more = problem is None and cut.skip_bytes and end % 8 == 0 and end <= segment.filled
            following = end // 8 if more else None
        if problem is not None and self._pipe is not None:
            size = self._pipe.take_unaligned(words, cut.stop, segment.filled, segment.base)
            if size is not None:
                problem, cut = None, Cut(cut.stop, size)
                self.known.learn(self._pipe.header())
        if problem is not None:
            cut = self._damaged(words, segment, cut, problem)
        elif segment.source.done:
            self._ended(segment, cut)
        return pieces[0] if len(pieces) == 1 else joined(pieces), cut

    def _piece(self, words: Words, segment: Segment, first: int) -> tuple[Found, Cut, str | None]:
        """Records up to a payload that is none, the end, or damage, which is named."""
        if self._swapped:
            chain = hop_swapped(words, first, segment.end)
        else:
            chain = link(words, first, segment.end, self.known.ids.pattern)
        found = chain.found
        cut = Cut(chain.stop, chain.skip_bytes)
        if self._pipe is not None:
            cut = self._take_header(words, segment, found, cut)
        if self._swapped:
            to_native(words, found, self.known.ids)
        if chain.skip_bytes and found.kind[-1] == AUXTRACE:
            self.tally.auxtrace_bytes += chain.skip_bytes
        return self.known.ids.without_unwanted(words, found), cut, chain.problem

    def _take_header(self, words: Words, segment: Segment, found: Found, cut: Cut) -> Cut:
        assert self._pipe is not None
        changed = self._pipe.take(words, found, segment.base)
        if cut.skip_bytes and found.kind[-1] == TRACING_DATA:
            begin = 8 * cut.stop
            size = min(cut.skip_bytes, self._pipe.wants_tracing_data)
            block = words.view("u1")[begin : min(begin + size, segment.filled)].tobytes()
            if len(block) < size:
                cut = cut._replace(skip_bytes=len(block))
                block += segment.source.more(size - len(block))
            if len(block) < size:
                self._note(segment.source.number, segment.base + begin, len(block), "the event formats are cut")
            self._pipe.take_tracing_data(block, segment.base + begin)
            changed = True
        if changed:
            self.known.learn(self._pipe.header())
        return cut

    def _damaged(self, words: Words, segment: Segment, cut: Cut, problem: str) -> Cut:
        """Stop there, or unpack what follows."""
        order = self.known.header.order
        kind = int.from_bytes(words[cut.stop : cut.stop + 1].tobytes()[:4], "little" if order == "<" else "big")
        source = segment.source
        if kind in COMPRESSED and self._packed and not source.unpacks:
            return Cut(cut.stop, 0, order)
        unread = segment.filled - 8 * cut.stop + _unread(source.feed)
        self._note(source.number, segment.base + 8 * cut.stop, unread, problem)
        source.done = True
        return cut

    def _ended(self, segment: Segment, cut: Cut) -> None:
        """State what a source that has come to its end lacks."""
        feed = segment.source.feed
        left = segment.filled - 8 * cut.stop - cut.skip_bytes
        if feed.problem is not None:
            self._note(segment.source.number, feed.place, feed.bytes_left, feed.problem)
        elif cut.skip_bytes and left < 0:
            reason = f"a record is followed by {cut.skip_bytes} bytes, which go beyond the end"
            self._note(segment.source.number, segment.base + 8 * cut.stop, left + cut.skip_bytes, reason)
        elif left and not (cut.skip_bytes and left >= 8):
            self._note(segment.source.number, segment.base + 8 * cut.stop, left, "the last record is cut")

    def _note(self, number: int, offset: int, unread: int, reason: str) -> None:
        """Note where reading had to stop, the first such place."""
        where = f"data.{number - 1}: " if number else ""
        if self.truncated is None:
            self.truncated = Truncation(offset, unread, where + reason)


def _unread(feed: object) -> int:
    """Bytes that are left in a feed; a pipe is read to its end, that they may be counted."""
    return int(getattr(feed, "bytes_left", 0)) or int(feed.skip(1 << 62))  # type: ignore[attr-defined]
