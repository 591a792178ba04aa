//! The end that a tree comes from.

use super::super::message::{Became, Boot, Message};
use super::{Action, Event, Limits, Mark, Outcome, Recorded, Wish};
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Preparing,
    Rounds,
    Freezing,
    /// Waits for the target to be ready.
    Last,
    Marking,
    Stopping,
    Committing,
    /// Committed; waits for a sign of life.
    Going,
    /// It runs there, and pages are missing; waits for the word that they are there.
    Feeding,
    /// Another meio has committed; the record is claimed with a new generation.
    Claiming,
    /// Waits for an answer.
    Asking,
    /// The word is that it runs there.
    Moving,
    Reaping,
    /// The word is that it goes on here.
    Returning,
    Thawing,
    Over,
}

/// The source's machine.
#[derive(Debug, Clone)]
pub struct Source {
    generation: u64,
    plan: Vec<u8>,
    limits: Limits,
    phase: Phase,
    /// What was on record when this meio took it up, and what is wanted of it.
    found: Option<(Mark, Wish)>,
    /// The target's, when it was ready.
    boot: Boot,
    linked: bool,
    /// When the last word is said again, and when waiting ends.
    again: Duration,
    until: Option<Duration>,
    /// Why it is to stay, while something is under way that must be waited for.
    why: Option<String>,
}

impl Source {
    /// A move that begins, over a link that is there. `plan` is sent with [`Message::Prepare`].
    pub fn begin(generation: u64, plan: Vec<u8>, limits: Limits) -> Self {
        let (again, until) = (Duration::ZERO, None);
        Source { generation, plan, limits, phase: Phase::New, found: None, boot: Boot::default(), linked: true, again, until, why: None }
    }

    /// A move that another meio left with this on record; `generation` is higher than the one there.
    pub fn resume(generation: u64, mark: Mark, wish: Wish, limits: Limits) -> Self {
        let boot = if let Mark::Committed { boot } = mark { boot } else { Boot::default() };
        Source { found: Some((mark, wish)), boot, linked: false, ..Source::begin(generation, Vec::new(), limits) }
    }

    /// When it wants to be told the time.
    pub fn wake(&self) -> Option<Duration> {
        let speaks = matches!(self.phase, Phase::Preparing | Phase::Last | Phase::Going | Phase::Feeding | Phase::Asking);
        speaks.then(|| self.until.map_or(self.again, |until| until.min(self.again)))
    }

    /// Whether the target may have been told to let the tree run: from here on ^C is no safe way back.
    #[cfg(test)]
    pub fn is_committed(&self) -> bool {
        matches!(self.phase, Phase::Going | Phase::Feeding | Phase::Asking | Phase::Moving | Phase::Reaping)
    }

