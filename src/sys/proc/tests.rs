//! What holds for all parsers: no bytes make one panic.

use std::path::{Path, PathBuf};

use super::{children, fdinfo, limits, maps, sched, stat, status, syscall, timer_list, timers};

/// Parses, and tells whether the text was understood.
type Parser = fn(&[u8]) -> bool;

/// Every parser by the name of its text, with a check that what it finds can be used.
const PARSERS: [(&str, Parser); 11] = [
    ("children", |text| children::parse(text).is_ok()),
    ("fdinfo", |text| {
        let info = fdinfo::parse(text);
        // These parse the values that were kept.
        info.is_ok_and(|info| {
            let _ = info.epoll_targets();
            true
        })
    }),
    ("limits", |text| limits::parse(text).is_ok()),
    ("maps", mappings),
    ("smaps", mappings),
    ("sched", |text| sched::parse(text).nr_switches.is_some()),
    ("stat", |text| stat::parse(text).is_ok()),
    ("status", |text| status::parse(text).is_ok()),
    ("syscall", |text| syscall::parse(text).is_ok()),
    ("timer_list", |text| timer_list::parse(text).is_ok()),
    ("timers", |text| timers::parse(text).is_ok()),
];

fn mappings(text: &[u8]) -> bool {
    maps::parse(text).is_ok_and(|vmas| vmas.iter().all(|vma| vma.start <= vma.end))
}

/// All fixtures with the name of their text: `status-small` and `fdinfo/tun` are of `status` and `fdinfo`.
fn fixtures() -> Vec<(PathBuf, String, Vec<u8>)> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/proc");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    let named = paths.into_iter().map(|path| {
        let inside = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let name = inside.split('/').nth(1).unwrap().split('-').next().unwrap().to_owned();
        let text = std::fs::read(&path).unwrap();
        (path, name, text)
    });
    named.collect()
}

fn parser(name: &str) -> Option<Parser> {
    PARSERS.iter().find(|(of, _)| *of == name).map(|(_, parse)| *parse)
}

/// SplitMix64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// Changes one to four places: another byte, one that texts are made of, a piece cut out or doubled.
fn mutate(text: &mut Vec<u8>, random: &mut Random) {
    const TELLING: &[u8] = b"\n :-/\\()<>.,\t0123456789abcdefx\0\xff";
    for _ in 0..=random.below(4) {
        if text.is_empty() {
            return;
        }
        let at = random.below(text.len());
        let end = (at + random.below(20)).min(text.len());
        match random.below(4) {
            0 => text[at] = random.below(256) as u8,
            1 => text[at] = TELLING[random.below(TELLING.len())],
            2 => drop(text.drain(at..end)),
            _ => {
                let piece = text[at..end].to_vec();
                text.splice(at..at, piece);
            }
        }
    }
}

#[test]
fn every_parser_has_fixtures_and_understands_them() {
    let fixtures = fixtures();
    for (name, parse) in PARSERS {
        assert!(fixtures.iter().filter(|(_, of, _)| of == name).count() > 0, "no fixture of {name}");
        for (path, _, text) in fixtures.iter().filter(|(_, of, _)| of == name) {
            // The one scheduler text that shows nothing, on purpose.
            assert!(parse(text) || path.ends_with("6.1/sched"), "{}", path.display());
        }
    }
}

#[test]
fn no_prefix_panics() {
    for (_, name, text) in fixtures() {
        let Some(parse) = parser(&name) else { continue };
        for end in 0..text.len() {
            parse(&text[..end]);
        }
    }
}

#[test]
fn no_mutation_panics() {
    let mut random = Random(20);
    let (mut understood, mut refused) = (0, 0);
    for (_, name, text) in fixtures() {
        let Some(parse) = parser(&name) else { continue };
        for _ in 0..2000 {
            let mut mutated = text.clone();
            mutate(&mut mutated, &mut random);
            *if parse(&mutated) { &mut understood } else { &mut refused } += 1;
        }
    }
    // Otherwise the mutations would not reach what lies behind the first check.
    assert!(understood > 10_000 && refused > 10_000, "{understood} understood, {refused} refused");
}

#[test]
fn no_text_of_another_file_panics() {
    for (_, _, text) in fixtures() {
        for (_, parse) in PARSERS {
            parse(&text);
        }
    }
}
