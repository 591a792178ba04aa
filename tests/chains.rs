//! Images with a parent: what changes between two dumps is stored, all else is found in the images before.

use crate::lab::{Lab, Outcome, Running, SOON, observe, until};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeValLike;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Two processes with memory of every kind, which they change when they are told to: private and shared, over a file and
/// in a memfd, given back, mapped anew, punched out. After each step each of them says what it has: a hash of all.
const PROGRAM: &str = include_str!("chains/program.c");

struct Chain {
    lab: Lab,
    running: Running,
    images: Vec<PathBuf>,
    said: Vec<[String; 2]>,
}

fn built(lab: &Lab) -> PathBuf {
    let (source, program) = (lab.path("program.c"), lab.path("program"));
    fs::write(&source, PROGRAM).expect("source");
    let out = Command::new("gcc").args(["-O1", "-Wall", "-Werror", "-o"]).arg(&program).arg(&source).output().expect("gcc starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    program
}

impl Chain {
    fn new(name: &str, pages: u32) -> Chain {
        let lab = Lab::new(name);
        let running = lab.ready(&built(&lab), &[&pages.to_string()]);
        Chain { lab, running, images: Vec::new(), said: Vec::new() }
    }

    /// Tells both processes to make a step and returns what they have then.
    fn step(&self, number: usize) -> [String; 2] {
        ["a", "b"].map(|who| {
            fs::write(self.lab.path(&format!("x.{who}.do.{number}")), "").expect("file");
            let done = self.lab.path(&format!("x.{who}.done.{number}"));
            let log = || self.lab.log();
            assert!(until(SOON, || done.exists()), "step {number} of {who} is not done; {:?} {}", observe::state(self.running.pid), log());
            let said = fs::read_to_string(&done).expect("file");
            fs::remove_file(done).expect("file");
            fs::remove_file(self.lab.path(&format!("x.{who}.do.{number}"))).expect("file");
            said
        })
    }

    /// What both have now.
    fn look(&self) -> [String; 2] {
        self.step(100_000)
    }

    /// Changes the memory and dumps it upon the last image, or as the first.
    fn grow(&mut self, arguments: &[&str]) -> PathBuf {
        self.step(self.images.len() + 1);
        let said = self.look();
        let parent = self.images.last().map(|path| path.to_str().expect("path").to_owned());
        let mut all = arguments.to_vec();
        all.extend(parent.iter().flat_map(|path| ["--parent", path]));
        let image = self.lab.dump(&mut self.running, &all);
        self.images.push(image.clone());
        self.said.push(said);
        image
    }

    /// Kills what runs, restores an image, and compares what it has with what was said when the image was made. Returned is
    /// how long the restore took, and how long it had a processor, in milliseconds.
    fn comes_back(&mut self, image: &Path, number: usize) -> [f64; 2] {
        self.comes_back_by(image, number, &[])
    }

    fn comes_back_by(&mut self, image: &Path, number: usize, options: &[&str]) -> [f64; 2] {
        self.running.kill();
        let before = processor_time();
        let done = self.lab.run(self.lab.meio(&[&["restore", "-d", text(image)], options].concat()));
        let used = processor_time() - before;
        assert_eq!((done.code, done.stdout), (0, format!("{}\n", self.running.pid)), "{}", done.stderr);
        assert_eq!(self.look(), self.said[number], "image {number} has not come back");
        [(done.time.1 - done.time.0) as f64 / 1e6, used]
    }

    /// Kills what runs, restores an image, and says how often meio has read from a file for that.
    fn reads(&mut self, image: &Path) -> u64 {
        self.running.kill();
        let mut command = self.lab.meio(&["restore", "-d", text(image)]);
        let mut meio = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("meio starts");
        waitid(Id::Pid(Pid::from_raw(meio.id() as i32)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).expect("wait");
        let io = fs::read_to_string(format!("/proc/{}/io", meio.id())).expect("what meio has read");
        assert!(meio.wait().expect("wait").success());
        let reads = io.lines().find_map(|line| line.strip_prefix("syscr: "));
        reads.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no reads are counted: {io}"))
    }

    fn end(mut self) {
        self.running.kill();
        self.lab.nothing_left();
    }
}

/// Of all children that have ended, in milliseconds.
fn processor_time() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    [usage.user_time(), usage.system_time()].iter().map(|t| t.num_microseconds() as f64 / 1e3).sum()
}

fn json(lab: &Lab, arguments: &[&str]) -> (i32, Value) {
    let done = lab.run(lab.meio(&[arguments, &["--json"]].concat()));
    let line = done.stdout.lines().last().unwrap_or_else(|| panic!("no JSON: {done:?}"));
    (done.code, serde_json::from_str(line).expect("JSON"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("path")
}

/// It fails with exit code 14 and these words, and nothing has been started.
fn refused(lab: &Lab, arguments: &[&str], words: &str) {
    let before = observe::processes().len();
    let (code, error) = json(lab, arguments);
    let message = error["message"].as_str().unwrap_or_default();
    assert_eq!(code, 14, "{error}");
    assert!(message.contains(words), "{message:?} does not say {words:?}");
    assert_eq!(observe::processes().len(), before, "something was started");
}

fn size(image: &Path) -> u64 {
    fs::metadata(image).expect("image").len()
}

crate::alone! {
    /// Each image of a chain brings back what the tree was when it was made, the last one first.
    fn every_image_of_a_chain_comes_back() {
        let mut chain = Chain::new("chain", 512);
        for n in 0..7 {
            chain.grow(if n % 2 == 0 { &["--compress", "none"] } else { &[] });
        }
        let whole = size(&chain.images[0]);
        assert!(chain.images[1..].iter().all(|image| size(image) < whole / 2), "a child is as large as its parent");
        let (code, report) = json(&chain.lab, &["verify", text(&chain.images[6])]);
        assert_eq!((code, report["parents"].as_array().map(Vec::len)), (0, Some(6)), "{report}");
        assert!(report["pages"]["parent"].as_u64() > Some(400), "{report}");
        // What is as it was is named together: two processes and some objects, whatever their size.
        assert!(report["blocks"].as_u64() < Some(20), "{report}");
        for number in [6, 3, 1, 0, 5] {
            let image = chain.images[number].clone();
            chain.comes_back(&image, number);
            chain.comes_back_by(&image, number, &["--lazy"]);
        }
        chain.end();
    }

    /// A tree that has been restored goes on with the chain that it came from; numbers of memory objects may differ.
    fn a_restored_tree_goes_on_with_its_chain() {
        let mut chain = Chain::new("chain-restored", 256);
        for n in 0..6 {
            let image = chain.grow(&[]);
            chain.comes_back_by(&image, n, if n % 2 == 0 { &[] } else { &["--lazy"] });
        }
        let flat = chain.lab.dump(&mut chain.running, &[]);
        assert!(size(&chain.images[5]) < size(&flat) / 2, "nothing was found in the parent");
        chain.end();
    }

    /// What is merged is what the youngest was, alone.
    fn a_merged_chain_comes_back() {
        let mut chain = Chain::new("merge", 512);
        (0..6).for_each(|_| drop(chain.grow(&[])));
        let lab = &chain.lab;
        let [flat, raw, two] = ["images/flat.meio", "images/raw.meio", "images/two.meio"].map(|name| lab.path(name));
        let all: Vec<&str> = [3, 5, 0, 1].map(|n| text(&chain.images[n])).into();
        let (code, said) = json(lab, &["merge", text(&chain.images[5]), "-o", text(&flat)]);
        assert_eq!((code, said["merged"].as_array().map(Vec::len)), (0, Some(6)), "{said}");
        let (code, said) = json(lab, &[&["merge"], all.as_slice(), &["-o", text(&raw), "--compress", "none"]].concat());
        assert_eq!((code, said["image_bytes"].as_u64()), (0, Some(size(&raw))), "{said}");
        let streamed = lab.run(lab.meio(&["merge", text(&chain.images[1]), "-o", "-"]));
        assert_eq!(streamed.code, 0, "{}", streamed.stderr);
        fs::copy(lab.path("stdout"), &two).expect("image");
        for (image, parents) in [(&flat, 0), (&raw, 0), (&two, 0), (&chain.images[5], 5)] {
            let (code, report) = json(lab, &["verify", text(image)]);
            assert_eq!((code, report["parents"].as_array().map(Vec::len)), (0, Some(parents)), "{report}");
        }
        refused(lab, &["merge", text(&flat), text(&chain.images[5]), "-o", "x"], "no chain that holds all of");
        let done = lab.run(lab.meio(&["merge", text(&chain.images[5]), "-o", text(&chain.images[2])]));
        assert_eq!(done.code, 2, "{done:?}");
        // What was merged is not needed any more, and may be replaced.
        let last = chain.images[5].clone();
        let done = lab.run(lab.meio(&["merge", text(&last), "-o", text(&last)]));
        assert_eq!(done.code, 0, "{done:?}");
        chain.images[..5].iter().for_each(|image| fs::remove_file(image).expect("image"));
        for (image, number) in [(flat, 5), (raw, 5), (two, 1), (last, 5)] {
            chain.lab.expect(&image);
            chain.comes_back(&image, number);
        }
        chain.end();
    }

    /// Streams, other folders, and what looks into images without running them.
    fn chains_are_followed_by_every_command() {
        let mut chain = Chain::new("chain-commands", 64);
        (0..4).for_each(|_| drop(chain.grow(&[])));
        let last = chain.images[3].clone();
        let lab = &chain.lab;
        let (code, seen) = json(lab, &["inspect", text(&last)]);
        assert_eq!((code, seen["parent"]["file"].as_str()), (0, Some("3.meio")), "{}", seen["parent"]);
        let done = lab.run(lab.meio(&["inspect", text(&last)]));
        assert!(done.stdout.contains("parent   3.meio"), "{}", done.stdout);
        let done = lab.run(lab.meio(&["inspect", text(&last), "--stacks"]));
        assert!(done.code == 0 && done.stdout.contains("nanosleep"), "{done:?}");
        let done = lab.run(lab.meio(&["graph", text(&last), "--format", "json"]));
        assert_eq!(done.code, 0, "{done:?}");
        let mut streamed = lab.meio(&["verify", "-"]);
        streamed.stdin(fs::File::open(&last).expect("image"));
        let done = lab.run(streamed);
        assert_eq!(done.code, 0, "{done:?}");
        // The core holds the memory of the youngest: the pages that say who it is are in the first image.
        let done = lab.run(lab.meio(&["core", text(&last), "-o", text(&lab.path("cores"))]));
        assert_eq!(done.code, 0, "{done:?}");
        let has = |path: &Path, what: &[u8]| fs::read(path).is_ok_and(|bytes| bytes.windows(what.len()).any(|w| w == what));
        let cores: Vec<PathBuf> = fs::read_dir(lab.path("cores")).expect("folder").flatten().map(|e| e.path()).collect();
        assert_eq!(cores.len(), 2);
        assert!(cores.iter().all(|core| has(core, b"written once, in the beginning")));
        assert!(!has(&last, b"written once, in the beginning"));
        // From a stream, parents are looked for in the current folder.
        chain.running.kill();
        let pidfile = chain.lab.path("pid");
        let mut command = chain.lab.meio(&["restore", "-d", "-", "--pidfile", text(&pidfile)]);
        command.stdin(fs::File::open(&last).expect("image"));
        let done = chain.lab.run(command);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(chain.look(), chain.said[3]);
        chain.end();
    }

    /// Whatever is wrong with a parent is said with its name, before anything is touched.
    fn parents_that_will_not_do() {
        let mut chain = Chain::new("chain-parents", 64);
        (0..3).for_each(|_| drop(chain.grow(&[])));
        let [first, second, third] = [0, 1, 2].map(|n| chain.images[n].clone());
        let pid = chain.running.pid.to_string();
        let dump = |parent: &Path| ["dump".to_owned(), pid.clone(), "-o".into(), "next.meio".into(), "--parent".into(), text(parent).into()];
        let both = |lab: &Lab, words: &str| {
            let before = observe::snapshot(&observe::tree(chain.running.pid));
            refused(lab, &dump(&third).each_ref().map(String::as_str), words);
            refused(lab, &["restore", "-d", "--pid-namespace", text(&third)], words);
            refused(lab, &["restore", "-d", "--pid-namespace", "--lazy", text(&third)], words);
            refused(lab, &["verify", text(&third)], words);
            let after = observe::snapshot(&observe::tree(chain.running.pid));
            assert_eq!(observe::difference(&before, &after), "", "the tree was touched");
        };
        let lab = &chain.lab;
        let good = fs::read(&first).expect("image");
        fs::remove_file(&first).expect("image");
        both(lab, "1.meio is missing");
        refused(lab, &dump(&lab.path("images/none")).each_ref().map(String::as_str), "images/none: it is missing");
        fs::write(&first, &good[..good.len() / 2]).expect("image");
        both(lab, "1.meio: image cut off");
        let mut changed = good.clone();
        let at = changed.len() - 60;
        changed[at] ^= 1;
        fs::write(&first, &changed).expect("image");
        both(lab, "1.meio: image damaged");
        fs::write(&first, fs::read(&second).expect("image")).expect("image");
        both(lab, "1.meio is another image");
        fs::write(&first, &good).expect("image");
        // The same, elsewhere: beside the child counts, whatever else may lie where it was.
        fs::create_dir(lab.path("moved")).expect("folder");
        for image in [&first, &second, &third] {
            fs::copy(image, lab.path("moved").join(image.file_name().expect("name"))).expect("image");
        }
        fs::write(&second, b"something else").expect("image");
        both(lab, "2.meio: image cut off");
        let moved = lab.path("moved/3.meio");
        assert_eq!(lab.run(lab.meio(&["verify", text(&moved)])).code, 0);
        fs::copy(lab.path("moved/2.meio"), &second).expect("image");
        // Of another process.
        let mut other = lab.spawn(Path::new("/bin/sleep"), &["1000"]);
        refused(lab, &["dump", &other.pid.to_string(), "-o", "next.meio", "--parent", text(&third)], "it is of another process");
        other.kill();
        let done = lab.run(lab.meio(&["dump", &pid, "-o", text(&second), "--parent", text(&third)]));
        assert!(done.code == 2 && done.stderr.contains("which it builds upon"), "{done:?}");
        let moved = moved.clone();
        chain.comes_back(&moved, 2);
        chain.end();
    }

    /// Interrupted or killed at any instant: no image, no part of one, and the tree runs.
    fn whoever_is_stopped_leaves_nothing() {
        let mut chain = Chain::new("chain-stopped", 4096);
        (0..2).for_each(|_| drop(chain.grow(&[])));
        let (pid, parent) = (chain.running.pid.to_string(), text(&chain.images[1]).to_owned());
        let lab = &chain.lab;
        let mut came = 0;
        for (n, signal) in [Signal::SIGINT, Signal::SIGKILL].into_iter().cycle().take(12).enumerate() {
            for command in [["dump", pid.as_str(), "--parent"].as_slice(), &["merge"]] {
                let image = lab.path(&format!("images/stopped-{n}"));
                let mut meio = lab.meio(&[command, &[&parent, "-q", "-o", text(&image)]].concat()).spawn().expect("meio starts");
                std::thread::sleep(Duration::from_millis(3 * n as u64));
                kill(Pid::from_raw(meio.id() as i32), signal).expect("kill");
                let status = meio.wait().expect("wait");
                came += u32::from(image.exists());
                assert!(status.success() == image.exists() || signal == Signal::SIGKILL, "{status} {}", image.exists());
                let _ = fs::remove_file(&image);
                let names: Vec<_> = fs::read_dir(lab.path("images")).expect("folder").flatten().map(|e| e.file_name()).collect();
                assert_eq!(names.len(), 2, "{names:?}");
            }
        }
        println!("{came} of 24 were quicker than the signal");
        assert_eq!(chain.look(), chain.said[1]);
        let (last, number) = (chain.images[1].clone(), 1);
        chain.comes_back(&last, number);
        chain.end();
    }

    /// Redis goes back to what it had, and to what it had before that.
    fn redis_has_what_it_had() {
        let mut lab = Lab::new("chain-redis");
        let socket = lab.path("redis.sock");
        let options = ["--port", "0", "--unixsocket", text(&socket), "--save", "", "--appendonly", "no"];
        let mut running = lab.spawn(Path::new("/usr/bin/redis-server"), &options);
        let ask = |question: &str| {
            let done = Command::new("/usr/bin/redis-cli").args(["-s", text(&socket), "eval", question, "0"]).output().expect("redis-cli");
            String::from_utf8_lossy(&done.stdout).trim().to_owned()
        };
        assert!(until(SOON, || ask("return 7") == "(integer) 7" || ask("return 7") == "7"), "{}", lab.log());
        let digest = || {
            let said = ask("local h = '' for i = 1, 20000 do h = redis.sha1hex(h .. (redis.call('get', 'k' .. i) or '-')) end return h");
            assert_eq!(said.trim_matches('"').len(), 40, "{said}");
            said
        };
        let mut made: Vec<(PathBuf, String)> = Vec::new();
        for work in [
            "for i = 1, 18000 do redis.call('set', 'k' .. i, string.rep(i .. '.', 60)) end",
            "for i = 1, 300 do redis.call('append', 'k' .. i * 7, 'more') end redis.call('set', 'k19000', 'new')",
            "for i = 500, 900 do redis.call('del', 'k' .. i) end for i = 1, 50 do redis.call('set', 'k' .. i, i) end",
        ] {
            ask(work);
            let said = digest();
            let parent = made.last().map(|(image, _)| text(image).to_owned());
            let arguments: Vec<&str> = parent.iter().flat_map(|path| ["--parent", path]).collect();
            made.push((lab.dump(&mut running, &arguments), said));
        }
        assert!(size(&made[2].0) < size(&made[0].0) / 2);
        for (image, said) in made.iter().rev() {
            running.kill();
            lab.restore(image, &mut running, &[]);
            assert_eq!(digest(), *said, "{}", image.display());
        }
        running.kill();
        lab.nothing_left();
    }

    /// A long chain, its restore beside that of the same tree from one image. `CHAINS=all` makes it a thousand images long, `CHAINS=N` N.
    fn a_long_chain_is_followed_quickly() {
        let (length, pages) = match std::env::var("CHAINS").as_deref() {
            Ok("all") => (1000, 16384),
            Ok(n) => (n.parse().expect("a number of images"), 16384),
            Err(_) => (40, 2048),
        };
        let mut chain = Chain::new("chain-long", pages);
        (0..length).for_each(|_| drop(chain.grow(&[])));
        let (last, flat) = (chain.images[length - 1].clone(), chain.lab.path("images/flat.meio"));
        let merged = chain.lab.run(chain.lab.meio(&["merge", text(&last), "-o", text(&flat)]));
        assert_eq!(merged.code, 0, "{merged:?}");
        chain.lab.expect(&flat);
        let time = |done: &Outcome| (done.time.1 - done.time.0) as f64 / 1e6;
        println!("chains: merge of {length}: {:.0} ms", time(&merged));
        let mut took = [const { Vec::new() }; 2];
        for _ in 0..if length < 100 { 3 } else { 11 } {
            for (n, image) in [&last, &flat].into_iter().enumerate() {
                took[n].push(chain.comes_back(image, length - 1));
            }
        }
        for (n, what) in ["", " of processor time"].into_iter().enumerate() {
            let [chained, alone] = took.each_ref().map(|times| {
                let mut times: Vec<f64> = times.iter().map(|t| t[n]).collect();
                times.sort_by(f64::total_cmp);
                times[times.len() / 2]
            });
            let ratio = chained / alone;
            println!("chains: restore of a chain of {length}: {chained:.1} ms{what}, of the same from one image: {alone:.1} ms, {ratio:.2} times");
        }
        // Of an image its head, its end, and what lies between its first and its last block that is needed.
        let [short, long] = [length / 2, length - 1].map(|n| chain.reads(&chain.images[n].clone()));
        let each = (long as f64 - short as f64) / (length - 1 - length / 2) as f64;
        println!("chains: reads for an image of the chain: {each:.1}");
        assert!(each < 8.0, "{short} reads for {} images, {long} for {length}", length / 2 + 1);
        println!("chains: lazily: {:.1} ms", chain.comes_back_by(&last, length - 1, &["--lazy"])[0]);
        chain.end();
    }
}
