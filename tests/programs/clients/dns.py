"""Asks a name server without end: address, port.

Over one socket and over new ones, by UDP and by TCP; a question that is not answered is asked again with the same
number. Every answer must be the one to its question, and names that are not there must not be there.
"""
import errno, random, socket, struct, sys, time
import record

address = (sys.argv[1], int(sys.argv[2]))


def question(number, name):
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b"."))
    return struct.pack(">6H", number, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)


def judge(asked, answer, host):
    """Whether this answers the question at all; it must then be right."""
    if answer[:2] != asked[:2]:
        return False
    flags, _, count = struct.unpack(">3H", answer[2:8])
    assert flags & 0x8000 and answer[12:len(asked)] == asked[12:], f"not an answer: {answer}"
    if host < 200:
        assert flags & 15 == 0 and count == 1 and answer.endswith(bytes([10, 9, 8, host])), f"h{host}: {answer}"
    else:
        assert flags & 15 == 3 and count == 0, f"h{host} should not be there: {answer}"
    return True


def over_udp(again):
    """`again`: whether every question has a new socket."""
    link = None
    while not record.stop():
        if link is None or again:
            link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            link.connect(address)
            link.settimeout(0.3)
        host = random.randrange(250)
        asked = question(random.randrange(65536), f"h{host}.test")
        since = time.monotonic_ns()
        for attempt in range(20):
            try:
                link.send(asked)
                while not judge(asked, link.recv(2000), host):
                    pass # the answer to a question that was asked twice
                break
            except OSError as error:
                assert isinstance(error, TimeoutError) or error.errno == errno.EHOSTUNREACH, error
                assert attempt < 19, "no answer"
        record.heard(since)
        time.sleep(0.002)


def without_end():
    """Asks so often that nothing which lasts a millisecond is overlooked."""
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    link.connect(address)
    link.setblocking(False)
    asked = question(1, "h1.test")
    while not record.stop():
        try:
            link.send(asked)
            link.recv(2000)
        except BlockingIOError:
            pass
        except OSError as error:
            # On a bridge there may be nobody for a while.
            assert error.errno == errno.EHOSTUNREACH, error
        time.sleep(0.0005)


def over_tcp():
    while not record.stop():
        with socket.create_connection(address, 30) as link:
            for _ in range(random.randint(1, 20)):
                host = random.randrange(250)
                asked = question(random.randrange(65536), f"h{host}.test")
                since = time.monotonic_ns()
                link.sendall(struct.pack(">H", len(asked)) + asked)
                length, = struct.unpack(">H", link.recv(2, socket.MSG_WAITALL))
                assert judge(asked, link.recv(length, socket.MSG_WAITALL), host)
                record.heard(since)
                time.sleep(0.01)


works = [(over_udp, False), (over_udp, False), (over_udp, True), (over_tcp,), (without_end,)]
record.together(works)
