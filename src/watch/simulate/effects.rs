//! What comes of things that take their time.

use super::super::state::{Action, Activation, Event, Frame, Hand, Mark, Part, Path, Word};
use super::parts::{Fault, Flaw, Gate, What, Who};
use super::world::{MS, World};

impl World {
    pub(super) fn whole(&mut self, generation: u64, mark: Mark, ready: bool, age: u64) {
        if self.full {
            return self.step(Who::Standby, Event::Full);
        }
        self.images.insert(mark, age);
        self.largest = self.largest.max(mark.number);
        if self.flaw == Some(Flaw::GapsAreFine) {
            for number in 1..mark.number {
                self.step(Who::Standby, Event::Whole { generation, mark: Mark { number, ..mark }, ready, part: Part::All });
            }
        }
        if self.flaw == Some(Flaw::TakesEpochsLate) && self.placed.is_some() {
            self.fabricated += 1;
            let word = Word::Standby { whole: mark, ready, left: false, full: false, echo: 0, hand: Hand::Nothing };
            let frame = Frame { generation, instance: self.instance, sequence: (1 << 40) + self.fabricated, word };
            self.step(Who::Primary, Event::Heard(Path::Link, frame));
        }
        self.step(Who::Standby, Event::Whole { generation, mark, ready, part: Part::All });
    }

    /// Something that takes its time is done; what is told of it.
    pub(super) fn effect(&mut self, who: Who, action: Action) -> Option<Event> {
        Some(match action {
            Action::Record(activation) => {
                if self.disk_fails {
                    return Some(Event::Recorded(false));
                }
                match activation {
                    Activation::Taken(_) | Activation::Taking(_) if self.flaw == Some(Flaw::NoRecord) => {}
                    Activation::Taken(_) | Activation::Taking(_) => self.standby_record = Some(activation),
                    _ => self.primary_record = Some(activation),
                }
                if let (Some(Activation::Primary { generation, .. }), Some(Activation::Taken(taken) | Activation::Taking(taken))) =
                    (self.primary_record, self.standby_record)
                    && self.limits.witness
                    && generation == taken
                {
                    self.wrong("two have the same generation");
                }
                Event::Recorded(true)
            }
            Action::Capture(mark) | Action::Last(mark) => {
                if !self.tree {
                    return Some(Event::Failed);
                }
                // What is to go on by then goes on.
                self.frozen = matches!(action, Action::Last(_)) && self.thawed != Some(mark);
                self.captured.insert(mark, self.age);
                Event::Captured(mark)
            }
            Action::Ship { mark, ready } => {
                if self.linked && !self.cut[Path::Link as usize][0] && !self.cut[Path::Link as usize][1] {
                    let age = self.captured.get(&mark).copied().unwrap_or(0);
                    let slow = if self.slow { MS * (50 + self.dice.below(400)) as u32 } else { self.short() };
                    let at = (self.now + slow).max(self.queue[Who::Standby as usize]);
                    self.queue[Who::Standby as usize] = at;
                    let generation = self.primary.as_ref().map_or(1, |p| p.machine.generation());
                    if self.flaw == Some(Flaw::EarlyWord) {
                        self.step(Who::Standby, Event::Whole { generation, mark, ready, part: Part::All });
                    }
                    let epoch = What::Epoch { link: self.link, generation, mark, ready, age };
                    if self.flaw != Some(Flaw::GapsAreFine) || !self.dice.chance(30) {
                        self.at(at - self.now, epoch);
                    }
                }
                Event::Sent(mark)
            }
            Action::Demote => {
                self.gate = Gate::Shut;
                self.address = false;
                Event::Demoted
            }
            Action::Finish => {
                (self.tree, self.address) = (false, false);
                Event::Finished
            }
            Action::Reap => {
                if self.ran.is_none() && self.tree {
                    self.wrong("what runs nowhere else was ended");
                }
                self.tree = false;
                Event::Finished
            }
            Action::Fence => self.fence(who),
            other => return self.take_over(other),
        })
    }

    fn take_over(&mut self, action: Action) -> Option<Event> {
        Some(match action {
            Action::Block => Event::Blocked,
            Action::Place(mark) => {
                let all = (1..=mark.number).all(|number| self.images.contains_key(&Mark { number, ..mark }));
                if !all && self.flaw != Some(Flaw::EarlyWord) {
                    self.wrong("an epoch is missing");
                }
                self.placed = self.images.range(..=mark).next_back().map(|(_, &age)| age);
                Event::Placed
            }
            Action::Restore => Event::Restored,
            Action::Probe => Event::Probed(!self.address || !self.tree),
            Action::Raise => Event::Raised,
            Action::Tell => Event::Told,
            Action::Open => Event::Unblocked,
            Action::Run => {
                self.runs = self.placed.or(Some(0));
                self.ran = self.standby.as_ref().map(|s| s.number);
                if !self.was_to_be_taken_over() && !self.faults.contains(&Fault::Yield) {
                    self.wrong("taken over although the primary could be heard");
                }
                Event::Runs
            }
            _ => return None,
        })
    }
}
