//! What a witness knows of each service, and what it answers: questions and the time go in, and nothing else happens here.
//!
//! ```text
//! who asks for which                        when it is granted
//! the one that is its own                   always; its lease begins anew
//! primary: a higher one of its watch        always
//! primary: a higher one, of another watch   when the lease of who has the last one is over
//! standby: the next one of its watch        when its primary has the last one, and the lease of that is over
//! ```
//!
//! Several who stand by are one end: the one asks that has the votes of the others ([`crate::watch::state::Votes`]), which no two have at
//! a time. What one of them was granted that has given its votes back is the next one's.
//!
//! That no two have the same generation is what keeps two from answering; this needs no clock. Leases only say whom to prefer: a
//! primary that lives is not overtaken. They are not durable; after a new start whoever had one is taken to have it still.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// No lease is longer.
pub const LONGEST: Duration = Duration::from_secs(3600);

/// An end of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Role {
    /// Where the tree was when the watch began.
    Primary = 1,
    /// Where it goes on.
    Standby = 2,
}

impl Role {
    /// As a byte.
    pub fn of(byte: u8) -> Option<Role> {
        [Role::Primary, Role::Standby].into_iter().find(|role| *role as u8 == byte)
    }
}

/// To whom a generation belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// Which of the watches of that name.
    pub watch: u128,
    /// Which of its ends.
    pub role: Role,
}

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Who asks.
    pub who: Holder,
    /// Which he wants; 0: he only wants to know.
    pub generation: u64,
    /// For how long nobody else may have the next one.
    pub lease: Duration,
}

/// What comes of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// It is his.
    Granted = 1,
    /// It is not.
    Refused = 2,
    /// It would be, but cannot be made durable.
    Failed = 3,
}

impl Verdict {
    /// As a byte.
    pub fn of(byte: u8) -> Option<Verdict> {
        [Verdict::Granted, Verdict::Refused, Verdict::Failed].into_iter().find(|verdict| *verdict as u8 == byte)
    }
}

/// With how things stand then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// What comes of it.
    pub verdict: Verdict,
    /// The last generation, and whose it is; `None` when nobody ever had one.
    pub entry: Option<Entry>,
    /// What is left of its lease.
    pub left: Duration,
}

/// What is durable of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The last generation,
    pub generation: u64,
    /// and to whom it belongs.
    pub holder: Holder,
    /// The longest lease that he has had, in milliseconds.
    pub lease_ms: u64,
}

/// All services.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    entries: BTreeMap<String, Entry>,
    /// When leases end.
    until: BTreeMap<String, Duration>,
    /// What was there before what is not durable yet, and until when its lease went.
    before: Vec<(String, Option<Entry>, Duration)>,
}

impl Ledger {
    /// Of a witness that starts now with what is durable: who had a lease may have it still.
    pub fn new(entries: BTreeMap<String, Entry>, now: Duration) -> Ledger {
        let until = entries.iter().map(|(name, entry)| (name.clone(), now + Duration::from_millis(entry.lease_ms).min(LONGEST))).collect();
        Ledger { entries, until, before: Vec::new() }
    }

    /// What is to be durable.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// Of one service.
    pub fn entry(&self, name: &str) -> Option<Entry> {
        self.entries.get(name).copied()
    }

    /// Whether something has changed that is to be durable before anybody is told.
    pub fn is_unsettled(&self) -> bool {
        !self.before.is_empty()
    }

    /// The services of which that is so.
    pub fn unsettled(&self) -> BTreeSet<String> {
        self.before.iter().map(|(name, ..)| name.clone()).collect()
    }

    /// What has changed is durable, or never was.
    pub fn settle(&mut self, durable: bool) {
        for (name, before, until) in self.before.drain(..).rev().filter(|_| !durable) {
            self.until.insert(name.clone(), until);
            match before {
                Some(entry) => drop(self.entries.insert(name, entry)),
                None => drop(self.entries.remove(&name)),
            }
        }
    }

    /// Answers. What it changes is to be made durable before that is said: see [`Ledger::settle`].
    pub fn ask(&mut self, name: &str, question: &Question, now: Duration) -> Answer {
        let entry = self.entries.get(name).copied();
        let left = self.until.get(name).map_or(Duration::ZERO, |until| until.saturating_sub(now));
        if question.generation == 0 || !may_have(entry, question, left) {
            return Answer { verdict: Verdict::Refused, entry, left };
        }
        let lease = question.lease.min(LONGEST);
        let own = entry.filter(|entry| entry.holder == question.who && entry.generation == question.generation);
        let lease_ms = own.map_or(0, |entry| entry.lease_ms).max(lease.as_millis() as u64);
        let fresh = Entry { generation: question.generation, holder: question.who, lease_ms };
        if entry != Some(fresh) {
            self.before.push((name.to_owned(), entry, now + left));
            self.entries.insert(name.to_owned(), fresh);
        }
        match self.until.get_mut(name) {
            Some(until) => *until = now + lease,
            None => drop(self.until.insert(name.to_owned(), now + lease)),
        }
        Answer { verdict: Verdict::Granted, entry: Some(fresh), left: lease }
    }
}

