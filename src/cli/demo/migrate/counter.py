import socket, sys
count = 0
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while question := connection.recv(1):
        count += 1
        connection.sendall(b"%d\n" % count)
