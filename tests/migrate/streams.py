"""Serves streams over TCP: address, port, file with the bytes that streams repeat.

The first byte of a connection says what it is. `d`: the stream is sent as fast as it can be, until the client ends it.
`u`: the client sends it, and is told in the end how much came. `i`: what comes is sent back. `c`: the bytes once, many more than
there is room for on the way, and the connection is closed at once.
"""
import selectors, socket, sys, threading

PART = open(sys.argv[3], "rb").read()


def down(peer):
    try:
        while True:
            peer.sendall(PART)
    except OSError:
        peer.close()


def up(peer):
    room, at = bytearray(1 << 20), 0
    view = memoryview(room)
    while n := peer.recv_into(room):
        done = 0
        while done < n:
            begin = (at + done) % len(PART)
            length = min(n - done, len(PART) - begin)
            if view[done:done + length].tobytes() != PART[begin:begin + length]:
                peer.sendall(b"other bytes near %d\n" % (at + done))
                return
            done += length
        at += n
    peer.sendall(b"%d\n" % at)
    peer.close()


def closed(peer):
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    peer.sendall(PART)
    peer.close()


def idle(selector):
    while True:
        for key, _ in selector.select(0.2):
            data = key.fileobj.recv(100)
            if data:
                key.fileobj.sendall(data)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()


selector = selectors.DefaultSelector()
threading.Thread(target=idle, args=[selector], daemon=True).start()
server = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=600)
while True:
    peer, _ = server.accept()
    kind = peer.recv(1)
    if kind == b"i":
        selector.register(peer, selectors.EVENT_READ)
    elif kind:
        threading.Thread(target={b"d": down, b"u": up, b"c": closed}[kind], args=[peer], daemon=True).start()
