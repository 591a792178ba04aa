//! Who answers the clients: two machines that do nothing by themselves. An event and the time go in, actions come out; whoever
//! drives them does these in their order and reports what came of them. The time is any clock that never goes back; the two
//! ends' clocks need not agree.
//!
//! ```text
//!  primary                                      standby
//!  record Primary (generation g)
//!  beats on both paths       ── g, series ──▶   drops what it has of an older series, beats back: g, series, nothing
//!  rounds while all is free  ── 1 … k ──▶       keeps them: nothing to take over from yet
//!  Hold; from now on output waits for its epoch
//!  Capture k+1, Ship         ── k+1, ready ──▶  whole: keeps it, and says so at once
//!  Release what was held before k+1   ◀── whole k+1 ──
//!  …
//!  (silence on both paths)                      Fence, if there is a command, must succeed
//!                                               Block the address
//!                                               record Taken (generation g+1): from here on g is over
//!                                               Place, Probe, Raise, Restore, Tell, Open, Run
//!  hears g+1: Demote         ◀── g+1 ──
//!  Reap: ended here          ◀── g+1, runs ──
//! ```
//!
//! When a user wants it to be taken over, nobody waits for silence:
//!
//! ```text
//!  an epoch more; Last n; Hide
//!  Ship n                    ── n, last n ──▶   whole: Block, Place, Raise, Restore; nothing of it runs
//!                               ◀── set ──      from here on it waits for a word, or for silence
//!  never thaws by itself     ── go ──▶          record Taking (g+1), Tell, Open, Run, record Taken: says what was held
//!  Finish: ended here          ◀── g+1, runs ──
//! ```
//!
//! What was held for the last epoch does not go out at the primary: clients would answer it there, where nobody hears them any more, and
//! say it again when their timers end. The connections of who takes over say it at once.
//!
//! Where there is a witness, the primary lets go of its lease there when it stands still, and who has heard `go` asks for g+1 before it has
//! anything on record, as it does after silence. If that is not granted it says so, and the tree goes on at the primary: as with
//! what was given up there nothing gets out until the standby has nothing any more. A primary that does not hear the standby after it
//! has said `go` asks for g+1 itself: with that it knows that nobody runs it there, nor ever will.
//!
//! Until it says `go` the primary may give up: the tree goes on here, held and without its address, until the standby has said that it
//! has nothing any more to take over from. After that only the standby can say that it does not run there.
//!
//! * What the standby could take over from is never older than what was released: an epoch's output goes out on the word that it
//!   is whole there. So a primary that is cut off gives nothing away, whatever it computes, and a late word does no harm.
//! * With [`Guarantee::Hot`] output goes out at once while the primary holds a *lease*: the standby takes over a time-out after
//!   it has last heard a frame, the lease ends three quarters of one after that frame was sent. The driver has the kernel
//!   end it, so that it ends for a primary that was stopped, too.
//! * A *series* begins with a copy of everything. The word of a standby that it is at a series and has nothing to take over from
//!   is what lets the primary run free: it was said after the standby had dropped the clone that it had.
//! * A primary that hears nothing says nothing: if its standby is there after all, it is to take over.
//! * A primary that is overtaken has its tree stand still at once, and ends it when the standby says that it runs there. From a
//!   witness, or a standby that has only begun to take over, it knows too little for that: what fails there may be all there is.
//! * Words are states, not steps: any of them may be lost, late or heard twice.
//! * With a *witness*, each generation belongs to one end. A standby asks for g+1 before it has anything on record; a primary that
//!   hears nothing of its standby, or is not heard, asks for the same g+1 before it goes on alone, and is g+1 then: what stands by for
//!   g cannot take over any more. A primary that lives has a lease on g there, which a standby waits for. An answer may be lost:
//!   to be granted twice is to be granted once, and who is told of a generation that he has asked for and never heard of acts
//!   on it then. Without an answer nobody goes on who would not without a witness.
//! * A standby that comes late, or is behind, has nothing and says so, until it has a copy of everything that was made while the others
//!   went on, and all epochs up to one that was begun when that copy was complete ([`Part`], [`Group::wish`]). What it has said before
//!   to have it still knows, or does not vote before it has more.
//! * *Several standbys* are to the primary as one ([`Group`]), and are each other's witness ([`Votes`]): a standby asks the others as it
//!   would ask a witness, and what they say is that one's ruling. With `s` standbys output goes out when [`Limits::quorum`] of them,
//!   `q`, have its epoch; [`Limits::votes`] of them, `v`, itself counted, let one take over, each for no more than one and only for who has
//!   as much as its giver; and `q + v > s`, `2 v > s`. By the first one of those who vote has all that was let out (the flexible
//!   quorums of Howard, Malkhi and Spiegelman, the election restriction of Raft); by the second no two have g+1, which therefore
//!   need not say whose it is. The primary has no vote: who hears it gives none. With one standby all of this is what it was.
//!   Other than in Raft who has won goes on alone at once, without anybody's acknowledgement: so a vote is not given back when time
//!   goes by, but only by who has asked for it and does not use it. The loss of one that has won before it runs is a second fault.
//! * *Several standbys and a witness*: the votes say which of the standbys it is, and that nothing is lost; the witness says whether it
//!   is one of them at all, or the primary, which may go on alone when too few of them are left to it. Who has won asks for g+1, which
//!   is durable there before anything else is done: to the witness all who stand by are one end, as only who has votes asks, no two
//!   have enough of them at a time, and what one was granted that has given its votes back is the next one's. Both are needed. Votes
//!   alone are not enough, as many as they may be: a primary that none of them hears may be let go on by a witness that none of them
//!   reaches. The witness cannot stand in for a vote that is missing either: with `q + v = s + 1` fewer than `v` may be those that
//!   lack what was let out, and what is known of that is known only to who is lost. So the loss of the witness alone stops nobody;
//!   the loss of it and of the primary, or of more than `s - v` standbys and of the primary, stops until one of them is back.
//! * Whoever was chosen and is not let, by the witness, or since the command fails that is to end the primary's host, gives the votes
//!   back at once, and acts on no answer that comes late. Who has given his hears nothing of the primary meanwhile, except of one
//!   with a higher generation: what was voted for the one before is over with that. With several standbys only who was chosen has
//!   the other host ended, never the primary.

