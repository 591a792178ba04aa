//! The primary's part in what a user wants: that the standby takes over, from his wish until the tree is ended here, or goes on; or
//! that it is unprotected for a while.

use super::super::{OnLoss, Ruling, Whose};
use super::{Action, Flying, Frame, Hand, Mark, Phase, Primary, Said, Word};
use std::time::Duration;

/// How far it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Yields {
    /// When it was wanted, and the last epoch that had been begun by then.
    wanted: Option<(Duration, Mark)>,
    /// Since when the tree stands still, and after which epoch.
    last: Option<(Duration, Mark)>,
    /// The address is down until the standby is known to have given up.
    pub(super) hidden: bool,
    /// What keeps the standby from it has happened when this frame was to be said next.
    doubt: Option<u64>,
    /// That nothing is known was said.
    unsure: bool,
    /// The witness is asked whether the standby can let it run, which was told to and is not heard.
    asked: bool,
}

impl Primary {
    /// Somebody else runs it, as was wanted.
    pub fn has_switched(&self) -> bool {
        self.phase == Phase::Over && self.yields.last.is_some() && !self.demoted
    }

    /// The tree stands still for the standby.
    pub fn is_yielding(&self) -> bool {
        matches!(self.phase, Phase::Yielding | Phase::Yielded | Phase::Finishing)
    }

    /// A user wants it to be taken over. What cannot be done at once is not done later.
    pub(super) fn wanted(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.yields.wanted.is_some() || self.is_yielding() {
            return;
        }
        if self.phase != Phase::Watching || !self.protected || !self.linked || self.quiet {
            return out.push(Action::Say(Said::Stayed));
        }
        self.yields.wanted = Some((now, Mark { series: self.series, number: self.number }));
        self.waiting = true;
    }

    /// One epoch more is copied while it runs, so that little is left for the last one.
    pub(super) fn work_hand(&mut self, now: Duration, out: &mut Vec<Action>) {
        let Some((asked, begun)) = self.yields.wanted else { return };
        let hopeless = self.phase != Phase::Watching || begun.series != self.series || now.saturating_sub(asked) >= 4 * self.limits.timeout;
        if hopeless {
            return self.stay(out);
        }
        let idle = self.capturing.is_none() && self.flight.is_empty() && self.linked && !self.quiet;
        if idle && self.number > begun.number && now >= self.not_before {
            self.number += 1;
            let mark = Mark { series: self.series, number: self.number };
            self.capturing = Some(Flying { mark, ready: true, begun: now, sent: false });
            self.phase = Phase::Yielding;
            self.yields = Yields { last: Some((now, mark)), hidden: self.yields.hidden, ..Yields::default() };
            self.pace.begin(now);
            out.extend([Action::Say(Said::Yielding), Action::Last(mark)]);
        }
    }

    /// The epoch that is to be taken over from, as soon as there is one.
    pub(super) fn last(&self) -> u64 {
        let there = matches!(self.phase, Phase::Yielding | Phase::Yielded) && self.capturing.is_none();
        self.yields.last.filter(|_| there).map_or(0, |(_, mark)| mark.number)
    }

    /// Whether it stands still since this epoch.
    pub(super) fn is_last(&self, mark: Mark) -> bool {
        self.phase == Phase::Yielding && self.yields.last.is_some_and(|(_, last)| last == mark)
    }

    /// Nobody is to find two of its address.
    pub(super) fn captured_last(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.phase == Phase::Yielding {
            (self.yields.hidden, self.beat) = (true, now);
            out.push(Action::Hide);
            // From now on it is not renewed.
            if self.limits.witness {
                out.push(Action::Cede(self.generation));
            }
        }
    }

    /// It was not copied, and goes on.
    pub(super) fn failed_last(&mut self, out: &mut Vec<Action>) {
        if self.phase == Phase::Yielding {
            self.phase = Phase::Watching;
            self.stay(out);
        }
    }

    fn stay(&mut self, out: &mut Vec<Action>) {
        (self.yields.wanted, self.yields.last, self.yields.doubt) = (None, None, None);
        out.push(Action::Say(Said::Stayed));
    }

