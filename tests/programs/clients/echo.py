"""Many clients of an echo server, each with a stream of its own that must come back byte by byte: port, number of clients, and
the server's address if it is not 127.0.0.1, where nobody ends a connection.

Most say a little now and then; a few never stop, and some connect anew each time.
"""
import asyncio, random, resource, sys, time
import record

resource.setrlimit(resource.RLIMIT_NOFILE, (10000, 10000))
HOST, STAYS = (sys.argv[3], True) if len(sys.argv) > 3 else ("127.0.0.1", False)
NOISE = random.Random(1).randbytes(1 << 20)


def part(number, begin, length):
    """Bytes of the stream of one client."""
    begin = (begin + number * 509) % (len(NOISE) - length)
    return NOISE[begin:begin + length]


async def client(number, port):
    dice = random.Random(number)
    reader = writer = None
    at = 0
    while not record.stop():
        if not writer:
            reader, writer = await asyncio.open_connection(HOST, port)
        length = dice.randint(1, 100000 if number % 200 == 0 else 2000)
        wanted = part(number, at, length)
        since = time.monotonic_ns()
        writer.write(wanted)
        await writer.drain()
        got = 0
        while got < length:
            data = await reader.read(length - got)
            assert data, f"client {number}: the server has closed the connection"
            assert data == wanted[got:got + len(data)], f"client {number}: other bytes at {at + got}"
            got += len(data)
            since = record.heard(since)
        at += length
        if number % 20 == 7 and not STAYS:
            await end(number, reader, writer)
            writer = None
        await asyncio.sleep(0.01 if number % 200 == 0 else dice.uniform(0.5, 2))
    if writer:
        await end(number, reader, writer)


async def end(number, reader, writer):
    writer.write_eof()
    assert await reader.read() == b"", f"client {number}: more bytes than were sent"
    writer.close()


async def main():
    port, count = int(sys.argv[1]), int(sys.argv[2])
    await asyncio.gather(*(client(number, port) for number in range(count)))


asyncio.run(main())
record.end()
