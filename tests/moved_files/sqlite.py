"""Counts into a database, a commit each, and says every number that is in for good."""
import sqlite3, sys, time

folder = sys.argv[1]
base = sqlite3.connect(folder + "/numbers.db", isolation_level=None, timeout=60)
base.execute("pragma journal_mode=wal")
base.execute("pragma wal_autocheckpoint=50")
base.execute("create table if not exists numbers (n integer primary key, filler text)")
log = open(folder + "/log", "a", buffering=1)
n = 0
while True:
    n += 1
    base.execute("insert into numbers values (?, ?)", (n, str(n) * 100))
    log.write(f"{n}\n")
    time.sleep(0.002)
