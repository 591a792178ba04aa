# Digits of pi, one by one (Gibbons' spigot), into the file pi; in the end, how many there were into the file count.
import sys, time

digits = int(sys.argv[1])
q, r, t, k, n, l = 1, 0, 1, 1, 3, 3
count = 0
with open("pi", "w") as out:
    while count < digits:
        if 4 * q + r - t < n * t:
            out.write(str(n))
            out.flush()
            count += 1
            q, r, n = 10 * q, 10 * (r - n * t), 10 * (3 * q + r) // t - 10 * n
            time.sleep(0.0025)
        else:
            q, r, t, k, n, l = q * k, (2 * q + r) * l, t * l, k + 1, (q * (7 * k + 2) + r * l) // (t * l), l + 2
with open("count", "w") as out:
    out.write(str(count))
