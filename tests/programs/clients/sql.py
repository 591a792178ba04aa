"""Keeps a postgresql busy through psql, which finds it by the environment, and counts along: number of clients.

Each client has its inserts acknowledged one by one; one more has a transaction open all the time, and one reads long
answers more slowly than they could come, so that the server always waits for it (not where a further argument is given).
"""
import subprocess, sys, time
import record


class Psql:
    def __init__(self):
        command = ["psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def ask(self, question, wanted):
        since = time.monotonic_ns()
        self.process.stdin.write(question + "\n")
        said = self.process.stdout.readline().strip()
        assert said == wanted, f"{question}: {said!r} instead of {wanted!r}"
        record.heard(since)

    def end(self):
        self.process.stdin.close()
        assert self.process.wait() == 0, "psql has failed"


def client(number):
    psql, count = Psql(), 0
    while not record.stop():
        count += 1
        psql.ask(f"insert into acknowledged values ({number}, {count}) returning line;", str(count))
        time.sleep(0.002)
    psql.ask(f"select count(*), max(line) from acknowledged where client = {number};", f"{count}|{count}")
    psql.end()


def transaction():
    psql = Psql()
    psql.ask("begin; insert into kept values (pg_backend_pid(), 'before') returning line;", "before")
    while not record.stop():
        time.sleep(0.05)
    psql.ask("select count(*) from kept;", "1")
    psql.ask("insert into kept values (pg_backend_pid(), 'after') returning line;", "after")
    psql.ask("commit; select count(*), count(distinct pid) from kept;", "2|1")
    psql.end()


def read_slowly():
    while not record.stop():
        question = "copy (select n, repeat(md5(n::text), 5) from generate_series(1, 60000) n) to stdout"
        psql = subprocess.Popen(["psql", "-X", "-q", "-c", question], stdout=subprocess.PIPE)
        wanted = 0
        while lines := psql.stdout.readlines(100000):
            since = time.monotonic_ns()
            for line in lines:
                wanted += 1
                number, text = line.split(b"\t")
                assert int(number) == wanted and len(text) == 161, f"row {number} instead of {wanted}"
            record.heard(since)
            time.sleep(0.01)
        assert wanted == 60000 and psql.wait() == 0, f"{wanted} rows"


first = Psql()
first.ask("create table acknowledged (client int, line int); create table kept (pid int, line text); select 'made';", "made")
first.end()
works = [(transaction,)] + [(read_slowly,)] * (len(sys.argv) < 3) + [(client, number) for number in range(int(sys.argv[1]))]
record.together(works)