mod group;
mod notice;
mod pace;
mod primary;
mod standby;
mod votes;

pub use group::{Group, Wish};
pub use primary::Primary;
pub use standby::Standby;
pub use votes::{Cause, Deed, Poll, Stance, Vote, Votes};

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One of the two ways between the ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The link that carries the epochs.
    Link,
    /// Datagrams.
    Beat,
}

/// An epoch: the ones of a later series come after all of an earlier one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// Which copy of everything it goes on from.
    pub series: u64,
    /// From 1, which is that copy.
    pub number: u64,
}

/// What an epoch is to who gets it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// With those before it, it is all that there was then.
    #[default]
    All,
    /// A copy of everything that stands for this epoch, and was made while the tree ran on: what is true of it is known only with
    /// those that follow.
    Base,
    /// One of these, and more are needed.
    Upon,
}

/// What both ends say on both paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Of who says it.
    pub generation: u64,
    /// Grows with each process at that end.
    pub instance: u64,
    /// Grows with each frame, over both paths. Those of two primaries for one tree have none in common.
    pub sequence: u64,
    /// What is said.
    pub word: Word,
}

/// How things stand with who says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// A primary.
    Primary {
        /// The series that counts. What belongs to an older one is to be dropped.
        series: u64,
        /// It does not get on with its tree.
        wedged: bool,
        /// The watch is over: never take over.
        over: bool,
        /// The tree stands still after this epoch of the series: it is to be taken over from exactly that one. 0: it runs.
        last: u64,
        /// It never runs here again unless the standby says that it does not there: who has everything rebuilt lets it run.
        go: bool,
    },
    /// A standby; with a higher generation than the primary's it has taken over.
    Standby {
        /// The last epoch that is whole; number 0 for none of that series.
        whole: Mark,
        /// It could take over.
        ready: bool,
        /// It has heard that the watch is over, and will not.
        left: bool,
        /// It had no room for this series, of which nothing is here nor will be.
        full: bool,
        /// Sequence of the newest frame of a primary that it takes for a sign of life.
        echo: u64,
        /// How far it is with what it was asked to take over.
        hand: Hand,
    },
}

