"""Keeps things in a memcached and asks for them: address, port, number of connections.

Every connection has keys of its own, knows what it has set, and sends several requests ahead.
"""
import random, socket, sys, time
import record


def client(number, address):
    random.seed(number)
    connection = socket.create_connection(address)
    stream = connection.makefile("rb")
    known, counter = {}, 0

    def line(wanted, since):
        said = stream.readline()
        assert said == wanted, (said[:100], wanted[:100])
        return record.heard(since)

    connection.sendall(b"set n%d 0 0 1\r\n0\r\n" % number)
    line(b"STORED\r\n", time.monotonic_ns())
    while not record.stop():
        requests, answers = [], []
        for _ in range(random.choice([1, 1, 5, 20])):
            key, kind = b"k%d-%d" % (number, random.randrange(40)), random.random()
            if kind < 0.3:
                known[key] = random.randbytes(random.choice([0, 10, 1000, 20000]))
                requests.append(b"set %s 7 0 %d\r\n%s\r\n" % (key, len(known[key]), known[key]))
                answers.append(b"STORED\r\n")
            elif kind < 0.4:
                counter += 1
                requests.append(b"incr n%d 1\r\n" % number)
                answers.append(b"%d\r\n" % counter)
            elif kind < 0.5:
                requests.append(b"delete %s\r\n" % key)
                answers.append(b"DELETED\r\n" if known.pop(key, None) is not None else b"NOT_FOUND\r\n")
            else:
                requests.append(b"get %s\r\n" % key)
                if key in known:
                    answers.append(b"VALUE %s 7 %d\r\n" % (key, len(known[key])))
                    answers.append(memoryview(known[key] + b"\r\n"))
                answers.append(b"END\r\n")
        since = time.monotonic_ns()
        connection.sendall(b"".join(requests))
        for wanted in answers:
            if isinstance(wanted, bytes):
                since = line(wanted, since)
            else:
                assert stream.read(len(wanted)) == wanted, "another value"
                since = record.heard(since)
        time.sleep(0.005)


address = (sys.argv[1], int(sys.argv[2]))
record.together([(client, number, address) for number in range(int(sys.argv[3]))])
