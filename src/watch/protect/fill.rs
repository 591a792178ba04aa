//! One of several standbys that misses something gets a copy of everything, while the others are sent what they are sent.

use super::End;
use crate::transport::Frame;
use crate::watch::setup::ANEW;
use crate::watch::state::Wish;
use crate::watch::tree::Order;

impl End {
    /// What is to be done for one of them, if anything is.
    pub(super) fn fill(&mut self) {
        if !self.machine.is_protected() {
            return;
        }
        // Its link lives, and does not carry it: it is made again, and everything is copied once more.
        if let Some(of) = (0..self.others.len()).find(|of| self.group.is_filling(*of) && self.known.is_overdue(*of)) {
            self.known.detach(of);
        }
        match self.group.wish(self.machine.series(), self.begun.elapsed()) {
            // What is on its way to it is not to come after it has given up what it has.
            Some(Wish::Yield(of) | Wish::Fill(of)) if self.known.detach(of) => {}
            Some(Wish::Yield(of)) => {
                let generation = self.machine.generation();
                if let Some(peer) = &self.others[of].peer {
                    let _ = peer.link.send(&Frame { kind: ANEW, generation, payload: Vec::new() });
                }
            }
            Some(Wish::Fill(of)) => drop(self.orders.send(Order::Fill(of))),
            None => {}
        }
    }
}