/// How far a standby is that was asked to take over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hand {
    /// It was not, or has only begun.
    #[default]
    Nothing,
    /// Everything is rebuilt, and waits for the primary's word.
    Set,
    /// It runs there.
    Runs,
    /// It could not, and has nothing any more of what it had.
    Cannot,
    /// Everything is rebuilt, and the witness does not say that it may run: another word is needed, or the tree goes on where it was.
    Refused,
}

/// What clients may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guarantee {
    /// What they were told is never taken back.
    Hold,
    /// Somebody answers.
    Hot,
}

impl Guarantee {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Guarantee::Hold => "hold",
            Guarantee::Hot => "hot",
        }
    }
}

/// What a primary does that hears nothing of its standby, and does not know that it cannot take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnLoss {
    /// It lets nothing out until it knows.
    Hold,
    /// It goes on, at the risk that two answer.
    Continue,
}

/// How many of several standbys must have an epoch before what came of it may go out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Acks {
    /// One of them.
    One,
    /// So many that they are most of the hosts together with the primary.
    #[default]
    Majority,
    /// All that are in step, and never fewer than with [`Acks::Majority`].
    All,
}

/// What a user chose.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
pub struct Limits {
    /// See [`Guarantee`].
    pub guarantee: Guarantee,
    /// See [`OnLoss`].
    pub on_loss: OnLoss,
    /// There is a command that ends the other host.
    pub fence: bool,
    /// A third party says who may go on.
    #[serde(default)]
    pub witness: bool,
    /// A tree that runs elsewhere is kept here, standing still.
    #[serde(default)]
    pub keep_demoted: bool,
    /// How many stand by.
    #[serde(default = "one")]
    pub standbys: usize,
    /// How many of these are waited for.
    #[serde(default)]
    pub acks: Acks,
    /// Time between two beats.
    pub beat: Duration,
    /// After this silence on both paths the other one is taken for lost.
    pub timeout: Duration,
    /// Time between the beginnings of two epochs, if nothing speaks for another one,
    pub interval: Duration,
    /// if somebody waits,
    pub interval_min: Duration,
    /// if the link does not carry more.
    pub interval_max: Duration,
    /// A capture that takes longer will never end.
    pub wedge: Duration,
    /// What did not work is tried again after this.
    pub again: Duration,
}

fn one() -> usize {
    1
}

impl Default for Limits {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Limits {
            guarantee: Guarantee::Hold,
            on_loss: OnLoss::Hold,
            fence: false,
            witness: false,
            keep_demoted: false,
            standbys: 1,
            acks: Acks::Majority,
            beat: ms(100),
            timeout: ms(1000),
            interval: ms(50),
            interval_min: ms(5),
            interval_max: ms(1000),
            wedge: ms(5000),
            again: ms(1000),
        }
    }
}

impl Limits {
    /// How long output may go out after a frame was sent that the standby has heard; how long a witness prefers who has asked.
    pub fn lease(&self) -> Duration {
        self.timeout * 3 / 4
    }

    /// How many standbys, itself counted, must be for the one that takes over: among any so many is one that has whatever was let out,
    /// and no two of them can have so many at a time.
    pub fn votes(&self) -> usize {
        let most = self.standbys / 2 + 1;
        if self.acks == Acks::One { self.standbys } else { most }
    }

    /// How many standbys have an epoch at least before what came of it may go out.
    pub fn quorum(&self) -> usize {
        self.standbys - self.votes() + 1
    }

    /// Somebody else is asked before it is taken over.
    pub fn asks(&self) -> bool {
        self.witness || self.standbys > 1
    }
}

/// Whose a generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This end's.
    Mine,
    /// The other end's.
    Peers,
    /// Of another watch of the same name.
    Strangers,
    /// Nobody has had one.
    Nobodys,
}