    /// What stands still goes on here.
    pub(super) fn thaw(&mut self, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Yielding | Phase::Yielded) {
            self.phase = Phase::Watching;
            out.push(Action::Thaw);
        }
        if self.yields.last.is_some() {
            self.stay(out);
        }
    }

    /// The standby is to give up what it has of this series: until it has said so nothing gets out.
    fn withdraw(&mut self, out: &mut Vec<Action>) {
        self.thaw(out);
        self.new_series(out);
    }

    /// What was under way cannot be sent again.
    pub(super) fn anew(&mut self, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Yielding => self.doubt(),
            Phase::Yielded | Phase::Finishing => {}
            _ if self.demoted => {}
            _ => self.new_series(out),
        }
    }

    /// Another process stands by, which has nothing. That it could be begun says that what was planted there is no more.
    pub(super) fn anew_for_another(&mut self, out: &mut Vec<Action>) {
        self.withdraw(out);
    }

    /// The standby may never get what it needs. Only one that hears this end and is heard is told to give up: another one may have
    /// to take over.
    pub(super) fn doubt(&mut self) {
        let last = self.yields.last.map_or(Mark::default(), |(_, mark)| mark);
        let there = self.capturing.is_none() && self.flight.iter().all(|flying| flying.mark != last);
        if self.phase == Phase::Yielding && !there {
            self.yields.doubt.get_or_insert(self.sequence + 1);
        }
    }

    /// What the standby says of it.
    pub(super) fn hear_hand(&mut self, whole: Mark, hand: Hand, echo: u64, now: Duration, out: &mut Vec<Action>) {
        // It was told to, and the witness does not let it: if that is not its last word, what goes on here is held until it is heard.
        if self.phase == Phase::Yielded && hand == Hand::Refused {
            return self.withdraw(out);
        }
        if self.phase != Phase::Yielding {
            return;
        }
        if hand == Hand::Set && self.yields.last.is_some_and(|(_, last)| last == whole) {
            self.phase = Phase::Yielded;
            (self.safe, self.beat) = (Duration::ZERO, now);
        } else if self.yields.doubt.is_some_and(|sequence| echo >= sequence) {
            self.withdraw(out);
        }
    }

    /// A higher generation was heard: whether the tree runs there as was wanted, and is ended here.
    pub(super) fn ends_here(&mut self, frame: &Frame, out: &mut Vec<Action>) -> bool {
        let runs = matches!(frame.word, Word::Standby { hand: Hand::Runs, .. });
        if self.phase == Phase::Yielded && runs {
            (self.phase, self.generation) = (Phase::Finishing, frame.generation);
            out.push(Action::Finish);
        }
        self.phase == Phase::Finishing
    }

    /// After silence: what the standby was asked to take over it has not, or would say so.
    pub(super) fn heard_again(&mut self, out: &mut Vec<Action>) {
        if self.yields.last.is_some() {
            self.new_series(out);
            self.stay(out);
        }
    }

    /// What silence means while it stands still.
    pub(super) fn judge_hand(&mut self, now: Duration, out: &mut Vec<Action>) {
        let Some((since, _)) = self.yields.last else { return };
        let lost = self.notice.lost(now);
        match self.phase {
            // It may have all that it needs to take over, and is not told anything else.
            Phase::Yielding if lost => {
                self.phase = Phase::Watching;
                out.push(Action::Thaw);
            }
            Phase::Yielding if now.saturating_sub(since) >= self.limits.timeout => {
                self.yields.doubt.get_or_insert(self.sequence + 1);
            }
            Phase::Yielded if lost => self.unheard_still(now, out),
            _ => {}
        }
    }

    /// The standby was told to let it run, and is not heard: a witness may know whether it ever will.
    fn unheard_still(&mut self, now: Duration, out: &mut Vec<Action>) {
        if !self.limits.witness {
            self.unknown(true, out);
        } else if !self.yields.asked && now >= self.not_before {
            self.yields.asked = true;
            out.push(Action::Ask(self.generation + 1));
        }
    }

    /// The standby was told to let it run, and nobody says what has become of that. `risk`: one may go on in spite of it.
    fn unknown(&mut self, risk: bool, out: &mut Vec<Action>) {
        if risk && self.limits.on_loss == OnLoss::Continue {
            self.alone(true, out);
        } else if !self.yields.unsure {
            self.yields.unsure = true;
            out.push(Action::Say(Said::Unsure));
        }
    }

    /// What the witness says to who stands still, if it says anything.
    pub(super) fn ruled_still(&mut self, ruling: Option<Ruling>, now: Duration, out: &mut Vec<Action>) {
        if self.phase != Phase::Yielded || !std::mem::take(&mut self.yields.asked) {
            return;
        }
        self.not_before = now + self.limits.again;
        match ruling.filter(|ruling| ruling.generation > self.generation) {
            // Who stands by can never let it run.
            Some(Ruling { whose: Whose::Mine, generation, .. }) => self.own(generation, out),
            Some(Ruling { whose: Whose::Strangers, generation, .. }) => self.demote(generation, out),
            // It may run there: with this generation, which it has.
            Some(_) => self.unknown(false, out),
            None => self.unknown(true, out),
        }
    }

    /// The watch is to end.
    pub(super) fn leave_hand(&mut self, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Yielding => self.withdraw(out),
            // Who asks knows that nobody runs it there.
            Phase::Yielded if self.yields.unsure => {
                self.alone(true, out);
            }
            _ => {}
        }
    }

    /// Nobody can take over, for whatever reason.
    pub(super) fn unprotected(&self) -> Action {
        Action::Say(if self.paused { Said::Paused } else { Said::Unprotected })
    }

    /// A user wants it unprotected: what the standby has it is to give up, and then all goes out.
    pub(super) fn pause(&mut self, out: &mut Vec<Action>) {
        if self.phase == Phase::Watching && !self.paused {
            self.paused = true;
            self.new_series(out);
            if self.free {
                out.push(self.unprotected());
            }
        }
    }
}
