"""Serves streams over TCP: address, port, file with the bytes that streams repeat.

The first byte of a connection says what it is. `d`: the stream is sent as fast as it can be, until the client ends it.
`u`: the client sends it, and is told in the end how much came. `i`: what comes is sent back.
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
        threading.Thread(target=down if kind == b"d" else up, args=[peer], daemon=True).start()
