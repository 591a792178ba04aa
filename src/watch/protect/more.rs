//! Another watch of that name follows this one: those that stand by, and call by themselves, are told so before they are let go.

use super::End;
use crate::transport::Frame;
use crate::watch::record::Record;
use crate::watch::setup::MORE;
use crate::watch::state::{Activation, Event};
use std::sync::PoisonError;
use std::time::Duration;

impl End {
    /// The watch is about to be over: who is to have a part in the next one calls again.
    pub(super) fn tell_more(&self) {
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(next) = next.as_ref().filter(|_| self.lets_in) else { return };
        let generation = self.machine.generation();
        for other in &self.others {
            let all = std::iter::once(&next.standby).chain(&next.others);
            let stays = next.hands.is_some() || all.into_iter().any(|host| *host == other.named);
            if let Some(peer) = other.peer.as_ref().filter(|_| stays) {
                let _ = peer.link.send(&Frame { kind: MORE, generation, payload: Vec::new() });
            }
        }
    }

    /// The standby has not taken over, as was wanted: all stand by again who did before.
    pub(super) fn goes_back(&mut self) {
        if let Some(before) = self.hands.take() {
            *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
            self.tell_more();
            self.more.push_back(Event::Over);
        }
    }

    /// Whoever wanted it to be taken over may be gone.
    pub(super) fn waits_in_vain(&mut self) {
        const LONG: Duration = Duration::from_secs(60);
        if self.hands.is_some() && self.begun.elapsed() >= LONG && self.machine.is_protected() {
            self.goes_back();
        }
    }

    /// Those who stand by call again, for the watch that follows.
    pub(super) fn follows(&self) -> bool {
        self.lets_in && self.next.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What is on record is over. Who calls meanwhile, for the watch that follows, is to find the door; and where it was handed over
    /// this host is to know that another one runs it, also when it has booted again.
    pub(super) fn forget(&self) {
        if self.among && self.machine.has_switched() {
            return;
        }
        if self.follows() && matches!(self.record.activation, Some(Activation::Primary { .. })) {
            let _ = self.store.write(&Record { back: None, ..self.record.clone() });
        } else {
            let _ = self.store.forget(&self.record.name);
        }
    }
}
