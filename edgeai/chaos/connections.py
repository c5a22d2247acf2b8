"""What goes wrong on the wire: connections that are refused, silent, slow, cut or reset, framing that is wrong, bodies without an end."""

from __future__ import annotations

import asyncio
import functools
import gzip
import zlib
from collections.abc import Awaitable, Callable

from edgeai.chaos import answers
from edgeai.chaos.wire import Behaviour, Exchange, Wire

__all__ = ["BEHAVIOURS", "CONNECTING", "HUGE_BYTES", "PORTS"]

PORTS = {"refused": "refused", "blackhole": "blackhole"}
"""Faults of the whole port: no connection is made."""

HUGE_BYTES = 32 << 20
"""The most that a body without an end sends: twice what a client should read by default."""
BLOCK = 1 << 16
WORDS = 5
"""How many words come before a stream breaks."""
TICK_S = 0.05
DRIP_S = 0.1


# Before a request.


async def be_silent(wire: Wire) -> None:
    """Accept, read, never answer."""
    while True:
        await wire.read_some()


async def reset_at_once(wire: Wire) -> None:
    """Reset the connection as soon as it is there."""
    await wire.reset()


async def close_at_once(wire: Wire) -> None:
    """Close the connection as soon as it is there."""
    wire.close()


CONNECTING: dict[str, Callable[[Wire], Awaitable[None]]] = {
    "accept-silent": be_silent,
    "rst-on-accept": reset_at_once,
    "close-on-accept": close_at_once,
}


# After a request.


async def hold(exchange: Exchange) -> None:
    """Never answer."""
    await exchange.hold()


async def reset(exchange: Exchange) -> None:
    """Reset the connection instead of an answer."""
    await exchange.wire.reset()


async def close(exchange: Exchange) -> None:
    """Close the connection instead of an answer."""


async def half_close(exchange: Exchange) -> None:
    """Send FIN instead of an answer, and go on reading."""
    exchange.wire.half_close()
    await exchange.hold()


async def begin_then_half_close(exchange: Exchange) -> None:
    """Send FIN after some words, and go on reading."""
    await exchange.begin(WORDS)
    exchange.wire.half_close()
    await exchange.hold()


async def reset_in_head(exchange: Exchange) -> None:
    """Reset the connection between two headers."""
    await exchange.wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/ev")
    await exchange.wire.reset()


async def head_then_silence(exchange: Exchange) -> None:
    """Send the head, then nothing."""
    await exchange.head()
    await exchange.hold()


async def words_then_silence(exchange: Exchange) -> None:
    """Send some words, then nothing."""
    await exchange.begin(WORDS)
    exchange.signal("words")
    await exchange.hold()


async def comments_without_end(exchange: Exchange) -> None:
    """Send comments, which keep a connection alive, and never a word."""
    await exchange.head()
    await exchange.every(TICK_S, b": ping\n\n" if exchange.stream else b" ")


async def words_then_comments(exchange: Exchange) -> None:
    """Send some words, then comments only."""
    await exchange.begin(WORDS)
    await exchange.every(TICK_S, b": ping\n\n" if exchange.stream else b" ")


async def informational_without_end(exchange: Exchange) -> None:
    """Send `102 Processing` again and again, and never an answer."""
    while True:
        await exchange.wire.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await asyncio.sleep(TICK_S)