/// What a witness says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ruling {
    /// What was asked for is this end's.
    pub granted: bool,
    /// The highest generation,
    pub generation: u64,
    /// and whose it is.
    pub whose: Whose,
    /// How long it will not grant the next one to anybody else.
    pub left: Duration,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Once, before everything else.
    Start,
    /// Time goes by; whenever `wake` says so, or more often.
    Tick,
    /// A frame has come that the other end has sealed.
    Heard(Path, Frame),
    /// There is a link again.
    Linked,
    /// There is none any more.
    LinkLost,
    /// Primary: what is under way cannot be sent again: everything is to be copied anew. Standby: what is here is behind, and is to
    /// be given up for a copy of everything.
    Anew,
    /// The other end's process is known to have ended: its host says so.
    Gone,
    /// What came of [`Action::Fence`]: whether the other host is known to be off.
    Fenced(bool),
    /// Standby: what came of [`Action::Poll`]: whether it has so many votes that it is the only one.
    Voted(bool),
    /// What came of [`Action::Ask`],
    Ruled(Ruling),
    /// or that nothing has.
    Unruled,
    /// What came of [`Action::Record`]: whether it is durable.
    Recorded(bool),
    /// What was asked for last came to nothing.
    Failed,

    /// Primary: the tree goes on, and what changed is copied.
    Captured(Mark),
    /// Primary: the whole epoch was given to the link.
    Sent(Mark),
    /// Primary: somebody waits for an epoch.
    Wanted,
    /// Primary: whether the tree did hardly anything since the last epoch.
    Idle(bool),
    /// The tree stood still so long for an epoch.
    Stood(Duration),
    /// Primary: the tree has ended, or is not to be watched any more.
    Over,
    /// Primary: the answer to [`Action::Demote`].
    Demoted,
    /// Primary: the standby is to take over now.
    Yield,
    /// Primary: nothing is to be copied for a while, and nothing to wait.
    Pause,
    /// Primary: it is to be protected again.
    Resume,
    /// Primary: the answer to [`Action::Finish`] and [`Action::Reap`].
    Finished,

    /// Standby: an epoch is here as a whole.
    Whole {
        /// Of the primary that sent it.
        generation: u64,
        /// Which.
        mark: Mark,
        /// One may take over from it,
        ready: bool,
        /// or not yet.
        part: Part,
    },
    /// Standby: there was no room for what came. Primary: so many of several standbys had none that too few are left.
    Full,
    /// Standby: it has given its vote to another one, or has it again.
    Lent(bool),
    /// Standby: the address is blocked.
    Blocked,
    /// Standby: the last whole epoch is in place.
    Placed,
    /// Standby: its sockets are there, and silent.
    Restored,
    /// Standby: whether nobody else has the address.
    Probed(bool),
    /// Standby: the address is up.
    Raised,
    /// Standby: the neighbours were told.
    Told,
    /// Standby: nothing is blocked any more.
    Unblocked,
    /// Standby: it runs.
    Runs,
}

/// What is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// A primary answers.
    Primary {
        /// Its own.
        generation: u64,
        /// Which process it is for this tree.
        instance: u64,
    },
    /// With this generation a standby has taken over.
    Taken(u64),
    /// With this generation it was about to, as it was asked to. Where the tree does not live it has not.
    Taking(u64),
    /// Nobody here does: this higher generation was heard.
    Demoted(u64),
}