    /// Generation of the frames that are sent.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// One step.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match event {
            Event::Heard { generation, .. } if generation != self.generation => return Vec::new(),
            Event::Linked => self.linked = true,
            Event::LinkLost => self.linked = false,
            _ => {}
        }
        match self.phase {
            Phase::New => self.start(&event, now),
            Phase::Preparing | Phase::Rounds | Phase::Freezing | Phase::Last => self.before(event, now),
            Phase::Marking | Phase::Stopping | Phase::Committing => self.commit(event, now),
            Phase::Going | Phase::Feeding | Phase::Asking => self.after(event, now),
            Phase::Claiming => match event {
                Event::Marked(Recorded::Written) => self.ask(now),
                Event::Marked(_) | Event::Failed(_) => self.give_up("the record cannot be written", false),
                _ => Vec::new(),
            },
            Phase::Moving | Phase::Reaping | Phase::Returning | Phase::Thawing => self.end(event),
            Phase::Over => Vec::new(),
        }
    }

    fn start(&mut self, event: &Event, now: Duration) -> Vec<Action> {
        if *event != Event::Start {
            return Vec::new();
        }
        match self.found {
            None => self.say(Phase::Preparing, Message::Prepare { plan: self.plan.clone() }, Some(self.limits.prepared), now),
            Some((Mark::Moved, Wish::Resume)) => self.moved(),
            Some((Mark::Moved, _)) => self.over(Outcome::RunsThere),
            // Nobody was told to let it run.
            Some((Mark::Stopping | Mark::Stays, _)) => self.stays("the move was given up"),
            Some((Mark::Committed { .. }, Wish::Force)) => self.stays("the target is said to be gone"),
            Some((mark @ Mark::Committed { .. }, _)) => {
                self.phase = Phase::Claiming;
                vec![Action::Mark(mark)]
            }
        }
    }

    /// Says something, and again until it is answered.
    fn say(&mut self, phase: Phase, message: Message, patience: Option<Duration>, now: Duration) -> Vec<Action> {
        self.phase = phase;
        self.again = now + self.limits.again;
        self.until = patience.map(|patience| now + patience);
        vec![Action::Send(message)]
    }

    /// Nobody was told to let it run: whatever fails, it goes on here.
    fn before(&mut self, event: Event, now: Duration) -> Vec<Action> {
        match (self.phase, event) {
            (Phase::Preparing, Event::Heard { message: Message::Prepared { .. }, .. }) => {
                self.phase = Phase::Rounds;
                vec![Action::Rounds]
            }
            (Phase::Rounds, Event::RoundsDone) => {
                self.phase = Phase::Freezing;
                vec![Action::Freeze]
            }
            (Phase::Freezing, Event::LastSent) => self.say(Phase::Last, Message::Last, Some(self.limits.ready), now),
            (Phase::Last, Event::Heard { message: Message::Ready { boot }, .. }) => {
                (self.boot, self.phase) = (boot, Phase::Marking);
                vec![Action::Mark(Mark::Stopping)]
            }
            (_, Event::Heard { message: Message::Abort { why }, .. }) => self.abort(&why),
            (_, Event::LinkLost) => self.abort("the link was lost"),
            (_, Event::Interrupted) => self.abort("interrupted"),
            (_, Event::Failed(why)) => self.abort(&why),
            (Phase::Preparing | Phase::Last, Event::Tick) if self.until.is_some_and(|until| now >= until) => {
                self.abort("the target did not answer in time")
            }
            (phase @ (Phase::Preparing | Phase::Last), Event::Tick) if now >= self.again => {
                self.again = now + self.limits.again;
                let plan = || Message::Prepare { plan: self.plan.clone() };
                vec![Action::Send(if phase == Phase::Last { Message::Last } else { plan() })]
            }
            _ => Vec::new(),
        }
    }

    /// It stays: nobody was told otherwise.
    fn abort(&mut self, why: &str) -> Vec<Action> {
        self.phase = Phase::Thawing;
        self.why = Some(why.to_owned());
        vec![Action::Send(Message::Abort { why: why.to_owned() }), Action::Thaw]
    }

    /// From the target's being ready to its being told to go. What stands in the way meanwhile waits for the step's end.
    fn commit(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let stands = match (self.phase, event) {
            (Phase::Marking, Event::Marked(Recorded::Written)) if self.why.is_none() => {
                self.phase = Phase::Stopping;
                return vec![Action::Stop];
            }
            (Phase::Stopping, Event::Stopped) if self.why.is_none() => {
                self.phase = Phase::Committing;
                return vec![Action::Mark(Mark::Committed { boot: self.boot })];
            }
            (Phase::Committing, Event::Marked(Recorded::Written)) if self.why.is_none() => {
                return self.say(Phase::Going, Message::Go, Some(self.limits.alive), now);
            }
            (_, Event::Marked(Recorded::Written) | Event::Stopped) => return self.withdraw(),
            (_, Event::Marked(_)) => return self.hurdle("the record cannot be written").withdraw(),
            (_, Event::Failed(why)) => return self.hurdle(&why).withdraw(),
            (_, Event::Heard { message: Message::Abort { why }, .. }) => why,
            (_, Event::LinkLost) => "the link was lost".to_owned(),
            (_, Event::Interrupted) => "interrupted".to_owned(),
            _ => return Vec::new(),
        };
        self.hurdle(&stands);
        Vec::new()
    }

    fn hurdle(&mut self, why: &str) -> &mut Self {
        self.why.get_or_insert_with(|| why.to_owned());
        self
    }

    /// It stays, although a record may say otherwise: that is put right first.
    fn withdraw(&mut self) -> Vec<Action> {
        let why = self.why.clone().unwrap_or_default();
        let mut actions = vec![Action::Send(Message::Abort { why: why.clone() })];
        actions.extend(self.stays(&why));
        actions
    }

    /// The target has, or may have, been told.
    fn after(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let word = || if self.phase == Phase::Asking { Message::Query } else { Message::Go };
        let feeds = self.phase == Phase::Feeding;
        match event {
            Event::Heard { message: Message::Pulling, .. } if self.phase == Phase::Going => {
                (self.phase, self.until) = (Phase::Feeding, None);
                self.again = now + self.limits.again;
                vec![Action::Feed]
            }
            // What it waits for comes from here and over this link only.
            Event::LinkLost if feeds => {
                self.give_up("the link was lost while pages were missing there, for want of which it is ended", false)
            }
            Event::Interrupted if feeds => Vec::new(),
            Event::Heard { message: Message::Alive, .. } => self.moved(),
            Event::Heard { message: Message::Answer { became, boot }, .. } => match became {
                Became::Runs => self.moved(),
                Became::Never if boot == self.boot => self.stays("the target has refused it"),
                Became::Never => self.give_up("the target was started anew after it was ready", true),
                Became::Perhaps => self.give_up("it was being let run there, or ran with pages missing, and was ended", true),
                Became::Pending => Vec::new(),
            },
            Event::Interrupted => self.give_up("interrupted", false),
            Event::Stuck(why) => self.give_up(&why, false),
            Event::Linked => {
                self.again = now + self.limits.again;
                vec![Action::Send(word())]
            }
            Event::Tick if self.until.is_some_and(|until| now >= until) => self.give_up("the target did not answer in time", false),
            Event::Tick if now >= self.again => {
                self.again = now + self.limits.again;
                vec![if self.linked { Action::Send(word()) } else { Action::Link }]
            }
            _ => Vec::new(),
        }
    }

    fn ask(&mut self, now: Duration) -> Vec<Action> {
        self.say(Phase::Asking, Message::Query, Some(self.limits.alive), now);
        vec![Action::Link]
    }

    /// It runs there.
    fn moved(&mut self) -> Vec<Action> {
        if self.found.is_some_and(|(_, wish)| wish == Wish::Abort) {
            return self.over(Outcome::RunsThere);
        }
        self.phase = Phase::Moving;
        vec![Action::Mark(Mark::Moved)]
    }

    /// It goes on here. On record first: who forced this must not be told otherwise halfway.
    fn stays(&mut self, why: &str) -> Vec<Action> {
        self.phase = Phase::Returning;
        self.why = Some(why.to_owned());
        vec![Action::Mark(Mark::Stays)]
    }

    /// What is left to do is certain; it only has to be done.
    fn end(&mut self, event: Event) -> Vec<Action> {
        match (self.phase, event) {
            (Phase::Moving, Event::Marked(Recorded::Written)) => {
                self.phase = Phase::Reaping;
                vec![Action::Reap]
            }
            // Half of a tree with a record that leaves it open would be asked about, and might be let go on.
            (Phase::Moving, Event::Marked(_)) => self.give_up("it runs there, and the record cannot be written", false),
            (Phase::Returning, Event::Marked(recorded)) => {
                let forced = self.found.is_some_and(|(mark, wish)| wish == Wish::Force && matches!(mark, Mark::Committed { .. }));
                if forced && recorded != Recorded::Written {
                    return self.give_up("the record cannot be written", false);
                }
                self.phase = Phase::Thawing;
                vec![Action::Thaw]
            }
            (Phase::Reaping, Event::Reaped) => {
                let mut actions = vec![Action::Forget, Action::Send(Message::Over)];
                actions.extend(self.over(Outcome::Moved));
                actions
            }
            (Phase::Thawing, Event::Thawed) => {
                let why = self.why.clone().unwrap_or_default();
                let mut actions = vec![Action::Forget];
                actions.extend(self.over(Outcome::Stayed(why)));
                actions
            }
            (Phase::Reaping | Phase::Thawing, Event::Stuck(why)) => self.give_up(&why, false),
            _ => Vec::new(),
        }
    }

    fn give_up(&mut self, why: &str, perhaps: bool) -> Vec<Action> {
        self.over(Outcome::Frozen { why: why.to_owned(), perhaps })
    }

    fn over(&mut self, outcome: Outcome) -> Vec<Action> {
        self.phase = Phase::Over;
        vec![Action::Report(outcome)]
    }
}
