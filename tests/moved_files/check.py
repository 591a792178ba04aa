"""What is in the database: all numbers from 1 on, and no fewer than were said."""
import sqlite3, sys

folder = sys.argv[1]
base = sqlite3.connect(folder + "/numbers.db")
assert base.execute("pragma integrity_check").fetchone()[0] == "ok"
numbers = [n for (n,) in base.execute("select n from numbers order by n")]
assert numbers == list(range(1, len(numbers) + 1)), numbers[-5:]
said = [int(line) for line in open(folder + "/log") if line.endswith("\n")]
assert said == list(range(1, len(said) + 1)), said[-5:]
assert len(said) <= len(numbers) <= len(said) + 1, (len(said), len(numbers))
print(len(numbers))
