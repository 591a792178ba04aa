//! What comes of things that take their time.

use super::super::super::state::{Action, Activation, Cause, Event, Mark, Part};
use super::super::court::Asks;
use super::super::parts::Gate;
use super::world::{Fault, Flaw, MS, What, World};

impl World {
    pub(super) fn happen(&mut self, what: What) {
        match what {
            What::Deliver { path, from, to, frame } => {
                if self.present(to, self.number(to), &what) {
                    if to == 0 {
                        self.tell_primary(from, Event::Heard(path, frame));
                    } else {
                        self.step(to, Event::Heard(path, frame));
                    }
                }
            }
            What::Poll { from, to, poll } => {
                if self.present(to, self.number(to), &what) {
                    self.vote(to, Cause::Heard(from - 1, poll));
                }
            }
            What::Epoch { to, link, generation, mark, ready, part, age } => {
                if link == self.hosts[to].link && self.present(to, self.number(to), &what) {
                    if self.hosts[to].full {
                        return self.step(to, Event::Full);
                    }
                    let host = &mut self.hosts[to];
                    host.images.insert(mark, age);
                    if part == Part::Base {
                        host.base = Some(mark);
                    }
                    self.step(to, Event::Whole { generation, mark, ready, part });
                }
            }
            What::GiveUp { of, link } => {
                if link == self.hosts[of].link && self.hosts[of].linked && self.present(of, self.number(of), &what) {
                    self.step(of, Event::Anew);
                }
            }
            What::Copied { of, mark } => {
                if let Some(fill) = self.hosts[of].fill.as_mut().filter(|fill| fill.mark == Some(mark)) {
                    fill.complete = true;
                    self.ship_all(of, mark);
                }
            }
            What::LinkLost { of, link } => {
                if link == self.hosts[of].link && self.hosts[of].linked {
                    self.hosts[of].linked = false;
                    self.tell_primary(of, Event::LinkLost);
                    self.step(of, Event::LinkLost);
                    let delay = MS * (20 + self.dice.below(500)) as u32;
                    self.at(delay, What::Relink { of });
                }
            }
            What::Relink { of } => {
                self.relink(of);
                if !self.hosts[of].linked {
                    self.at(MS * 300, What::Relink { of });
                }
            }
            What::Gone { of, number } => {
                if of > 0 && self.number(of) != number && !self.cut.contains(&(of, 0)) && self.present(0, self.number(0), &what) {
                    self.tell_primary(of, Event::Gone);
                }
                for to in self.standbys().filter(|_| of == 0) {
                    if !self.cut.contains(&(0, to)) && self.present(to, self.number(to), &What::Gone { of, number }) {
                        self.step(to, Event::Gone);
                    }
                }
            }
            What::Tick { who, number, wake } => {
                if self.present(who, number, &what) {
                    let tick = match who {
                        0 => self.primary.as_mut().map(|p| &mut p.tick),
                        _ => self.hosts[who].process.as_mut().map(|p| &mut p.tick),
                    };
                    // An earlier one may have been wanted since.
                    if tick.is_some_and(|tick| tick.take_if(|tick| *tick == wake).is_some()) {
                        self.step(who, Event::Tick);
                    }
                }
            }
            What::Effect { who, number, action } => {
                if self.present(who, number, &what)
                    && let Some(event) = self.effect(who, action)
                {
                    let delay = self.short();
                    self.at(delay, What::Done { who, number, event });
                }
            }
            What::Done { who, number, event } => {
                if self.present(who, number, &what) {
                    self.step(who, event);
                }
            }
            What::Voted { who, number, vote } => {
                if self.present(who, number, &what) {
                    let done = !self.hosts[who].disk_fails;
                    if done {
                        self.hosts[who].vote = vote;
                    }
                    if vote.is_some() {
                        self.vote(who, Cause::Recorded(done));
                    }
                }
            }
            What::Guardian { number } => {
                let stopped = self.primary.as_ref().is_some_and(|p| p.number == number && p.stopped > self.now);
                if (self.number(0) != number || stopped) && self.gate != Gate::Free {
                    self.address = false;
                }
            }
            What::Court(matter) => self.court(matter),
            What::Call { of } => self.call_back(of),
            What::Restart => self.restart(),
            What::Heal { fault } => self.heal(fault),
            What::Fault => self.any_fault(),
        }
    }

    /// A link, where there can be one. Who has missed too much gets nothing more of the series.
    pub(super) fn relink(&mut self, of: usize) {
        let both = self.primary.as_ref().is_some_and(|p| !p.ended) && self.hosts[of].process.as_ref().is_some_and(|p| !p.ended);
        if !both || self.hosts[of].linked || self.cut.contains(&(0, of)) || self.cut.contains(&(of, 0)) {
            return;
        }
        let (now, number) = (self.now, self.number(of));
        let host = &mut self.hosts[of];
        host.link += 1;
        host.linked = true;
        host.queue = [now; 2];
        let fresh = std::mem::replace(&mut host.met, number) != number;
        let there = host.images.keys().next_back().copied().unwrap_or_default();
        let first = fresh && number <= self.limits.standbys as u64 + 1;
        let half = self.hosts[of].fill.is_some() && self.group.as_ref().is_some_and(|group| !group.is_joined(of - 1));
        if !first && (fresh || half || self.dice.chance(300)) {
            self.hosts[of].fill = None;
            self.tell_primary(of, Event::Anew);
        } else {
            self.ship_all(of, Mark { number: there.number + 1, ..there });
        }
        self.tell_primary(of, Event::Linked);
        self.step(of, Event::Linked);
    }

