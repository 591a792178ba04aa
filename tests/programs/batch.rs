//! Programs that compute something which can be computed again undisturbed.

use super::{WORK, finish, installed, plainly, read, through, write};
use crate::lab::{Lab, Running, observe, until};
use std::fmt::Write;
use std::path::Path;

/// Two threads that compute pi each in its own way, digit by digit, into a file each.
const PI: &str = r#"
import sys, threading, time

digits = int(sys.argv[1])

def spigot():
    q, r, t, k, n, l = 1, 0, 1, 1, 3, 3
    while True:
        if 4 * q + r - t < n * t:
            yield n
            q, r, n = 10 * q, 10 * (r - n * t), 10 * (3 * q + r) // t - 10 * n
        else:
            q, r, t, k, n, l = q * k, (2 * q + r) * l, t * l, k + 1, (q * (7 * k + 2) + r * l) // (t * l), l + 2

def machin():
    unit = 10 ** (digits + 20)
    def arctan(x):
        power = total = unit // x
        n, sign = 3, -1
        while power:
            power //= x * x
            total += sign * (power // n)
            n, sign = n + 2, -sign
            if len(sys.argv) < 3:
                time.sleep(0.0005)
        return total
    for digit in str(4 * (4 * arctan(5) - arctan(239)))[:digits]:
        yield digit

def write(name, source):
    with open(name, 'w') as out:
        for _ in range(digits):
            out.write(str(next(source)))
            out.flush()
            if len(sys.argv) < 3:
                time.sleep(0.001)

threads = [threading.Thread(target=write, args=('spigot', spigot())), threading.Thread(target=write, args=('machin', machin()))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
open('done', 'w').write('done')
"#;

/// Background children, a pipeline, a trap, sleeps; the order of every file is fixed.
const SHELL: &str = r#"
count() { for ((i = 0; i < $2; i++)); do echo "$1 $i"; sleep 0.01; done; return $3; }
trap 'echo "caught while at $step" >> caught' USR1
step=one
count left 250 3 > left & a=$!
count right 200 4 > right & b=$!
count piped 300 0 | while read -r word n; do echo "$word $((n * n))"; done | tr a-z A-Z > piped & c=$!
sleep 3 & d=$!
for ((n = 0; n < 300; n++)); do echo "main $n" >> main; sleep 0.005; done
step=two
kill -USR1 $$
wait $a; echo "a $?" >> codes
wait $b; echo "b $?" >> codes
wait $c; echo "c $?" >> codes
wait $d; echo "d $?" >> codes
echo done > done
"#;

/// A chain of hashes: one wrong byte anywhere and the end is another one.
const CHAIN: &str = r#"
use strict; use Digest::SHA 'sha256_hex'; use Time::HiRes 'sleep';
my ($rounds, $pause) = @ARGV;
my ($x, %seen) = ('start');
open(my $out, '>', $pause ? 'chain' : 'reference') or die;
select((select($out), $| = 1)[0]);
for my $n (1 .. $rounds) {
    $x = sha256_hex("$x $n " . scalar keys %seen);
    $seen{substr $x, 0, 4} = $n;
    next if $n % 50;
    print $out "$n $x\n";
    sleep 0.002 if $pause;
}
print $out join(',', map { "$_=$seen{$_}" } sort keys %seen), "\n";
close $out;
if ($pause) { open(my $d, '>', 'done'); close $d }
"#;

fn done(lab: &Lab) -> bool {
    lab.path("done").exists()
}

fn lines(lab: &Lab, name: &str) -> usize {
    read(lab, name).lines().count()
}

fn start(lab: &Lab, program: &str, arguments: &[&str]) -> Running {
    lab.spawn(&installed(program), arguments)
}

/// `count` lines of numbers in no order, the same on every machine.
fn numbers(count: u64) -> String {
    let mut text = String::new();
    let mut x = 88172645463325252u64;
    for n in 0..count {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let _ = writeln!(text, "0.{x:020} line {n}");
    }
    text
}

/// A Makefile and `count` C files that take gcc a while, and a program that adds up what they return.
fn sources(lab: &Lab, count: u64) {
    let folder = lab.path("tree");
    std::fs::create_dir(&folder).expect("folder");
    let put = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("source");
    let mut main = "#include <stdio.h>\n".to_string();
    let mut sum = String::from("0");
    for n in 0..count {
        let mut unit = String::from("#include <stdlib.h>\n#include <string.h>\n#include <math.h>\n");
        for f in 0..60 {
            let _ = writeln!(
                unit,
                "static long f{f}(long x) {{ long s = {n}; for (long i = 0; i < x % 50 + 2; i++) {{ switch ((s + i) % 7) {{ \
                 case 0: s += i * {f}; break; case 1: s ^= i << 3; break; case 2: s -= x; break; default: s = s * 31 + i; }} }} return s; }}"
            );
        }
        let calls: Vec<String> = (0..60).map(|f| format!("f{f}(x + {f})")).collect();
        let _ = writeln!(unit, "long unit{n}(long x) {{ return {}; }}", calls.join(" ^ "));
        put(&format!("unit{n}.c"), &unit);
        let _ = writeln!(main, "long unit{n}(long);");
        let _ = write!(sum, " + unit{n}({n})");
    }
    let _ = writeln!(main, "int main(void) {{ printf(\"%ld\\n\", {sum}); return 0; }}");
    put("main.c", &main);
    let objects: Vec<String> = (0..count).map(|n| format!("unit{n}.o")).collect();
    put(
        "Makefile",
        &format!(
            "program: main.o {0}\n\tgcc -o $@ $^\n\ttouch ../done\n%.o: %.c\n\tgcc -O2 -fwrapv -pipe -c -o $@ $<\n",
            objects.join(" ")
        ),
    );
}

fn objects(folder: &Path) -> usize {
    std::fs::read_dir(folder)
        .map_or(0, |entries| entries.flatten().filter(|entry| entry.path().extension().is_some_and(|extension| extension == "o")).count())
}

crate::alone! {
    fn python_threads_compute_pi() {
        let mut lab = Lab::new("python");
        write(&lab, "pi.py", PI);
        let mut running = start(&lab, "python3", &["pi.py", "1500"]);
        through(&mut lab, &mut running, |lab, step| read(lab, "spigot").len() > 100 + 100 * step as usize, done);
        finish(&lab, &mut running, done);
        let machin = read(&lab, "machin");
        assert_eq!(machin.len(), 1500);
        assert_eq!(&machin[..31], "3141592653589793238462643383279");
        assert_eq!(machin, read(&lab, "spigot"), "the two ways to compute pi differ");
    }

    fn bash_with_children_and_a_pipeline() {
        let mut lab = Lab::new("bash");
        write(&lab, "work.sh", SHELL);
        let mut running = start(&lab, "bash", &["work.sh"]);
        through(&mut lab, &mut running, |lab, step| lines(lab, "left") > 30 + 40 * step as usize, done);
        finish(&lab, &mut running, done);
        let listing = |word: &str, count: u64, value: fn(u64) -> u64| {
            (0..count).map(|n| format!("{word} {}\n", value(n))).collect::<String>()
        };
        assert_eq!(read(&lab, "left"), listing("left", 250, |n| n));
        assert_eq!(read(&lab, "right"), listing("right", 200, |n| n));
        assert_eq!(read(&lab, "piped"), listing("PIPED", 300, |n| n * n));
        assert_eq!(read(&lab, "main"), listing("main", 300, |n| n));
        assert_eq!(read(&lab, "codes"), "a 3\nb 4\nc 0\nd 0\n");
        assert_eq!(read(&lab, "caught"), "caught while at two\n");
        assert_eq!(lab.log(), "", "bash complained");
    }

    fn perl_chain_of_hashes() {
        let mut lab = Lab::new("perl");
        write(&lab, "chain.pl", CHAIN);
        let mut running = start(&lab, "perl", &["chain.pl", "60000", "1"]);
        through(&mut lab, &mut running, |lab, step| lines(lab, "chain") > 100 + 100 * step as usize, done);
        finish(&lab, &mut running, done);
        plainly(&lab, "perl", &["chain.pl", "60000", "0"]);
        assert!(read(&lab, "chain") == read(&lab, "reference"), "the chain of hashes is another one");
        assert_eq!(lab.log(), "", "perl complained");
    }

    fn sort_of_a_large_file() {
        let mut lab = Lab::new("sort");
        write(&lab, "input", &numbers(900_000));
        std::fs::create_dir(lab.path("temporary")).expect("folder");
        write(&lab, "sort.sh", "export LC_ALL=C\nsort -g --parallel=2 -S 4M -T temporary -o $1 input && touch done");
        let mut running = start(&lab, "bash", &["sort.sh", "sorted"]);
        let temporary = |lab: &Lab| std::fs::read_dir(lab.path("temporary")).map_or(0, |entries| entries.count() as u32);
        through(&mut lab, &mut running, |lab, step| temporary(lab) > 1 + 2 * step, done);
        finish(&lab, &mut running, done);
        assert_eq!(temporary(&lab), 0, "sort left temporary files");
        plainly(&lab, "bash", &["sort.sh", "reference"]);
        let same = std::fs::read(lab.path("sorted")).expect("sorted") == std::fs::read(lab.path("reference")).expect("reference");
        assert!(same, "the sorted file differs");
        assert_eq!(lab.log(), "", "sort complained");
    }

    fn make_with_two_compilers() {
        let mut lab = Lab::new("make");
        sources(&lab, 24);
        let mut running = start(&lab, "make", &["-j2", "-C", "tree"]);
        let folder = lab.path("tree");
        through(&mut lab, &mut running, |_, step| objects(&folder) > 3 + 4 * step as usize, done);
        finish(&lab, &mut running, done);
        let whole = plainly(&lab, "bash", &["-c", "tree/program"]);
        plainly(&lab, "bash", &["-c", "cd tree && rm program *.o && gcc -O0 -fwrapv -o program *.c"]);
        assert_eq!(whole, plainly(&lab, "bash", &["-c", "tree/program"]), "the program computes something else");
        assert!(!lab.log().contains("Error"), "make complained: {}", lab.log());
    }

    /// sqlite3 reads its statements from a FIFO that it holds itself, so that nobody outside is tied to it.
    fn sqlite_with_an_open_transaction() {
        let mut lab = Lab::new("sqlite");
        plainly(&lab, "mkfifo", &["input"]);
        write(&lab, "work.sh", "exec 3<>input; exec sqlite3 -batch -bail data.db <&3");
        let mut running = start(&lab, "bash", &["work.sh"]);
        let say = |lab: &Lab, text: &str| std::fs::write(lab.path("input"), text).expect("statement");
        let insert = |from: u32| format!(
            "with recursive n(i) as (select {from} union all select i + 1 from n where i < {from} + 999) insert into t select i, i * i, hex(randomblob(40)) from n; select writefile('mark-{from}', 'x');\n"
        );
        say(&lab, "create table t(i integer primary key, square integer, text); begin immediate;\n");
        through(&mut lab, &mut running, |lab, step| {
            let from = step * 1000 + 1;
            if !lab.path(&format!("asked-{from}")).exists() {
                write(lab, &format!("asked-{from}"), "");
                say(lab, &insert(from));
            }
            lab.path(&format!("mark-{from}")).exists()
        }, done);
        assert_eq!(plainly(&lab, "sqlite3", &["data.db", "select count(*) from t"]).trim(), "0", "the transaction is not open");
        let other = std::process::Command::new(installed("sqlite3")).args(["data.db", "insert into t values(0, 0, '')"])
            .current_dir(lab.path("")).output().expect("sqlite3");
        assert!(String::from_utf8_lossy(&other.stderr).contains("locked"), "the lock is lost: {other:?}");
        say(&lab, &insert(3001));
        say(&lab, "commit; select writefile('done', 'x');\n.quit\n");
        finish(&lab, &mut running, done);
        assert_eq!(plainly(&lab, "sqlite3", &["data.db", "pragma integrity_check"]).trim(), "ok");
        let sums = plainly(&lab, "sqlite3", &["data.db", "select count(*), sum(i), sum(square = i * i), sum(length(text)) from t"]);
        assert_eq!(sums.trim(), "4000|8002000|4000|320000");
    }

    fn two_hundred_threads() {
        let mut lab = Lab::new("threads");
        let mut running = lab.fixture("threads", &["200"]);
        through(&mut lab, &mut running, |_, _| true, |lab| lab.path("x.result").exists());
        lab.go_and_verify(running, WORK);
        lab.nothing_left();
    }

    /// Not one of a kind but all at once: nothing of it may be lost over two restores.
    fn busy_with_everything() {
        let mut lab = Lab::new("busy");
        let mut running = lab.fixture("busy", &[]);
        let mut begin = std::time::Instant::now();
        through(&mut lab, &mut running, |_, _| {
            let ran = until(std::time::Duration::from_millis(300), || false) || begin.elapsed().as_millis() > 250;
            begin = std::time::Instant::now();
            ran
        }, |lab| lab.path("x.result").exists());
        assert!(observe::state(running.pid).is_some());
        lab.go_and_verify(running, WORK);
        lab.nothing_left();
    }
}