/// The table above. `left`: of the lease of who has the last one.
fn may_have(entry: Option<Entry>, question: &Question, left: Duration) -> bool {
    let Question { who, generation, .. } = *question;
    let Some(last) = entry else { return who.role == Role::Primary };
    if last.holder == who && last.generation == generation {
        return true;
    }
    let own = last.holder.watch == who.watch;
    match who.role {
        Role::Primary => generation > last.generation && (own || left.is_zero()),
        Role::Standby => own && last.holder.role == Role::Primary && last.generation.checked_add(1) == Some(generation) && left.is_zero(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const PRIMARY: Holder = Holder { watch: 7, role: Role::Primary };
    const STANDBY: Holder = Holder { watch: 7, role: Role::Standby };
    const STRANGER: Holder = Holder { watch: 8, role: Role::Primary };

    fn ask(ledger: &mut Ledger, who: Holder, generation: u64, at: u32) -> Option<u64> {
        let answer = ledger.ask("web", &Question { who, generation, lease: 750 * MS }, at * MS);
        ledger.settle(true);
        let entry = answer.entry.expect("somebody has it");
        assert_eq!(answer.verdict == Verdict::Granted, entry.holder == who && entry.generation == generation);
        (answer.verdict == Verdict::Granted).then_some(generation)
    }

    #[test]
    fn one_has_the_next_one() {
        let mut ledger = Ledger::default();
        let standby = Question { who: STANDBY, generation: 1, lease: MS };
        assert_eq!(ledger.ask("web", &standby, MS).verdict, Verdict::Refused, "it is a primary that begins");
        assert_eq!(ask(&mut ledger, PRIMARY, 4, 0), Some(4));
        assert_eq!(ask(&mut ledger, STANDBY, 5, 749), None, "its lease goes on");
        assert_eq!(ask(&mut ledger, STANDBY, 6, 800), None, "not the next one");
        assert_eq!(ask(&mut ledger, STANDBY, 5, 800), Some(5));
        assert_eq!(ask(&mut ledger, STANDBY, 5, 801), Some(5), "once more");
        assert_eq!(ask(&mut ledger, PRIMARY, 5, 9000), None);
        assert_eq!(ask(&mut ledger, PRIMARY, 4, 9000), None);
        // The other way round.
        assert_eq!(ask(&mut ledger, PRIMARY, 6, 9000), Some(6));
        assert_eq!(ask(&mut ledger, STANDBY, 6, 20_000), None);
        assert_eq!(ask(&mut ledger, PRIMARY, 7, 20_001), Some(7));
    }

    #[test]
    fn another_watch_of_that_name() {
        let mut ledger = Ledger::default();
        assert_eq!(ask(&mut ledger, PRIMARY, 4, 0), Some(4));
        assert_eq!(ask(&mut ledger, STRANGER, 5, 700), None);
        assert_eq!(ask(&mut ledger, PRIMARY, 4, 700), Some(4));
        assert_eq!(ask(&mut ledger, STRANGER, 5, 1449), None);
        assert_eq!(ask(&mut ledger, STRANGER, 5, 1450), Some(5));
        assert_eq!(ask(&mut ledger, PRIMARY, 4, 1451), None);
        assert_eq!(ask(&mut ledger, STANDBY, 6, 9000), None);
    }

    #[test]
    fn a_lease_outlives_a_new_start() {
        let mut ledger = Ledger::default();
        assert_eq!(ask(&mut ledger, PRIMARY, 4, 0), Some(4));
        let mut again = Ledger::new(ledger.entries().clone(), 5000 * MS);
        assert_eq!(ask(&mut again, STANDBY, 5, 5749), None);
        assert_eq!(ask(&mut again, STANDBY, 5, 5750), Some(5));
    }

    #[test]
    fn what_is_not_durable_never_was() {
        let mut ledger = Ledger::default();
        assert_eq!(ask(&mut ledger, PRIMARY, 4, 0), Some(4));
        ledger.ask("web", &Question { who: PRIMARY, generation: 5, lease: MS }, MS);
        ledger.ask("web", &Question { who: PRIMARY, generation: 6, lease: MS }, MS);
        ledger.ask("other", &Question { who: STRANGER, generation: 1, lease: MS }, MS);
        assert!(ledger.is_unsettled());
        ledger.settle(false);
        assert_eq!((ledger.entry("web").map(|e| e.generation), ledger.entry("other")), (Some(4), None));
        // A lease alone is nothing that is to be durable, unless it is longer than all before.
        ledger.ask("web", &Question { who: PRIMARY, generation: 4, lease: 700 * MS }, MS);
        assert!(!ledger.is_unsettled());
        ledger.ask("web", &Question { who: PRIMARY, generation: 4, lease: 800 * MS }, MS);
        assert!(ledger.is_unsettled());
    }

    /// Whatever two ends ask in which order: a generation is never granted to both, and never becomes lower.
    #[test]
    fn never_to_both() {
        let mut dice = crate::migrate::simulate::Dice::new(1);
        for _ in 0..300 {
            let (mut ledger, mut had, mut now) = (Ledger::default(), BTreeMap::new(), Duration::ZERO);
            for _ in 0..100 {
                now += MS * dice.below(400) as u32;
                if dice.chance(50) {
                    ledger = Ledger::new(ledger.entries().clone(), now);
                }
                let who = [PRIMARY, STANDBY, STRANGER][dice.below(3) as usize];
                let last = ledger.entry("web").map_or(0, |entry| entry.generation);
                let question = Question { who, generation: last.saturating_sub(1) + dice.below(4), lease: MS * dice.below(900) as u32 };
                let answer = ledger.ask("web", &question, now);
                let durable = dice.chance(900);
                ledger.settle(durable);
                assert!(ledger.entry("web").map_or(0, |entry| entry.generation) >= last);
                if durable && answer.verdict == Verdict::Granted {
                    assert_eq!(*had.entry(question.generation).or_insert(who), who);
                }
            }
        }
    }
}
