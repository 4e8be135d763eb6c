"""pika's frames, total and bounded: what a message does to its receiver is not its sender's choice.

pika decodes the properties that a sender chose with the recursion and the conversions that they
ask for: a header that is NaN, a date after the year 9999 or lists a thousand deep end the
connection, and the message comes back to end the next one. A body it keeps whatever its length,
and a broker pushes ``prefetch`` of them unasked. Here such properties arrive as none, and a body
beyond the limit as its hash.
"""

from __future__ import annotations

import hashlib
import struct

import pika
from pika import frame, spec
from pika.channel import Channel, ContentFrameAssembler


class Connection(pika.SelectConnection):  # type: ignore[misc]
    """A connection that no message's properties can end."""

    def _read_frame(self):  # type: ignore[no-untyped-def]
        try:
            return super()._read_frame()
        except Exception:
            bare = _bare_header(self._frame_buffer)
            if bare is None:
                raise
            return bare


class Cut(bytes):
    """A body that was too long to be kept: empty, but its SHA-256 is known."""

    sha256: str


class Assembler(ContentFrameAssembler):  # type: ignore[misc]
    """Puts a message together, unless it is longer than ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self._digest = hashlib.sha256()

    def _handle_body_frame(self, body_frame):  # type: ignore[no-untyped-def]
        assert self._header_frame is not None
        if self._header_frame.body_size <= self.limit:
            return super()._handle_body_frame(body_frame)
        self._digest.update(body_frame.fragment)
        done = super()._handle_body_frame(body_frame)
        self._body_fragments.clear()
        if done is None:
            return None
        cut = Cut()
        cut.sha256 = self._digest.hexdigest()
        self._digest = hashlib.sha256()
        return done[0], done[1], cut


def bound(channel: Channel, limit: int) -> Assembler:
    """Keep no body of more than ``limit`` bytes on this new channel."""
    assembler = Assembler(limit)
    channel._content_assembler = assembler
    return assembler


def _bare_header(data: bytes) -> tuple[int, frame.Header] | None:
    """How long the header frame is that ``data`` begins with, and the frame without properties."""
    kind, channel, size = struct.unpack_from(">BHL", data)
    if kind != spec.FRAME_HEADER:
        return None
    body_size = struct.unpack_from(">Q", data, spec.FRAME_HEADER_SIZE + 4)[0]
    end = spec.FRAME_HEADER_SIZE + size + spec.FRAME_END_SIZE
    return end, frame.Header(channel, body_size, spec.BasicProperties())
