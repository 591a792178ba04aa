//! What the source's actions do to the world.

use super::super::super::message::Message;
use super::super::super::state::{Action, Event, Mark, Outcome, Recorded};
use super::{Flaw, Tree, World};

impl World {
    pub(super) fn source_does(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Send(message) => {
                let process = self.source.as_ref()?;
                let (link, generation) = (process.link?, process.machine.generation());
                if message == Message::Last && self.flaw != Some(Flaw::EarlyLast) {
                    self.pages_arrive();
                }
                self.send(link, true, generation, message);
                None
            }
            Action::Rounds => {
                self.pages_arrive();
                Some(if self.fails(30) { Event::Failed("a round".into()) } else { Event::RoundsDone })
            }
            Action::Freeze => {
                if self.tree == Tree::Runs {
                    (self.tree, self.age) = (Tree::Traced, self.age + 1);
                }
                Some(if self.fails(30) { Event::Failed("the freeze".into()) } else { Event::LastSent })
            }
            Action::Stop => {
                if self.tree == Tree::Traced && self.flaw != Some(Flaw::NoGroupStop) {
                    self.tree = Tree::Stopped;
                }
                Some(if self.fails(30) { Event::Failed("the stop".into()) } else { Event::Stopped })
            }
            Action::Mark(mark) => Some(self.mark(mark)),
            Action::Thaw if self.tree == Tree::Stopped && self.fails(20) => Some(Event::Stuck("it does not go on".into())),
            Action::Thaw => {
                match self.tree {
                    Tree::Traced | Tree::Stopped => (self.tree, self.age) = (Tree::Runs, self.age + 1),
                    Tree::Half => self.wrong("half a tree is let go on"),
                    Tree::Runs | Tree::Gone => {}
                }
                Some(Event::Thawed)
            }
            Action::Feed => {
                self.fed = true;
                None
            }
            Action::Reap if self.fails(20) => Some(Event::Stuck("it does not end".into())),
            Action::Reap => self.reap(),
            Action::Forget => {
                if !self.fails(20) {
                    self.source_record = None;
                }
                None
            }
            Action::Link if self.fails(300) => Some(Event::LinkLost),
            Action::Link if self.fails(100) => Some(Event::Stuck("there is no other".into())),
            Action::Link => {
                let link = self.connect();
                self.source.as_mut()?.link = Some(link);
                Some(Event::Linked)
            }
            Action::Report(outcome) => {
                self.report(outcome);
                None
            }
            other => {
                self.wrong(&format!("the source is to do {other:?}"));
                None
            }
        }
    }

    /// All that there is of the tree so far has been sent over the link, and come.
    fn pages_arrive(&mut self) {
        let Some(link) = self.source.as_ref().and_then(|p| p.link).map(|l| self.links[l]).filter(|l| l.target && !l.cut) else { return };
        if let Some(agent) = self.agents.iter_mut().find(|a| a.0.number == link.agent) {
            agent.1.sent = Some(self.age);
        }
    }

    fn mark(&mut self, mark: Mark) -> Event {
        let generation = self.source.as_ref().map_or(0, |p| p.machine.generation());
        let skipped = match self.flaw {
            Some(Flaw::NoCommit) => matches!(mark, Mark::Committed { .. }),
            Some(Flaw::NoStopping) => mark == Mark::Stopping,
            Some(Flaw::NoMoved) => mark == Mark::Moved,
            _ => false,
        };
        let failed = self.fails(30);
        self.source_disk_failed |= failed;
        if !skipped && (!failed || self.dice.chance(500)) {
            self.source_record = Some((generation, mark));
        }
        Event::Marked(if failed { Recorded::Failed } else { Recorded::Written })
    }

    /// In two steps: it does not go all at once.
    fn reap(&mut self) -> Option<Event> {
        match self.tree {
            Tree::Half | Tree::Gone => {
                self.tree = Tree::Gone;
                return Some(Event::Reaped);
            }
            _ if !self.ran_there || self.given_up => self.wrong("it is ended, and does not run there"),
            _ if self.missing.is_some() => self.wrong("it is ended, and pages of it are missing there"),
            _ => self.tree = Tree::Half,
        }
        self.source.as_mut()?.todo.insert(1, Action::Reap);
        None
    }

    fn report(&mut self, outcome: Outcome) {
        let honest = match &outcome {
            Outcome::Moved => self.ran_there && self.tree == Tree::Gone,
            Outcome::Stayed(_) => self.tree == Tree::Runs,
            Outcome::Frozen { .. } => (self.tree != Tree::Runs || self.source_disk_failed) && self.source_record.is_some(),
            Outcome::RunsThere => self.ran_there,
        };
        if !honest {
            self.wrong(&format!("the report is not true: {outcome:?}, {:?}, {:?}", self.tree, self.source_record));
        }
        self.outcome = Some(outcome);
        self.end_source();
    }
}