    /// What it is to have from this epoch on.
    fn ship_all(&mut self, of: usize, from: Mark) {
        for (mark, ready) in self.shipped.clone() {
            if mark >= from && self.hosts[of].linked {
                self.ship(of, mark, ready);
            }
        }
    }

    fn ship(&mut self, to: usize, mark: Mark, ready: bool) {
        let Some(part) = self.part(to, mark) else { return };
        let age = self.captured.get(&mark).copied().unwrap_or(0);
        let slow = if self.hosts[to].slow { MS * (50 + self.dice.below(400)) as u32 } else { self.short() };
        let at = (self.now + slow).max(self.hosts[to].queue[0]);
        self.hosts[to].queue[0] = at;
        let generation = self.primary.as_ref().map_or(1, |p| p.machine.generation());
        let link = self.hosts[to].link;
        if !self.cut.contains(&(0, to)) {
            self.at(at - self.now, What::Epoch { to, link, generation, mark, ready, part, age });
        }
    }

    fn effect(&mut self, who: usize, action: Action) -> Option<Event> {
        Some(match action {
            Action::Record(activation) => {
                if who == 0 {
                    self.primary_record = Some(activation);
                } else if self.hosts[who].disk_fails {
                    return Some(Event::Recorded(false));
                }
                if let Activation::Taken(generation) = activation {
                    let others = self.hosts.iter().filter(|host| host.record == Some(Activation::Taken(generation))).count();
                    if others > 0 {
                        self.wrong("two have the same generation");
                    }
                    self.hosts[who].record = Some(activation);
                }
                Event::Recorded(true)
            }
            Action::Capture(mark) => {
                if !self.tree {
                    return Some(Event::Failed);
                }
                self.captured.insert(mark, self.age);
                for of in self.standbys() {
                    if let Some(fill) = self.hosts[of].fill.as_mut().filter(|fill| fill.mark.is_none() && mark.number > 1) {
                        fill.mark = Some(mark);
                        let delay = MS * self.dice.below(1500) as u32;
                        self.at(delay, What::Copied { of, mark });
                    }
                }
                Event::Captured(mark)
            }
            Action::Ship { mark, ready } => {
                self.shipped.insert(mark, ready);
                for to in self.standbys() {
                    if self.hosts[to].linked {
                        self.ship(to, mark, ready);
                    }
                }
                Event::Sent(mark)
            }
            Action::Demote => {
                (self.gate, self.address) = (Gate::Shut, false);
                Event::Demoted
            }
            Action::Reap => {
                if self.hosts.iter().all(|host| host.runs.is_none())
                    && self.tree
                    && !self.faults.iter().any(|f| matches!(f, Fault::KillHost(_)))
                {
                    self.wrong("what runs nowhere else was ended");
                }
                self.tree = false;
                Event::Finished
            }
            Action::Fence => self.fence(),
            Action::Block => {
                if self.limits.fence && !self.fenced {
                    self.wrong("taken over from a host that was not ended");
                }
                Event::Blocked
            }
            Action::Place(mark) => {
                let images = &self.hosts[who].images;
                let base = self.hosts[who].base;
                let first = base.map_or(1, |base| base.number);
                let all = (first..=mark.number).all(|number| images.contains_key(&Mark { number, ..mark }));
                let half = base.is_some_and(|base| self.wholes.get(&(who, base)).is_none_or(|whole| mark < *whole));
                let placed = images.range(..=mark).next_back().map(|(_, &age)| age);
                if !all {
                    self.wrong("an epoch is missing");
                }
                if half {
                    self.wrong("a copy is taken over from that does not belong together");
                }
                self.hosts[who].placed = placed;
                Event::Placed
            }
            Action::Restore => Event::Restored,
            Action::Probe => {
                let elsewhere = self.hosts.iter().enumerate().any(|(of, host)| of != who && host.runs.is_some());
                Event::Probed((!self.address || !self.tree) && !elsewhere)
            }
            Action::Raise => Event::Raised,
            Action::Tell => Event::Told,
            Action::Open => Event::Unblocked,
            Action::Run => {
                let placed = self.hosts[who].placed.or(Some(0));
                self.hosts[who].runs = placed;
                let generation = self.hosts[who].process.as_ref().map_or(0, |p| p.machine.0.generation());
                if self.limits.witness && !self.court.is_theirs(generation) {
                    self.wrong("taken over without the witness");
                }
                if !self.was_to_be_taken_over() && self.flaw != Some(Flaw::VotesAnyway) {
                    self.wrong("taken over although the primary could be heard");
                }
                Event::Runs
            }
            _ => return None,
        })
    }
}
