//! What the two ends of a move say to each other about it. Pages and files travel beside this.

use serde::{Deserialize, Serialize};

/// Name of one move.
pub type Id = [u8; 16];
/// Which run of its machine a host is in; another one after it was started anew.
pub type Boot = [u8; 16];

/// A message with what every frame carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frame {
    /// The move that is spoken of.
    pub id: Id,
    /// Grows with each meio that takes the move up again; a lower one than was heard is not heeded.
    pub generation: u64,
    /// What is said.
    pub message: Message,
}

/// What is said. All but [`Message::Prepare`] and [`Message::Last`] may be said any number of times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Message {
    /// Source: this is what the tree needs.
    Prepare {
        /// As the preflight writes it.
        plan: Vec<u8>,
    },
    /// Target: it is all here; the rounds may begin.
    Prepared {
        /// What the source needs to know of it, as the preflight writes it.
        details: Vec<u8>,
    },
    /// Source: the tree stands still, and everything has been sent.
    Last,
    /// Target: everything is rebuilt, nothing runs, nothing was said to anybody.
    Ready {
        /// This run of its machine.
        boot: Boot,
    },
    /// Source: the commit is on record here; it may run there.
    Go,
    /// Target: it runs, and pages are missing: the source keeps everything, and sends them.
    Pulling,
    /// Target: it runs, and needs nothing more of the source.
    Alive,
    /// Before the commit, from either end: it stays where it was.
    Abort {
        /// Why.
        why: String,
    },
    /// Source, from another meio than the one that said go: what became of it? Who has not let it run yet never will.
    Query,
    /// Target, to a query, or to a go that is not heeded.
    Answer {
        /// What became of it.
        became: Became,
        /// This run of its machine.
        boot: Boot,
    },
    /// Source: what was left here has been ended.
    Over,
}

/// What became of a tree at its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Became {
    /// It was let run.
    Runs,
    /// It was never let run and, what is on record, never will be.
    Never,
    /// It is just being let run; ask again.
    Pending,
    /// It was being let run, or ran with pages missing, and nothing of it is there any more: it may have run.
    Perhaps,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back() {
        let answer = |became| Message::Answer { became, boot: [3; 16] };
        let mut all = vec![Message::Last, Message::Go, Message::Pulling, Message::Alive, Message::Query, Message::Over];
        all.extend([Became::Runs, Became::Never, Became::Pending, Became::Perhaps].map(answer));
        all.push(Message::Prepare { plan: vec![1, 2] });
        all.push(Message::Prepared { details: Vec::new() });
        all.push(Message::Ready { boot: [7; 16] });
        all.push(Message::Abort { why: "no room".into() });
        for message in all {
            let frame = Frame { id: [9; 16], generation: 3, message };
            let mut bytes = Vec::new();
            ciborium::into_writer(&frame, &mut bytes).unwrap();
            assert_eq!(ciborium::from_reader::<Frame, _>(bytes.as_slice()).unwrap(), frame);
        }
    }
}
