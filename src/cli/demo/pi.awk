# Digits of pi, one by one (the spigot of Rabinowitz and Wagon), into the file pi; in the end, how many there were into
# the file count. It takes its time by itself.
function emit(digit) {
    if (count++ >= 1 && count <= digits + 1) {
        printf "%d", digit > "pi"
        fflush("pi")
    }
}
BEGIN {
    size = int(10 * digits / 3) + 50
    for (i = 1; i <= size; i++) a[i] = 2
    while (count <= digits) {
        carry = 0
        for (i = size; i > 1; i--) {
            x = 10 * a[i] + carry * i
            a[i] = x % (2 * i - 1)
            carry = int(x / (2 * i - 1))
        }
        x = 10 * a[1] + carry
        a[1] = x % 10
        digit = int(x / 10)
        if (digit == 9) {
            nines++
        } else {
            emit(held + (digit == 10))
            for (; nines > 0; nines--) emit(digit == 10 ? 0 : 9)
            held = digit == 10 ? 0 : digit
        }
    }
    printf "%d", (count > digits + 1 ? digits : count - 1) > "count"
}
