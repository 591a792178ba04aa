//! The end that waits to take over.

mod hand;

use super::notice::Notice;
use super::{Action, Activation, Event, Frame, Guarantee, Hand, Limits, Mark, Part, Path, Ruling, Said, Stance, Whose, Word};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Standing,
    /// The other standbys are asked.
    Polling,
    /// The witness is asked.
    Asking,
    Fencing,
    Blocking,
    Recording,
    Placing,
    Probing,
    Raising,
    Restoring,
    Telling,
    Opening,
    Letting,
    Running,
    /// Everything is rebuilt, as it was asked to: it waits for a word, or for silence.
    Set,
    /// There was one of them, and the witness is asked.
    SetAsking,
    /// There was silence, and the other host is to be ended first.
    SetFencing,
    /// What is planted could not be let run; nobody else may.
    Failed,
    /// The watch is over: it never takes over.
    Left,
    Over,
}

/// The standby's machine.
#[derive(Debug, Clone)]
pub struct Standby {
    generation: u64,
    instance: u64,
    /// Instance of the primary that is known.
    known: u64,
    limits: Limits,
    phase: Phase,
    notice: Notice,
    sequence: u64,
    /// When the next word is due.
    beat: Duration,
    echo: u64,
    /// The last epoch that is whole.
    whole: Mark,
    /// The last one of a copy that is of no use yet.
    filling: Option<u64>,
    ready: bool,
    /// There was no room for this series.
    full: bool,
    /// The primary's process has ended.
    gone: bool,
    /// Its host was ended: what it has said before and comes late is nothing any more.
    off: bool,
    /// When what did not work is tried again.
    again: Option<Duration>,
    /// Why it was not taken over, as far as that was said.
    told: Option<Said>,
    stale: u64,
    /// The epoch after which the primary's tree stands still, as it said last.
    last: Option<Mark>,
    /// The one that is being taken over from since the primary has asked for it.
    planned: Option<Mark>,
    /// That came to nothing, and took what was here along.
    cannot: bool,
    /// The primary's word to let it run, on which nothing was done yet.
    go: bool,
    /// The witness did not let it, when it was to.
    refused: bool,
    /// The newest epoch that was ever said to be whole here.
    said: Mark,
    /// Another process may have said more of the series that is here.
    blank: bool,
    /// Another one stood by here for this watch before this process.
    after: bool,
    /// Its vote is another standby's: it hears nothing of the primary until it has it again.
    lent: bool,
}

impl Standby {
    /// One that has nothing yet. `generation`: the primary's, or the one on record here if that is higher; `instance`: higher
    /// than that of all before it.
    pub fn begin(generation: u64, instance: u64, limits: Limits) -> Self {
        Standby {
            generation,
            instance,
            known: 0,
            limits,
            phase: Phase::New,
            notice: Notice::new(limits.beat, limits.timeout),
            sequence: 0,
            beat: Duration::ZERO,
            echo: 0,
            whole: Mark::default(),
            filling: None,
            ready: false,
            full: false,
            gone: false,
            off: false,
            again: None,
            told: None,
            stale: 0,
            last: None,
            planned: None,
            cannot: false,
            go: false,
            refused: false,
            said: Mark::default(),
            blank: true,
            after: false,
            lent: false,
        }
    }

    /// The same where another process has stood by before, which may have given its vote away.
    pub fn after(self, lent: bool) -> Self {
        Standby { after: true, lent, ..self }
    }

    /// What counts when one of several standbys is to take over.
    pub fn stance(&mut self, now: Duration) -> Stance {
        // That this end was away is not the primary's silence.
        let _ = self.notice.look(now);
        let gone = self.gone && self.limits.guarantee == Guarantee::Hold;
        Stance {
            generation: self.generation,
            mark: if self.ready { self.whole } else { Mark::default() },
            said: self.said,
            lost: self.notice.lost(now) || gone,
            votes: !self.blank && matches!(self.phase, Phase::Standing | Phase::Polling),
            runs: self.phase == Phase::Running,
        }
    }

    /// Frames and epochs that were not heeded: from a lower generation, or not a primary's at all.
    pub fn stale(&self) -> u64 {
        self.stale
    }

    /// The other standbys are asked whether it is to take over.
    pub fn is_polling(&self) -> bool {
        self.phase == Phase::Polling
    }

