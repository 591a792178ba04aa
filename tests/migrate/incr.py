"""Counts in a redis server over one connection until STOP is there, and says what it saw: no answer may be lost, come twice, or
come from the past."""
import json, os, socket, sys, time

host, port, stop = sys.argv[1], int(sys.argv[2]), sys.argv[3]
server = socket.create_connection((host, port), 20)
server.settimeout(150)
server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
stream = server.makefile("rb")
command = b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n"
last, worst, slow = None, 0.0, []
begun = time.monotonic()
while not os.path.exists(stop):
    asked = time.monotonic()
    server.sendall(command)
    line = stream.readline()
    took = time.monotonic() - asked
    if not line.startswith(b":"):
        sys.exit(f"after {last}: {line!r}")
    value = int(line[1:])
    if last is not None and value != last + 1:
        sys.exit(f"{value} follows {last}")
    if last is None:
        open(stop + ".running", "w").close()
    last, worst = value, max(worst, took)
    if took > 0.05:
        slow.append((round((asked - begun) * 1e3), round(took * 1e3, 1)))
print(json.dumps({"last": last, "worst_ms": worst * 1e3, "slow_ms": slow, "seconds": time.monotonic() - begun}))
