"""Counts for whoever asks: `INCR name` is answered as redis does. Where to listen: address and port."""
import asyncio, sys

counts = {}


async def serve(reader, writer):
    while line := await reader.readline():
        command, name = line.split()
        assert command == b"INCR"
        counts[name] = counts.get(name, 0) + 1
        # A timer of the loop, and one more turn of it.
        await asyncio.wait_for(asyncio.sleep(0), 1000)
        writer.write(b":%d\r\n" % counts[name])
        await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]))
    await server.serve_forever()


asyncio.run(main())