    /// Of the frames that are sent.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// It does nothing any more, whatever happens.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// It has nothing to take over from, and nothing to do.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Left || self.phase == Phase::Standing && !self.ready
    }

    /// It is there, and does nothing else.
    #[cfg(test)]
    pub fn listen(&mut self, now: Duration) {
        let _ = self.notice.look(now);
    }

    /// The watch is over.
    pub fn has_left(&self) -> bool {
        self.phase == Phase::Left
    }

    /// See [`Notice::jitter`].
    pub fn jitter(&self) -> Option<Duration> {
        self.notice.jitter()
    }

    /// How long the primary has been silent on both paths.
    pub fn silence(&self, now: Duration) -> Duration {
        self.notice.since(Path::Link, now).min(self.notice.since(Path::Beat, now))
    }

    /// How long nothing has come of it by the link.
    pub fn quiet(&self, now: Duration) -> Duration {
        self.notice.since(Path::Link, now)
    }

    /// When it wants to be told the time.
    pub fn wake(&self) -> Option<Duration> {
        let speaks = !matches!(self.phase, Phase::New | Phase::Over);
        speaks.then(|| self.again.map_or(self.beat, |again| again.min(self.beat)))
    }

    /// One step.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut out = Vec::new();
        if self.phase == Phase::Over {
            return out;
        }
        let _ = self.notice.look(now);
        match event {
            Event::Start if self.phase == Phase::New => self.phase = Phase::Standing,
            Event::Heard(path, frame) => self.hear(path, frame, now, &mut out),
            Event::Whole { generation, mark, ready, part } => self.epoch((generation, mark, ready, part), now, &mut out),
            Event::Gone => self.gone = true,
            Event::Fenced(done) if self.phase == Phase::Fencing => self.fenced(done, now, &mut out),
            Event::Voted(won) if self.phase == Phase::Polling => self.voted(won, now, &mut out),
            Event::Ruled(ruling) if self.phase == Phase::Asking => self.ruled(Some(ruling), now, &mut out),
            Event::Unruled if self.phase == Phase::Asking => self.ruled(None, now, &mut out),
            Event::Ruled(ruling) if self.phase == Phase::SetAsking => self.ruled_when_set(Some(ruling), now, &mut out),
            Event::Unruled if self.phase == Phase::SetAsking => self.ruled_when_set(None, now, &mut out),
            Event::Fenced(done) if self.phase == Phase::SetFencing => self.fenced_when_set(done, now, &mut out),
            Event::Full => self.full(now, &mut out),
            Event::Anew => self.behind(now, &mut out),
            Event::Lent(lent) => {
                self.lent = lent;
                self.again = Some(now + self.limits.again);
            }
            Event::Failed if self.planned.is_some() => self.cannot(now, &mut out),
            Event::Failed => self.failed(&mut out),
            _ if self.planned.is_some() => self.advance_planned(event, now, &mut out),
            _ => self.advance(event, now, &mut out),
        }
        self.judge(now, &mut out);
        if now >= self.beat {
            self.say(now, &mut out);
        }
        out
    }

    fn hear(&mut self, path: Path, frame: Frame, now: Duration, out: &mut Vec<Action>) {
        let Word::Primary { series, wedged, over, last, go } = frame.word else {
            self.stale += 1;
            return;
        };
        // What it says to have is what the other one takes over from; of a higher generation that one cannot be any more.
        if self.lent && frame.generation <= self.generation {
            self.stale += 1;
            return;
        }
        if frame.generation < self.generation || frame.instance < self.known + u64::from(self.off) {
            self.stale += 1;
            return;
        }
        if frame.generation > self.generation {
            // Of a watch that is not this one, or of a primary that goes on without this one.
            if self.may_give_up() {
                self.give_up(out);
            }
            if matches!(self.phase, Phase::Standing | Phase::Polling | Phase::Asking) {
                self.phase = Phase::Over;
                out.extend([Action::Drop, Action::End]);
            }
            return;
        }
        if frame.instance > self.known {
            (self.known, self.off) = (frame.instance, false);
            self.notice.meet();
        }
        let newest = self.notice.is_newest(frame.instance, frame.sequence);
        // A primary that beats and gets no further is as good as none.
        if !wedged {
            self.notice.hear(path, frame.sequence, now);
            if !self.is_decided() {
                self.echo = self.echo.max(frame.sequence);
            }
            self.gone = false;
        }
        if !newest || wedged {
            return;
        }
        self.told = None;
        // What the witness has granted is told to the primary, which gives in: there is no way back.
        if self.phase == Phase::Blocking && self.planned.is_none() && !self.limits.asks() {
            self.phase = Phase::Standing;
            out.push(Action::Unblock);
        }
        self.hear_hand(Mark { series, number: last }, go, out);
        if self.phase == Phase::Standing && series > self.whole.series {
            self.adopt(series, out);
        }
        if over && self.phase == Phase::Standing {
            self.phase = Phase::Left;
            self.ready = false;
            self.beat = now;
            out.extend([Action::Drop, Action::Say(Said::Over)]);
        }
    }

    /// What is here belongs to a series that is over.
    fn adopt(&mut self, series: u64, out: &mut Vec<Action>) {
        // Who was there before may have had more of the first series that this one hears of.
        self.blank = self.after && self.whole.series == 0;
        self.whole = Mark { series, number: 0 };
        self.said = self.said.max(self.whole);
        (self.ready, self.full, self.cannot, self.filling) = (false, false, false, None);
        self.beat = Duration::ZERO;
        out.push(Action::Drop);
    }

    /// What there is cannot be kept up to date any more. When it is taken over just now, it is from what is here.
    fn full(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.phase != Phase::Standing || self.full {
            return;
        }
        self.empty(true, now, out);
        out.push(Action::Say(Said::Full));
    }

    /// Nothing of this series is here.
    fn empty(&mut self, full: bool, now: Duration, out: &mut Vec<Action>) {
        self.whole.number = 0;
        (self.ready, self.full, self.filling, self.beat) = (false, full, None, now);
        out.push(Action::Drop);
    }

    /// The primary is to copy everything to this one again.
    fn behind(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.phase == Phase::Standing && !self.lent {
            self.empty(false, now, out);
        }
    }

    fn epoch(&mut self, (generation, mark, ready, part): (u64, Mark, bool, Part), now: Duration, out: &mut Vec<Action>) {
        let takes = matches!(self.phase, Phase::Standing | Phase::Polling | Phase::Asking | Phase::Fencing);
        if generation != self.generation || self.lent || !takes {
            self.stale += 1;
            return;
        }
        if mark.series > self.whole.series && self.phase == Phase::Standing {
            self.adopt(mark.series, out);
        }
        if mark.series != self.whole.series {
            self.stale += 1;
            return;
        }
        // One that was begun before is of no use any more.
        let base = part == Part::Base && self.whole.number == 0;
        let next = mark.number == self.filling.unwrap_or(self.whole.number) + 1 && (part == Part::All || self.filling.is_some());
        if (base || next && part != Part::Base) && !self.full && !self.cannot {
            self.notice.touch(Path::Link, now);
            if part == Part::All {
                // Whoever stood by here before had no more than there was before the copy was begun.
                self.blank &= self.filling.take().is_none();
                (self.whole, self.said) = (mark, self.said.max(mark));
                if ready && !self.ready {
                    out.push(Action::Say(Said::Protected));
                }
                self.ready |= ready;
            } else {
                self.filling = Some(mark.number);
            }
            out.push(Action::Keep(mark));
        }
        // One that is here already was sent again, because nobody had heard so.
        self.beat = now;
    }

    fn judge(&mut self, now: Duration, out: &mut Vec<Action>) {
        let again = self.again.take_if(|again| now >= *again).is_some();
        if self.phase == Phase::Probing && again {
            out.push(Action::Probe);
        }
        self.judge_planned(now, out);
        if self.phase != Phase::Standing || !self.ready || self.lent {
            return;
        }
        out.extend(self.notice.change(now).map(|silent| Action::Say(silent.map_or(Said::BothPaths, Said::OnePath))));
        // What a primary left behind that has ended may answer until its lease is over.
        let gone = self.gone && self.limits.guarantee == Guarantee::Hold;
        if (self.notice.lost(now) || gone) && self.again.is_none() {
            if self.limits.standbys > 1 {
                self.phase = Phase::Polling;
                out.push(Action::Poll(self.generation + 1));
            } else {
                self.chosen(out);
            }
        }
    }

    /// What the other standbys say.
    fn voted(&mut self, won: bool, now: Duration, out: &mut Vec<Action>) {
        if won {
            return self.chosen(out);
        }
        self.phase = Phase::Standing;
        self.again = Some(now + self.limits.again);
        self.complain(Said::Unvoted, out);
    }

    /// None of those who stand by is before it.
    fn chosen(&mut self, out: &mut Vec<Action>) {
        if self.limits.witness {
            self.phase = Phase::Asking;
            out.push(Action::Ask(self.generation + 1));
        } else {
            self.take_over(out);
        }
    }

    /// It does not take over now: who has voted for it may hear the primary again, or vote for another one.
    fn stand_back(&mut self, out: &mut Vec<Action>) {
        self.phase = Phase::Standing;
        if self.limits.standbys > 1 {
            out.push(Action::Forgo);
        }
    }

    fn take_over(&mut self, out: &mut Vec<Action>) {
        out.push(Action::Say(Said::TakingOver));
        let (phase, action) = if self.limits.fence { (Phase::Fencing, Action::Fence) } else { (Phase::Blocking, Action::Block) };
        self.phase = phase;
        out.push(action);
    }

    /// What the witness says, if it says anything.
    fn ruled(&mut self, ruling: Option<Ruling>, now: Duration, out: &mut Vec<Action>) {
        if self.is_granted(ruling) {
            return self.take_over(out);
        }
        self.stand_back(out);
        self.not_granted(ruling, now, out);
    }

    /// The next generation is this one's.
    fn is_granted(&self, ruling: Option<Ruling>) -> bool {
        ruling.is_some_and(|r| r.granted && r.whose == Whose::Mine && r.generation == self.generation + 1)
    }

    /// It is asked again some time.
    fn not_granted(&mut self, ruling: Option<Ruling>, now: Duration, out: &mut Vec<Action>) {
        let left = ruling.map_or(Duration::ZERO, |ruling| ruling.left);
        self.again = Some(now + if left.is_zero() { self.limits.again } else { left.min(self.limits.again) });
        let said = match ruling {
            Some(ruling) if ruling.generation > self.generation => Said::Outdated,
            Some(_) => Said::Refused,
            None => Said::Unruled,
        };
        self.complain(said, out);
    }

    /// Once.
    fn complain(&mut self, said: Said, out: &mut Vec<Action>) {
        if self.told.replace(said) != Some(said) {
            out.push(Action::Say(said));
        }
    }

    fn fenced(&mut self, done: bool, now: Duration, out: &mut Vec<Action>) {
        if done {
            (self.phase, self.off) = (Phase::Blocking, true);
            out.push(Action::Block);
        } else {
            self.stand_back(out);
            self.again = Some(now + self.limits.again);
        }
    }

    fn failed(&mut self, out: &mut Vec<Action>) {
        match self.phase {
            // Nobody was told anything: it may be tried again.
            Phase::Blocking => self.stand_back(out),
            Phase::Placing | Phase::Restoring | Phase::Raising | Phase::Telling | Phase::Opening | Phase::Letting => {
                self.phase = Phase::Failed;
                out.push(Action::Say(Said::Failed));
            }
            _ => {}
        }
    }

    /// The order in which it is taken over; in any other one the kernel answers clients with a reset, or two run.
    fn advance(&mut self, event: Event, now: Duration, out: &mut Vec<Action>) {
        let (phase, action) = match (self.phase, event) {
            (Phase::Blocking, Event::Blocked) => (Phase::Recording, Action::Record(Activation::Taken(self.generation + 1))),
            (Phase::Recording, Event::Recorded(true)) => {
                self.generation += 1;
                self.beat = now;
                (Phase::Placing, Action::Place(self.whole))
            }
            // It may be on record or not: nothing that this one says would hold.
            (Phase::Recording, Event::Recorded(false)) => {
                out.push(Action::Say(Said::Failed));
                (Phase::Over, Action::End)
            }
            (Phase::Placing, Event::Placed) => (Phase::Probing, Action::Probe),
            (Phase::Probing, Event::Probed(true)) => (Phase::Raising, Action::Raise),
            // Whoever has it is about to give it up.
            (Phase::Probing, Event::Probed(false)) => {
                self.again = Some(now + self.limits.beat);
                (Phase::Probing, Action::Say(Said::Taken))
            }
            // A connection can be made only at an address that is here.
            (Phase::Raising, Event::Raised) => (Phase::Restoring, Action::Restore),
            (Phase::Restoring, Event::Restored) => (Phase::Telling, Action::Tell),
            (Phase::Telling, Event::Told) => (Phase::Opening, Action::Open),
            (Phase::Opening, Event::Unblocked) => (Phase::Letting, Action::Run),
            (Phase::Letting, Event::Runs) => (Phase::Running, Action::Say(Said::TakenOver)),
            _ => return,
        };
        self.phase = phase;
        out.push(action);
    }

    fn say(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.beat = now + self.limits.beat;
        if matches!(self.phase, Phase::New | Phase::Over) {
            return;
        }
        if self.limits.witness && self.phase == Phase::Running {
            // Nobody is to begin another watch of that name meanwhile.
            out.push(Action::Ask(self.generation));
        }
        let (left, hand) = (self.phase == Phase::Left, self.hand());
        let word = Word::Standby { whole: self.whole, ready: self.ready, left, full: self.full, echo: self.echo, hand };
        for path in [Path::Link, Path::Beat] {
            self.sequence += 1;
            let frame = Frame { generation: self.generation, instance: self.instance, sequence: self.sequence, word };
            out.push(Action::Send(path, frame));
        }
    }
}
