//! The beginning of a watch, or of another meio's part in one: what is there is looked at, and nothing is touched.

use super::again::{Ask, Whom};
use super::beat::Key;
use super::fit;
use super::lease::Lease;
use super::protect::{self, Options};
use super::record::{About, Claim, Record, Store, TreeClaim};
use super::resume::{self, Resumed};
use super::state::{Activation, Guarantee, Primary};
use super::witness::Contact;
use crate::error::Result;
use crate::migrate::files::wanted;
use crate::migrate::plan::Plan;
use crate::migrate::record::Member;
use crate::progress::{Report, phase};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Who is at work on it is not waited for, but children of one that was killed are.
pub fn free(store: &Store, name: &str) -> Result<Claim> {
    const LOOK: Duration = Duration::from_millis(20);
    const MOMENT: Duration = Duration::from_secs(2);
    let until = Instant::now() + MOMENT;
    loop {
        match store.claim(name) {
            Err(_) if Instant::now() < until => std::thread::sleep(LOOK),
            claim => return claim,
        }
    }
}

/// What a watch begins with.
pub struct Start {
    /// Where it is on record,
    pub store: Store,
    /// that nobody else is at work on it,
    pub claim: Arc<Claim>,
    /// or on its tree,
    pub tree: TreeClaim,
    /// and who keeps its addresses.
    pub lease: Lease,
    /// What is asked of who stands by,
    pub ask: Ask,
    /// and who is asked first.
    pub first: Whom,
    /// What another meio has left that was killed.
    pub resumed: Option<Resumed>,
}

impl Start {
    /// Call this early: see [`Lease::take`]. `contact`: what leads to the witness, where that is known; `own`: that nobody else is at
    /// work on it, where that is so already.
    ///
    /// # Errors
    /// With what stands in the way here.
    pub fn look(
        options: &Options,
        begun: Instant,
        (contact, own): (Option<Contact>, Option<Arc<Claim>>),
        report: &mut dyn Report,
        phases: &mut Vec<(&'static str, Duration)>,
    ) -> Result<Start> {
        let store = Store::open()?;
        if own.is_none() {
            drop(free(&store, &options.name)?);
        }
        let there = store.read(&options.name)?;
        let resumed = resume::find(options, there.as_ref())?;
        let held = Some(options.name.as_str()).filter(|_| options.limits.guarantee == Guarantee::Hold);
        let lease = Lease::take(&options.addresses, begun, held, resumed.is_some())?;
        let claim = own.map_or_else(|| store.claim(&options.name).map(Arc::new), Ok)?;
        let tree = store.claim_tree(options.dump.pid, &options.name)?;
        let plan = phase(report, phases, "check", |_| fit::plan(options, resumed.is_some()))?;
        say_what_is_written(&plan, report);
        let (watch, first) = match &resumed {
            // Who has taken over has a higher one than it had here.
            Some(resumed) if resumed.demoted => {
                (resumed.watch, Whom { generation: Some(resumed.generation - 1), ..Whom::back(&resumed.back) })
            }
            Some(resumed) => {
                report.warning("the meio of this watch was killed: what was held is lost, and nobody answers until the standby is asked");
                (resumed.watch, Whom { generation: Some(resumed.generation), ..Whom::back(&resumed.back) })
            }
            None => {
                let least = there.and_then(|record| record.activation).map_or(0, |a| a.generation());
                let watch = u128::from_le_bytes(Key::make()?.bytes()[..16].try_into().unwrap_or_default());
                (watch, Whom { least, fresh: true, ..Whom::default() })
            }
        };
        let known = resumed.as_ref().and_then(|resumed| resumed.back.witness.as_ref());
        let witness = match contact {
            None => protect::contact(options, known, report)?,
            known => known,
        };
        let ask = Ask { options: options.clone(), plan, watch, witness };
        Ok(Start { store, claim, tree, lease, ask, first, resumed })
    }

    /// What the standby's machine calls itself, as far as that is known.
    pub fn host(&self) -> String {
        self.resumed.as_ref().map_or(String::new(), |resumed| resumed.back.host.clone())
    }

    /// Who stands by at each of so many places, as far as that is known, for a primary of this generation.
    pub fn known(&self, count: usize, generation: u64) -> Vec<(String, Whom)> {
        let first = (self.host(), Whom { generation: Some(generation), ..self.first.clone() });
        let each = self.resumed.iter().flat_map(|resumed| &resumed.back.each);
        let each = each.map(|each| {
            let token = Some(each.token.clone()).filter(|token| !token.is_empty());
            let (instance, seat) = (each.instance, each.seat.clone());
            (each.host.clone(), Whom { instance, token, seat, ..first.1.clone() })
        });
        each.chain(std::iter::repeat(first.clone())).take(count).collect()
    }

    /// What is to be on record of a primary of this generation, and its machine.
    pub fn machine(&self, generation: u64) -> (Record, Primary) {
        let Ask { options, watch, .. } = &self.ask;
        let instance = self.resumed.as_ref().map_or(0, |resumed| resumed.instance);
        let overtaken = self.resumed.as_ref().filter(|resumed| resumed.demoted).map(|resumed| resumed.generation);
        let record = Record {
            name: options.name.clone(),
            watch: *watch,
            activation: Some(overtaken.map_or(Activation::Primary { generation, instance }, Activation::Demoted)),
            instance,
            stood: 0,
            vote: None,
            back: self.resumed.as_ref().map(|resumed| resumed.back.clone()),
            door: None,
            about: About {
                tree: Member::of(options.dump.pid).ok(),
                addresses: options.addresses.clone(),
                other: self.resumed.as_ref().map_or_else(String::new, |resumed| resumed.back.host.clone()),
                holds: options.limits.guarantee == Guarantee::Hold,
                standby: false,
            },
        };
        let machine = match (overtaken, &self.resumed) {
            (Some(theirs), _) => Primary::overtaken(theirs, instance, options.limits),
            (None, Some(_)) => Primary::resume(generation, instance, options.limits),
            (None, None) => Primary::begin(generation, options.limits),
        };
        (record, machine)
    }
}

/// A standby has memory that belongs together with files as they were at its epoch, and finds them as they were written last.
fn say_what_is_written(plan: &Plan, report: &mut dyn Report) {
    const SHOWN: usize = 3;
    let written = wanted::written(&plan.tree).unwrap_or_default();
    if written.is_empty() {
        return;
    }
    let mut names: Vec<String> = written.iter().take(SHOWN).map(ToString::to_string).collect();
    names.extend((written.len() > SHOWN).then(|| format!("{} more", written.len() - SHOWN)));
    let names = names.join(", ");
    report.warning(&format!("files that it writes are not held back: after a take-over they may be newer than its memory ({names})"));
}
