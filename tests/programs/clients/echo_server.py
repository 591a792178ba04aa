"""Sends back what it gets: the port, number of processes, each with a listening socket of its own at that port, and the address
if it is not 127.0.0.1."""
import asyncio, os, resource, sys

resource.setrlimit(resource.RLIMIT_NOFILE, (10000, 10000))


async def serve(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(serve, (sys.argv[3:] or ["127.0.0.1"])[0], int(sys.argv[1]), backlog=2000, reuse_port=True)
    open(f"up{number}", "w").close()
    await server.serve_forever()


number = 0
while number < int(sys.argv[2]) - 1 and os.fork():
    number += 1
asyncio.run(main())
