"""A shell at a terminal, for one client over TCP: address, port. Says with what code the shell has ended."""
import os, pty, select, socket, sys

server = socket.create_server((sys.argv[1], int(sys.argv[2])))
peer, _ = server.accept()
pid, master = pty.fork()
if pid == 0:
    os.environ["PS1"] = "ready> "
    os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
while True:
    ready = select.select([peer, master], [], [])[0]
    if peer in ready:
        os.write(master, peer.recv(4096))
    if master in ready:
        try:
            peer.sendall(os.read(master, 4096))
        except OSError:  # nobody has the terminal any more
            break
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
peer.sendall(b"ended: %d" % code)
