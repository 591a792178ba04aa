//! Links, and what befalls links, processes and machines.

use super::super::super::message::{Frame, Message};
use super::super::super::state::{Event, Target, Verdict, Wish};
use super::parts::Planted;
use super::{Fault, Flaw, Link, MS, Process, Tree, What, World, limits};

impl World {
    /// A new link. With it comes a new agent, but where one lives that can be reached another way.
    pub(super) fn connect(&mut self) -> usize {
        let link = self.links.len();
        let old = self.agents.len() as u64;
        let agent = if old > 0 && self.dice.chance(400) {
            let at = self.dice.below(old) as usize;
            let agent = &mut self.agents[at].0;
            if let Some(before) = agent.link.replace(link) {
                self.links[before].target = false;
            }
            self.agents[at].0.number
        } else {
            self.count += 1;
            let machine = Target::new([if self.flaw == Some(Flaw::NoBoot) { 1 } else { self.boot }; 16], limits());
            self.agents.push((Process::new(self.count, machine, Some(link)), Planted::default()));
            self.count
        };
        self.tell(|_| format!("link {link} to agent {agent}"));
        self.links.push(Link { agent, source: true, target: true, cut: false });
        link
    }

    pub(super) fn send(&mut self, link: usize, to_target: bool, generation: u64, message: Message) {
        let end = self.links[link];
        if end.cut || !(if to_target { end.source } else { end.target }) || self.fails(60) {
            return;
        }
        let copies = if self.fails(60) { 2 } else { 1 };
        for _ in 0..copies {
            let slow = if self.fails(80) { 60 * MS * self.dice.below(10) as u32 } else { MS / 10 };
            let delay = self.short() + slow;
            let frame = Frame { id: [0; 16], generation, message: message.clone() };
            self.at(delay, What::Deliver { link, to_target, frame });
        }
    }

    /// What was on its way when a link was cut may still come.
    pub(super) fn deliver(&mut self, link: usize, to_target: bool, frame: Frame) {
        let end = self.links[link];
        let event = Event::Heard { generation: frame.generation, message: frame.message };
        match to_target {
            true if end.target => self.step_agent(end.agent, event),
            false if end.source && self.source.as_ref().is_some_and(|p| p.link == Some(link)) => self.step_source(event),
            _ => {}
        }
    }

    pub(super) fn notice(&mut self, link: usize, target: bool) {
        let end = &mut self.links[link];
        if target && std::mem::take(&mut end.target) {
            let agent = end.agent;
            self.step_agent(agent, Event::LinkLost);
        } else if !target && std::mem::take(&mut end.source) && self.source.as_ref().is_some_and(|p| p.link == Some(link)) {
            self.step_source(Event::LinkLost);
        }
    }

    /// Each end notices in its own time.
    fn cut(&mut self, link: usize) {
        self.links[link].cut = true;
        for target in [false, true] {
            let delay = self.short() + 20 * MS * self.dice.below(10) as u32;
            self.at(delay, What::Notice { link, target });
        }
    }

    pub(super) fn end_source(&mut self) {
        if let Some(link) = self.source.take().and_then(|p| p.link) {
            self.links[link].source = false;
            self.cut(link);
        }
        if self.tree == Tree::Traced {
            (self.tree, self.age) = (Tree::Runs, self.age + 1);
        }
    }

    pub(super) fn end_agent(&mut self, number: u64) {
        let Some(at) = self.agents.iter().position(|a| a.0.number == number) else { return };
        let (process, _) = self.agents.swap_remove(at);
        self.doubtful |= self.target_record == Some((Verdict::Going, number)) && !self.runs_there;
        if let Some(link) = process.link {
            self.links[link].target = false;
            self.cut(link);
        }
    }

    pub(super) fn next_fault(&mut self) {
        if self.faults == 0 {
            self.chaos = false;
            return;
        }
        self.faults -= 1;
        // Mostly while much is going on.
        let most = if self.dice.chance(300) { 600 } else { 60 };
        let delay = MS / 10 * self.dice.below(10 * most) as u32;
        self.at(delay, What::Fault);
    }

    pub(super) fn any_fault(&mut self) {
        let fault = match self.dice.below(100) {
            0..20 => Fault::KillSource,
            20..28 => Fault::Interrupt,
            28..55 => Fault::KillAgent,
            55..85 => Fault::Cut,
            85..92 => Fault::TargetAnew,
            92..94 => Fault::SourceAnew,
            _ => Fault::None,
        };
        self.befall(fault);
        if self.dice.chance(500) {
            let wish = if self.dice.chance(500) { Wish::Resume } else { Wish::Abort };
            self.resume(wish);
        }
        self.next_fault();
    }

    pub(super) fn befall(&mut self, fault: Fault) {
        match fault {
            Fault::None => {}
            Fault::KillSource => self.kill_source(),
            Fault::Interrupt if self.source.is_some() => {
                self.tell(|_| "^C".into());
                self.step_source(Event::Interrupted);
            }
            Fault::KillAgent if !self.agents.is_empty() => {
                let at = self.dice.below(self.agents.len() as u64) as usize;
                self.kill_agent(at);
            }
            Fault::Cut => {
                if let Some(link) = self.source.as_ref().and_then(|p| p.link).filter(|&l| !self.links[l].cut) {
                    self.tell(|_| format!("link {link} is cut"));
                    self.cut(link);
                }
            }
            Fault::TargetAnew => self.start_target_anew(),
            Fault::SourceAnew => {
                self.tell(|_| "the source's machine starts anew".into());
                self.end_source();
                (self.tree, self.source_record, self.source_lost) = (Tree::Gone, None, true);
            }
            Fault::Interrupt | Fault::KillAgent => {}
        }
    }

    fn kill_source(&mut self) {
        if self.source.is_none() {
            return;
        }
        self.tell(|_| "the source's meio is killed".into());
        self.end_source();
    }

    fn kill_agent(&mut self, at: usize) {
        let number = self.agents[at].0.number;
        self.tell(|_| format!("agent {number} is killed"));
        if self.agents[at].1.releasing {
            match self.dice.below(3) {
                0 => {}
                1 => self.ran_there = true,
                _ => self.let_run(at),
            }
        }
        self.end_agent(number);
    }

    fn start_target_anew(&mut self) {
        self.tell(|_| "the target's machine starts anew".into());
        while let Some(agent) = self.agents.first() {
            let number = agent.0.number;
            self.end_agent(number);
        }
        // Of what was not all there, the source has everything.
        let missing = self.missing.take().is_some();
        self.target_lost |= self.runs_there && !missing;
        self.given_up |= missing;
        (self.runs_there, self.doubtful) = (false, true);
        self.boot += 1;
        // Where records are kept may outlast this, or not.
        if self.dice.chance(700) {
            self.target_record = None;
        }
    }
}
