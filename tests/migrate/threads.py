"""200 threads count together, and say over TCP how far they are: address, port."""
import socket, sys, threading, time

lock, counts, total = threading.Lock(), [0] * 200, 0


def work(n):
    global total
    while True:
        with lock:
            counts[n] += 1
            total += 1
        time.sleep(0.01 + n / 10000)


for n in range(len(counts)):
    threading.Thread(target=work, args=[n], daemon=True).start()
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    peer, _ = server.accept()
    while peer.recv(1):
        with lock:
            peer.sendall(b"%d %d %d\n" % (total, sum(counts), min(counts)))