/// What is to be done. Those that take their time answer with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Both: say this, if the path is there.
    Send(Path, Frame),
    /// Both: have the other host ended. Answer: `Fenced`.
    Fence,
    /// Both: ask the witness for this generation; what was asked before is not waited for any more. Answer: `Ruled`, `Unruled`.
    Ask(u64),
    /// Standby: ask the other ones for their votes, for this generation. Answer: `Voted`.
    Poll(u64),
    /// Standby: give back the votes that it has.
    Forgo,
    /// Primary: tell the witness that this generation is still its own, and that the standby may have the next one at once. Answer
    /// as for `Ask`.
    Cede(u64),
    /// Both: make this durable. Answer: `Recorded`.
    Record(Activation),
    /// Both: this is to be known.
    Say(Said),
    /// Both: nothing more is to be done here.
    End,

    /// Primary: from now on output waits for its epoch, or needs a lease.
    Hold,
    /// Primary: output goes out, all that was held, too.
    Free,
    /// Primary: the address stays up until then, without another word from here. With [`Guarantee::Hot`] nothing else keeps output
    /// from going out; with [`Guarantee::Hold`] it is what keeps two from having the address.
    Lease(Duration),
    /// Primary: copy what has changed; everything for number 1. Answer: `Captured`, `Failed`.
    Capture(Mark),
    /// Primary: send an epoch, over a link that is there; `ready`: one may take over from it. Answer: `Sent`.
    Ship {
        /// Which.
        mark: Mark,
        /// One may take over from it.
        ready: bool,
    },
    /// Primary: what left the tree before this epoch was captured may go out. Its copy is not needed any more.
    Release(Mark),
    /// Primary: copies of this epoch and those before it are not needed any more; what is held stays held.
    Discard(Mark),
    /// Primary: the link carries nothing, and is to be made again. Answer: `LinkLost`, and `Linked` when it was.
    Relink,
    /// Primary: take the address down: nothing gets out, and another host may be about to ask whether it is free.
    Hide,
    /// Primary: bring the address up again.
    Show,
    /// Primary: freeze the tree, give up its address, let nothing out any more. Answer: `Demoted`.
    Demote,
    /// Primary: what stands still since [`Action::Demote`] runs elsewhere: end it here, without a word to anybody. Answer: `Finished`,
    /// `Failed`.
    Reap,
    /// Primary: copy what has changed, and keep the tree still. Answer: `Captured`; `Failed` when it goes on.
    Last(Mark),
    /// Primary: what stands still since [`Action::Last`] goes on here. What it says is held, and its address down, as before.
    Thaw,
    /// Primary: the tree runs at the standby, as was wanted: end it here, without a word to anybody. Answer: `Finished`.
    Finish,

    /// Standby: keep this epoch, bring the clone up to it.
    Keep(Mark),
    /// Standby: nothing that is here is of use any more.
    Drop,
    /// Standby: nothing may answer at the address. Answer: `Blocked`, `Failed`.
    Block,
    /// Standby: as it was before [`Action::Block`].
    Unblock,
    /// Standby: nothing is left of what was done since [`Action::Block`]; what was planted is ended.
    Undo,
    /// Standby: bring the clone to exactly this epoch. Answer: `Placed`, `Failed`.
    Place(Mark),
    /// Standby: rebuild what is left, sockets in repair. Answer: `Restored`, `Failed`.
    Restore,
    /// Standby: has somebody else the address? Answer: `Probed`.
    Probe,
    /// Standby: bring the address up. Answer: `Raised`, `Failed`.
    Raise,
    /// Standby: tell the neighbours. Answer: `Told`.
    Tell,
    /// Standby: let packets in. Answer: `Unblocked`.
    Open,
    /// Standby: sockets out of repair; run. Answer: `Runs`, `Failed`.
    Run,
}

/// How things stand, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// A loss of this host would end it.
    Unprotected,
    /// It survives the loss of this host.
    Protected,
    /// The standby has no room for it.
    Full,
    /// The link does not carry an epoch in the time that was wished.
    Slow,
    /// Nothing gets out until it is known what has become of the standby.
    Cut,
    /// It goes on alone, since a user wants it so; if the standby lives, two may answer.
    AtRisk,
    /// One path is silent.
    OnePath(Path),
    /// Both are there again.
    BothPaths,
    /// The primary is lost.
    TakingOver,
    /// Too few of the other standbys vote for this one.
    Unvoted,
    /// The witness does not let it be taken over,
    Refused,
    /// since the primary goes on without this one,
    Outdated,
    /// or says nothing.
    Unruled,
    /// Somebody else has the address.
    Taken,
    /// It runs here now.
    TakenOver,
    /// It could not be taken over.
    Failed,
    /// Somebody else has taken over.
    Demoted,
    /// It runs there, and what stood still here was ended.
    Replaced,
    /// A user wants it to be unprotected for a while.
    Paused,
    /// It stands still, and the standby is to take over.
    Yielding,
    /// It was not taken over, and goes on here.
    Stayed,
    /// The standby was told to let it run, and is not heard any more.
    Unsure,
    /// The standby has taken over, as was wanted.
    Switched,
    /// The watch is over.
    Over,
}