async def head_byte_by_byte(exchange: Exchange) -> None:
    """Send the head at ten bytes a second."""
    await drip(exchange, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Slow: " + b"s" * 400)


async def body_byte_by_byte(exchange: Exchange) -> None:
    """Send the body at ten bytes a second, from its first byte."""
    await exchange.head(chunked=False)
    await drip(exchange, b"".join(exchange.pieces()))


async def words_then_drip(exchange: Exchange) -> None:
    """Send some words, then ten bytes a second."""
    await exchange.head(chunked=False)
    pieces = exchange.pieces()
    await exchange.put(*pieces[: WORDS + 1])
    await drip(exchange, b"".join(pieces[WORDS + 1 :]))


async def drip(exchange: Exchange, data: bytes) -> None:
    """Send DATA a byte at a time."""
    for at in range(len(data)):
        await exchange.wire.send(data[at : at + 1])
        await asyncio.sleep(DRIP_S)


async def words_slowly(exchange: Exchange) -> None:
    """Send whole events without any stall, so slowly that the whole answer takes five seconds."""
    await exchange.head()
    for part in exchange.pieces():
        await exchange.put(part)
        await asyncio.sleep(0.3)
    await exchange.end()


async def late(exchange: Exchange) -> None:
    """Send a good answer after a second."""
    await asyncio.sleep(1.0)
    await exchange.good()


async def end_early(exchange: Exchange) -> None:
    """End a chunked body in order after some words, without reason or end mark."""
    await exchange.begin(WORDS)
    await exchange.end()


async def close_early(exchange: Exchange) -> None:
    """Close a body whose end is that of the connection after some words: nothing on the wire says that it is not whole."""
    await exchange.head(chunked=False)
    await exchange.put(*exchange.pieces()[: WORDS + 1])


async def end_before_reason(exchange: Exchange) -> None:
    """Send every word, then end in order without reason, counts or end mark; an object lacks its last bytes."""
    await exchange.head()
    await exchange.put(*(exchange.pieces()[:-3] if exchange.stream else exchange.pieces()[:-1]))
    await exchange.end()


async def end_before_mark(exchange: Exchange) -> None:
    """Send everything but `[DONE]`; some endpoints do."""
    await exchange.head()
    await exchange.put(*(exchange.pieces()[:-1] if exchange.stream else exchange.pieces()))
    await exchange.end()


async def end_before_words(exchange: Exchange) -> None:
    """Send the role, then end in order."""
    await exchange.head()
    await exchange.put(exchange.pieces()[0])
    await exchange.end()


async def reset_midway(exchange: Exchange) -> None:
    """Reset the connection after some words."""
    await exchange.begin(WORDS)
    await exchange.wire.reset()


async def close_in_chunk(exchange: Exchange) -> None:
    """Close the connection inside of a chunk."""
    await exchange.begin(WORDS)
    await exchange.wire.send(b"400\r\ndata: {")


async def wrong_chunk_length(exchange: Exchange) -> None:
    """Send a chunk whose length is no number after some words."""
    await exchange.begin(WORDS)
    await exchange.wire.send(b"zz\r\n" + exchange.pieces()[WORDS + 1] + b"\r\n")


async def short_chunk_length(exchange: Exchange) -> None:
    """Send a chunk that is longer than it says after some words."""
    await exchange.begin(WORDS)
    await exchange.wire.send(b"5\r\n" + exchange.pieces()[WORDS + 1] + b"\r\n0\r\n\r\n")


async def short_body(exchange: Exchange) -> None:
    """Promise a length and close before it."""
    pieces = exchange.pieces()
    await exchange.head(length=sum(map(len, pieces)))
    await exchange.put(*pieces[: WORDS + 1])


async def garbage_head(exchange: Exchange) -> None:
    """Answer with what is no HTTP."""
    await exchange.wire.send(b"SSH-2.0-OpenSSH_9.9\r\n\r\n" + bytes(range(256)))


# Too much.


async def send_much(exchange: Exchange, block: bytes) -> None:
    """Send BLOCK until HUGE_BYTES are out or the client has gone."""
    for _ in range(HUGE_BYTES // len(block)):
        await exchange.put(block)


async def huge_body(exchange: Exchange) -> None:
    """Send an answer whose text does not end."""
    await exchange.head()
    start = answers.completion(exchange.prompt, content="")
    if exchange.stream:
        event = answers.sse(answers.event(exchange.prompt, {"content": f"{answers.FLOOD} " * 1000}))
        await exchange.put(exchange.pieces()[0])
        await send_much(exchange, event)
    else:
        await exchange.put(str(start).replace("'", '"').partition('"content": "')[0].encode() + b'"content": "')
        await send_much(exchange, f"{answers.FLOOD} ".encode() * 10_000)


async def huge_line(exchange: Exchange) -> None:
    """Send an event, or a string, whose line does not end."""
    await exchange.head()
    await exchange.put(b'data: {"choices": [{"delta": {"content": "' if exchange.stream else b'{"choices": "')
    await send_much(exchange, f"{answers.FLOOD} ".encode() * 10_000)


async def huge_space(exchange: Exchange) -> None:
    """Send white space without end: blank lines of a stream, or before an object."""
    await exchange.head()
    await send_much(exchange, b"\n" * BLOCK)


async def huge_header(exchange: Exchange) -> None:
    """Send a header of 32 MiB."""
    await exchange.wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Flood: ")
    await send_much(exchange, f"{answers.FLOOD} ".encode() * 10_000)


async def many_headers(exchange: Exchange) -> None:
    """Send headers without end."""
    await exchange.wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
    await send_much(exchange, b"".join(b"X-Flood-%d: flood\r\n" % index for index in range(1000)))


async def many_chunks(exchange: Exchange) -> None:
    """Send a million chunks of one byte, comments that never end a line."""
    await exchange.head()
    await exchange.put(b":" if exchange.stream else b" ")
    for _ in range(1000):
        await exchange.wire.send((b"1\r\n:\r\n" if exchange.stream else b"1\r\n \r\n") * 1000)


async def many_events(exchange: Exchange) -> None:
    """Send empty deltas without end."""
    if not exchange.stream:
        await huge_space(exchange)
        return
    await exchange.head()
    await send_much(exchange, answers.sse(answers.event(exchange.prompt, {"content": ""})) * 500)


@functools.cache
def packed_blanks() -> bytes:
    """Return 32 MiB of blanks as gzip; making them takes a tenth of a second."""
    return gzip.compress(b" " * HUGE_BYTES, 9, mtime=0)


async def gzip_bomb(exchange: Exchange) -> None:
    """Send 32 MiB of blanks as gzip, a thousandth of that on the wire."""
    data = packed_blanks()
    await exchange.head(headers=[("Content-Encoding", "gzip")], length=len(data))
    await exchange.put(data)


async def gzip_good(exchange: Exchange) -> None:
    """Send a good answer as gzip, asked for or not."""
    await exchange.head(headers=[("Content-Encoding", "gzip")])
    packer = zlib.compressobj(wbits=31)
    for part in exchange.pieces():
        await exchange.put(packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH))
    await exchange.put(packer.flush())
    await exchange.end()


async def gzip_broken(exchange: Exchange) -> None:
    """Say that the body is gzip, and send it as it is."""
    await exchange.head(headers=[("Content-Encoding", "gzip")])
    await exchange.put(*exchange.pieces())
    await exchange.end()


async def unknown_encoding(exchange: Exchange) -> None:
    """Send bytes of an encoding that nobody asked for."""
    await exchange.head(headers=[("Content-Encoding", "x-lab")])
    await exchange.put(zlib.compress(b"".join(exchange.pieces())))
    await exchange.end()


async def unframed(exchange: Exchange) -> None:
    """Send a good answer whose end is that of the connection, as HTTP/1.0 does."""
    await exchange.head(chunked=False)
    await exchange.put(*exchange.pieces())


async def chunk_extras(exchange: Exchange) -> None:
    """Send a good answer in chunks with extensions and trailers (RFC 9112, sections 7.1.1 and 7.1.2)."""
    await exchange.head()
    for part in exchange.pieces():
        await exchange.wire.send(b'%X;lab="x"\r\n%b\r\n' % (len(part), part))
    await exchange.wire.send(b"000\r\nX-Lab: trailer\r\n\r\n")


async def flood_after_done(exchange: Exchange) -> None:
    """Send a good answer, and go on for ever after its end mark: whoever reads on waits for ever."""
    await exchange.head()
    await exchange.put(*exchange.pieces())
    if not exchange.stream:
        await exchange.end()
        return
    await exchange.every(TICK_S, b": still here\n\n")


async def observe_leaving(exchange: Exchange) -> None:
    """Send a word every 20 ms: long enough to see when a client goes away."""
    await exchange.head()
    for part in exchange.pieces():
        await exchange.put(part)
        exchange.signal("words")
        await asyncio.sleep(0.02)
    await exchange.every(TICK_S, b": still here\n\n" if exchange.stream else b" ")


BEHAVIOURS: dict[str, Behaviour] = {
    "accept-silent": hold, "rst-on-accept": reset, "close-on-accept": close, "never-answers": hold, "rst-before-head": reset,
    "close-before-head": close, "half-close": half_close, "half-close-midway": begin_then_half_close, "rst-in-head": reset_in_head,
    "head-then-silence": head_then_silence, "words-then-silence": words_then_silence, "comments-forever": comments_without_end,
    "words-then-comments": words_then_comments, "informational-forever": informational_without_end, "drip-head": head_byte_by_byte,
    "drip-body": body_byte_by_byte, "drip-after-words": words_then_drip, "slow-words": words_slowly, "late": late,
    "eof-before-done": end_early, "eof-unframed": close_early, "eof-before-finish": end_before_reason, "no-done-mark": end_before_mark,
    "eof-before-words": end_before_words, "rst-after-tokens": reset_midway, "close-in-chunk": close_in_chunk,
    "bad-chunk-length": wrong_chunk_length, "short-chunk-length": short_chunk_length, "short-body": short_body,
    "not-http": garbage_head, "huge-body": huge_body, "huge-line": huge_line, "huge-space": huge_space, "huge-header": huge_header,
    "many-headers": many_headers, "million-chunks": many_chunks, "many-events": many_events, "gzip-bomb": gzip_bomb,
    "gzip-good": gzip_good, "gzip-broken": gzip_broken, "unknown-encoding": unknown_encoding, "after-done": flood_after_done,
    "unframed": unframed,
    "chunk-extras": chunk_extras,
    "slow-good": observe_leaving,
}  # fmt: skip
