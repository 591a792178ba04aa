"""Sends back what it gets: the port."""
import asyncio, resource, sys

resource.setrlimit(resource.RLIMIT_NOFILE, (10000, 10000))


async def serve(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=2000)
    open("up", "w").close()
    await server.serve_forever()


asyncio.run(main())
