//! What an agent's actions do to the world.

use super::super::super::message::{Became, Message};
use super::super::super::state::{Action, Event, Life, Recorded, Verdict};
use super::parts::Planted;
use super::{Flaw, World};

impl World {
    pub(super) fn agent_does(&mut self, number: u64, action: Action) -> Option<Event> {
        let at = self.agents.iter().position(|a| a.0.number == number)?;
        match action {
            Action::Send(message) => {
                let link = self.agents[at].0.link?;
                let generation = self.agents[at].0.machine.generation();
                let message = match message {
                    Message::Answer { became: Became::Perhaps, boot } if self.flaw == Some(Flaw::PerhapsIsNever) => {
                        Message::Answer { became: Became::Never, boot }
                    }
                    message => message,
                };
                self.send(link, false, generation, message);
                None
            }
            Action::Check(_) if self.fails(30) => Some(Event::Failed("the checks".into())),
            Action::Check(_) => Some(Event::Prepared(Vec::new())),
            Action::Plant => {
                self.agents[at].1.built = self.agents[at].1.sent;
                if self.flaw == Some(Flaw::ReadyRuns) {
                    self.let_run(at);
                }
                Some(if self.fails(30) { Event::Failed("no room".into()) } else { Event::Planted })
            }
            Action::Judge(verdict) => Some(Event::Judged(verdict, self.verdict(number, verdict))),
            Action::Release => self.release(at),
            Action::Destroy => {
                self.agents[at].1 = Planted::default();
                None
            }
            Action::Look => {
                let writer = self.target_record.map(|r| r.1);
                let at_work = self.agents.iter().any(|a| Some(a.0.number) == writer);
                Some(Event::Looked(match () {
                    () if self.runs_there && (self.missing.is_none() || self.flaw == Some(Flaw::PullingRuns)) => Life::Runs,
                    () if at_work || self.missing.is_some() => Life::AtWork,
                    () => Life::Gone,
                }))
            }
            Action::End => {
                self.end_agent(number);
                None
            }
            other => {
                self.wrong(&format!("an agent is to do {other:?}"));
                None
            }
        }
    }

    /// In two steps: from the first on some of it may run.
    fn release(&mut self, at: usize) -> Option<Event> {
        if self.agents[at].1.built.is_none() {
            self.wrong("what is not there is let run");
            return None;
        }
        if !self.agents[at].1.releasing {
            self.agents[at].1.releasing = true;
            self.agents[at].0.todo.insert(1, Action::Release);
            return None;
        }
        if self.fails(50) {
            (self.ran_there, self.doubtful) = (true, true);
            return Some(Event::Failed("half of it".into()));
        }
        self.let_run(at);
        Some(if self.missing.is_some() { Event::Pulling } else { Event::Released })
    }

    pub(super) fn let_run(&mut self, at: usize) {
        let built = std::mem::take(&mut self.agents[at].1).built;
        if self.runs_there {
            self.wrong("it is let run twice");
        }
        if built != Some(self.age) {
            self.wrong("what runs there is not what stood still here");
        }
        (self.runs_there, self.ran_there) = (true, true);
        if self.lazy {
            self.miss(at);
        }
    }

    fn verdict(&mut self, number: u64, verdict: Verdict) -> Recorded {
        let free = match (self.target_record, verdict) {
            (None, _) | (Some((Verdict::Going, _)), Verdict::Alive) => true,
            (Some((Verdict::Going, writer)), Verdict::Refused) => writer == number,
            (Some((Verdict::Refused, _)), Verdict::Going) => self.flaw == Some(Flaw::GoingOverRefused),
            _ => false,
        };
        if let (false, Some((there, _))) = (free, self.target_record) {
            return Recorded::Is(there);
        }
        let skipped = match self.flaw {
            Some(Flaw::NoRefusal) => verdict == Verdict::Refused,
            Some(Flaw::NoGoing) => verdict == Verdict::Going,
            _ => false,
        };
        let failed = self.fails(50);
        if !skipped && (!failed || self.dice.chance(500)) {
            self.target_record = Some((verdict, number));
        }
        if failed { Recorded::Failed } else { Recorded::Written }
    }
}
