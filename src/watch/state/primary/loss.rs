//! What a primary does that hears nothing of its standby, or of which it is said that it is overtaken.

use super::super::{OnLoss, Ruling, Whose};
use super::{Action, Activation, Duration, Frame, Hand, Path, Phase, Primary, Said, Word};

impl Primary {
    /// It goes on without a standby.
    pub(super) fn alone(&mut self, risk: bool, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Cut | Phase::Asking { .. }) {
            out.push(Action::Show);
        }
        self.thaw(out);
        self.risk = risk;
        self.new_series(out);
        self.run_free(out);
        out.push(if risk { Action::Say(Said::AtRisk) } else { self.unprotected() });
        if self.phase == Phase::Leaving {
            return self.over(Said::Over, out);
        }
        self.phase = Phase::Watching;
        self.beat = Duration::ZERO;
    }

    /// The standby's process has ended. That it had not taken over before is known if it has heard of this end lately.
    pub(super) fn gone(&mut self, now: Duration, out: &mut Vec<Action>) {
        let concerned = matches!(self.phase, Phase::Watching | Phase::Cut | Phase::Asking { .. } | Phase::Leaving | Phase::Yielding);
        if concerned && !self.free && now < self.safe {
            self.alone(false, out);
        }
    }

    pub(super) fn fenced(&mut self, done: bool, now: Duration, out: &mut Vec<Action>) {
        if self.phase != Phase::Fencing {
            return;
        }
        if done {
            self.alone(false, out);
        } else {
            self.phase = Phase::Cut;
            self.not_before = now + self.limits.again;
            out.extend([Action::Hide, Action::Say(Said::Cut)]);
        }
    }

    /// Somebody else has a higher generation.
    pub(super) fn demote(&mut self, generation: u64, out: &mut Vec<Action>) {
        if self.phase != Phase::Demoting {
            (self.phase, self.generation, self.demoted) = (Phase::Demoting, generation, true);
            out.push(Action::Demote);
        }
    }

    /// After that: a standby that has only begun to take over may fail yet, and then what stands still here is all there is.
    pub(super) fn hear_of_it(&mut self, frame: &Frame, out: &mut Vec<Action>) {
        if frame.generation >= self.generation && matches!(frame.word, Word::Standby { hand: Hand::Runs, .. }) {
            (self.generation, self.replaced) = (frame.generation, true);
            self.reap(out);
        }
    }

    /// It stands still, and that is on record.
    pub(super) fn stopped(&mut self, out: &mut Vec<Action>) {
        if self.limits.keep_demoted {
            return self.over(Said::Demoted, out);
        }
        self.phase = Phase::Demoted;
        out.push(Action::Say(Said::Demoted));
        self.reap(out);
    }

    fn reap(&mut self, out: &mut Vec<Action>) {
        if self.phase == Phase::Demoted && self.replaced {
            self.phase = Phase::Reaping;
            out.push(Action::Reap);
        }
    }

    /// What stands still is left so.
    pub(super) fn give_up(&mut self, out: &mut Vec<Action>) {
        self.phase = Phase::Over;
        out.push(Action::End);
    }

    /// The witness has answered: to who has asked whether it may go on alone, or renews its lease.
    pub(super) fn ruled(&mut self, ruling: Ruling, now: Duration, out: &mut Vec<Action>) {
        if !matches!(self.phase, Phase::Watching | Phase::Cut | Phase::Asking { .. } | Phase::Leaving) {
            return self.ruled_still(Some(ruling), now, out);
        }
        match ruling.whose {
            // It cannot make it durable, or has granted what is this one's already.
            _ if ruling.generation <= self.generation => self.unruled(now, out),
            Whose::Mine => self.own(ruling.generation, out),
            // The standby has nothing, and whatever it has won it cannot use. The next one can be told from it.
            Whose::Peers if self.free && !self.risk => self.own(ruling.generation + 1, out),
            // It can take over, or has.
            Whose::Peers if self.free || self.protected => self.demote(ruling.generation, out),
            Whose::Strangers => self.demote(ruling.generation, out),
            // Whether the standby can is yet to be heard.
            Whose::Peers | Whose::Nobodys => self.unruled(now, out),
        }
    }

    /// This generation is its own: who stands by for a lower one cannot take over any more.
    pub(super) fn own(&mut self, generation: u64, out: &mut Vec<Action>) {
        self.generation = generation;
        // That it is not on record here does no harm: the witness has it, and tells whoever comes back with a lower one.
        out.push(Action::Record(Activation::Primary { generation, instance: self.instance }));
        self.alone(false, out);
    }

    /// The witness does not say that it may go on alone.
    pub(super) fn unruled(&mut self, now: Duration, out: &mut Vec<Action>) {
        let Phase::Asking { lost, cut } = self.phase else { return self.ruled_still(None, now, out) };
        self.phase = if cut { Phase::Cut } else { Phase::Watching };
        self.not_before = now + self.limits.again;
        if lost {
            self.bereft(true, out);
        }
    }

    /// Nothing is heard of the standby, and nobody says what has become of it. `due`: the other host may be ended now.
    fn bereft(&mut self, due: bool, out: &mut Vec<Action>) {
        // With several it is for the one of them that takes over.
        match (self.limits.fence && self.limits.standbys == 1, self.limits.on_loss) {
            (true, _) if due => {
                self.phase = Phase::Fencing;
                out.push(Action::Fence);
            }
            (false, OnLoss::Continue) => self.alone(true, out),
            _ if self.phase == Phase::Watching => {
                self.phase = Phase::Cut;
                out.extend([Action::Hide, Action::Say(Said::Cut)]);
            }
            _ => {}
        }
    }

    /// The standby may take this one for lost, and cannot be told otherwise.
    fn is_unheard(&self, now: Duration) -> bool {
        self.limits.witness && !self.is_wedged(now) && now.saturating_sub(self.echoed) >= self.limits.timeout
    }

    /// It does not get on with its tree.
    pub(super) fn is_wedged(&self, now: Duration) -> bool {
        self.capturing.is_some_and(|flying| now.saturating_sub(flying.begun) >= self.limits.wedge)
    }

    /// What silence means.
    pub(super) fn judge(&mut self, now: Duration, out: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Watching) {
            out.extend(self.notice.change(now).map(|silent| Action::Say(silent.map_or(Said::BothPaths, Said::OnePath))));
        }
        if self.is_mute(now) {
            self.made = now;
            out.push(Action::Relink);
        }
        self.judge_hand(now, out);
        if self.free || !matches!(self.phase, Phase::Watching | Phase::Cut) {
            return;
        }
        let lost = self.notice.lost(now);
        if lost && !self.limits.witness {
            return self.bereft(now >= self.not_before, out);
        }
        if lost || self.is_unheard(now) {
            // Who does not get on with its tree is to be taken over from.
            if now >= self.not_before && !self.is_wedged(now) {
                self.phase = Phase::Asking { lost, cut: self.phase == Phase::Cut };
                out.push(Action::Ask(self.generation + 1));
            }
            return;
        }
        // It lives, and epochs do not get there: without its clone it cannot take over, and all may go out.
        let cut = self.notice.since(Path::Link, now) >= 2 * self.limits.timeout;
        let stuck = self.is_stuck(self.limits.wedge, now);
        if self.guarded && (cut || stuck) && self.phase == Phase::Watching {
            self.new_series(out);
            self.not_before = now + self.limits.again;
            if stuck && self.linked {
                self.made = now;
                out.push(Action::Relink);
            }
        }
    }
}
