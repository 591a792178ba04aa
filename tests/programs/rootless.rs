//! What an ordinary user makes without any help of root.

use super::installed;
use crate::lab::{Lab, SOON, observe, until};
use std::fs;
use std::io::Write;
use std::os::unix::fs::chown;

const NOBODY: u32 = 65534;

/// A shell that does what is written into a FIFO, and a loop beside it.
const SHELL: &str = r#"
mkfifo commands
exec 9<> commands
(while :; do n=$((n + 1)); echo $n > count; sleep 0.02; done) &
while read -r line <&9; do eval "$line" > draft 2>&1; mv draft answer; done
"#;

/// Who and what is there, as it is seen inside.
const LOOK: &str = "id -u; id -g; id -G; tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map; cat /proc/self/setgroups; \
    grep Cap /proc/self/status; ps -o pid=,ppid=,user=,comm= -p 1,3; stat -c '%u %g %n' count /; \
    findmnt -nr -o TARGET,FSTYPE | sort; readlink /proc/self/ns/* | sed 's/:.*//' | sort | uniq -c";

/// `depth` times `unshare -Urpf --mount-proc`, from its outer process on.
fn container(depth: usize) {
    let mut lab = Lab::new("rootless-user");
    let home = tempfile::Builder::new().prefix("meio-rootless-").tempdir_in("/tmp").expect("folder");
    chown(home.path(), Some(NOBODY), Some(NOBODY)).expect("chown");
    let path = |name: &str| home.path().join(name);
    let read = |name: &str| fs::read_to_string(path(name)).unwrap_or_default();
    let answer = |command: &str| {
        let _ = fs::remove_file(path("answer"));
        writeln!(fs::OpenOptions::new().write(true).open(path("commands")).expect("FIFO"), "{command}").expect("write");
        assert!(until(SOON, || path("answer").exists()), "the shell does not answer");
        read("answer")
    };
    // The outer process stays in a folder that is shut to it.
    let levels = "unshare -Urpf --mount-proc ".repeat(depth);
    let start =
        format!("exec setpriv --reuid=nobody --regid={NOBODY} --clear-groups {levels} bash -c 'cd {}; {SHELL}'", home.path().display());
    let mut running = lab.spawn(&installed("bash"), &["-c", &start]);
    assert!(until(SOON, || !read("count").is_empty() || observe::state(running.pid).is_none()));
    if observe::state(running.pid).is_none_or(|s| s == 'Z') && lab.log().contains("unshare failed") {
        println!("skipped: no user namespaces for ordinary users");
        return;
    }
    let before = answer(LOOK);
    let above = if depth == 1 { NOBODY } else { 0 };
    assert!(before.starts_with(&format!("0\n0\n0\n 0 {above} 1\n 0 {above} 1\ndeny\n")), "{before}");
    assert!(before.matches(" root     bash\n").count() == 2, "{before}");
    assert_eq!(answer("kept='what was said before'; echo $$"), "1\n");
    lab.dump(&mut running, &[]);
    for _ in 0..2 {
        let outer = observe::tree(running.pid);
        let image = lab.dump(&mut running, &["--kill"]);
        let count: u64 = read("count").trim().parse().unwrap_or(0);
        lab.restore(&image, &mut running, &[]);
        assert_eq!(observe::tree(running.pid)[..=depth], outer[..=depth], "the numbers outside are others");
        let runs_on = || read("count").trim().parse::<u64>().is_ok_and(|n| n > count + 3);
        assert!(until(SOON, runs_on), "the loop does not go on");
        assert_eq!(answer(LOOK), before);
    }
    assert_eq!(answer("echo $kept $!; kill $!; wait $!; echo $?"), "what was said before 3\n143\n");
    // It rules where it ruled before, and nowhere else.
    assert_eq!(answer("mount -t tmpfs none /mnt && umount /mnt && hostname x 2> /dev/null || echo no"), "no\n");
    assert_eq!(answer("unshare -U true && echo made"), "made\n");
    writeln!(fs::OpenOptions::new().write(true).open(path("commands")).expect("FIFO"), "exit 7").expect("write");
    assert!(until(SOON, || observe::state(running.pid).is_none_or(|s| s == 'Z')), "it does not end");
    running.wait();
    lab.nothing_left();
}

crate::alone! {
    fn a_container_of_an_ordinary_user() {
        container(1);
    }

    fn a_container_in_a_container_of_an_ordinary_user() {
        container(2);
    }
}
