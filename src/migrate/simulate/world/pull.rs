//! Pages that are missing at the target, and what becomes of a tree that waits for them.

use super::super::super::state::Event;
use super::{MS, What, World};

/// A tree that runs at the target while pages are missing.
#[derive(Debug, Clone, Copy)]
pub struct Missing {
    /// Number of the agent that hands them on.
    agent: u64,
    /// Over which link.
    link: Option<usize>,
    /// How many are to come.
    left: u64,
}

impl World {
    /// It runs, and this much is missing.
    pub(super) fn miss(&mut self, agent: usize) {
        let process = &self.agents[agent].0;
        let (agent, link) = (process.number, process.link);
        let left = 1 + self.dice.below(4);
        self.missing = Some(Missing { agent, link, left });
        self.at(MS, What::Pull);
    }

    /// A page comes, or nothing, or it is over.
    pub(super) fn pull(&mut self) {
        let Some(missing) = self.missing else { return };
        let agent = self.agents.iter().position(|a| a.0.number == missing.agent);
        let link = missing.link.map(|l| self.links[l]).filter(|l| l.target && !l.cut);
        // Who feeds is the one who has said go, over the link on which it was said.
        let source = self.source.as_ref().is_some_and(|p| p.link == missing.link);
        if agent.is_none() || link.is_none() || !source || self.fails(10) {
            self.tell(|_| "what is missing there does not come any more: it is ended".into());
            (self.missing, self.runs_there, self.doubtful, self.given_up) = (None, false, true, true);
            self.step_agent(missing.agent, Event::Failed("pages".into()));
            return;
        }
        let left = missing.left - u64::from(self.fed);
        self.missing = Some(Missing { left, ..missing }).filter(|m| m.left > 0);
        if self.missing.is_none() {
            self.tell(|_| "all is there".into());
            self.step_agent(missing.agent, Event::Whole);
            return;
        }
        let delay = self.short() + 20 * MS * self.dice.below(4) as u32;
        self.at(delay, What::Pull);
    }
}
