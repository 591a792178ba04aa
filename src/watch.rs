//! The watch screenplay: a tree that outlives its host. Epoch after epoch goes to a standby, which goes on when nothing is heard
//! of the primary any more.
//!
//! ```text
//! protect    what the primary does; tree: the thread that has the tree; lease: its address, in the hands of a child of meio; gate: what leaves it, and waits
//!   again      calls the standby, and calls it again; pulse: whether the tree does anything; copies: images on their way, and kept; start: what it
//!              begins with; resume: after a meio that was killed; say: what people are told
//! agent      what the standby does; clone: what it keeps; visit: a primary that comes back
//!   fit        whether it can be; setup: what they say to each other before; frame: what they say then, as bytes
//!   beat       heartbeats beside the link; polls: what several standbys say to each other; fence: the command that ends the other host
//!   witness    a third party that says who may go on, where there is one
//! state      who answers: two pure machines; simulate breaks everything around them
//!   notice     silence on two paths, and jitter; pace: when an epoch begins
//! comeback   a former primary that stands by for who has taken over; turn: that one becomes the primary
//! ring       one of several hosts: it stands by, or has taken over and lets the others in; porch: where they come who call
//! local      images in a folder, where there is no standby
//! switch     the primary's part in a take-over that a user wants; raised: the addresses at a standby that takes over
//! steps      how long each step of a take-over took; history: what has become of a watch, and who is told
//! record     what is durable of it, on each host
//! change     who stands by is changed while it runs; handover: a take-over, for who wants it, among several, too
//! clean      what was left behind; control: the socket over which people ask and command; status: what they are told
//!   nodes      what the hosts of a watch tell each other of themselves, for who asks any of them
//! ```
//!
//! Who answers is decided by [`state`], which does nothing by itself; [`protect`] and [`agent`] do what it says and tell it what
//! came of that.
//!
//! # The path of an epoch
//!
//! On the primary one thread belongs to the tree (ptrace binds it to one) and makes an image of what has changed
//! ([`crate::dump::moving::Moving::round`]) into a pipe that ends in the streams of the transport; another one belongs to the
//! machine, the link and the heartbeats, and is never kept waiting by the tree. What an image is called (series, number, whether
//! one may take over from it) goes over the link behind it. The standby has every page once ([`clone`], [`crate::image::Flat`]), and
//! brings in what is new of each epoch when it is whole and nothing older will be taken over from. Taking over is a lazy restore
//! of that: it runs before its memory is there, and gives back what it has had. Where the standby has no room for an epoch it gives
//! up all that it has, and says so ([`state::Word::Standby`]).
//!
//! # What is held
//!
//! With [`state::Guarantee::Hold`] whatever leaves the addresses of the tree waits in a queue of the kernel ([`gate`],
//! [`crate::netlock::hold`]). When the tree stands still, before anything of it is looked at, a mark is put behind what is there:
//! all of it came of a state that this epoch has, or an older one. At [`state::Action::Release`] it goes out. What comes to wait
//! sets off the next epoch as soon as the last one is whole. A meio that is killed leaves a queue that nobody serves, and rules that
//! let nothing past it; the child that has its lease takes the address down. No other chain may be taken away in that network
//! namespace meanwhile, since the kernel empties all queues with it: the locks of the epochs stay and are only opened.
//!
//! # When the link is lost
//!
//! Who stands by stays, and keeps a door open ([`visit`]): a new session of ssh lends it its ends. It says how many images it has;
//! those of the epochs under way that it has not are sent again out of [`copies`], and the series goes on. An image that was too
//! large to be kept, or a first copy, begins a new series. Where nobody is at the door a new standby is begun, which is a new series,
//! too. That one could be begun at all says that the other is no more: only one process can have the claim of a watch on a host;
//! and if it had taken over, that is on record there. A primary that was killed comes to the same door: another process, the same
//! generation, and a series of its own, until whose first word nothing gets out.
//!
//! # Several standbys
//!
//! The primary has a link to each of them ([`protect`], others), and one image of each epoch, packed once, goes to all
//! ([`copies`], fan): who is slow falls behind and catches up, and is waited for only where too few others have what is to be let out. What is
//! known of them goes through [`state::Group`] before the machine hears it. The standbys speak to each other beside all that, with a key
//! of the primary's making ([`polls`]), from the beginning of the watch until one of them has taken over. The others end then, with that
//! generation on record, and call the one that has, by SSH, as a former primary does ([`comeback`]). That one goes on as the primary
//! of another watch with all who have come ([`ring`]); who comes later comes to its door ([`porch`]) and is taken in by the next one:
//! those who stand by are told that it follows, and call again. So each set of hosts has votes of its own, under a key of its own and a
//! higher generation. Whoever belongs to it and does not come is called now and then, and calls back: a former primary that was cut off
//! hears by that that it was taken over. To hand it over as is wanted is two steps of the same kind: a watch with that one alone, which takes
//! over as a single standby does, and then its own, with all. A primary that was killed comes to all of their doors again, with a series of its own: where one of them has
//! been voted for already too few are left that hear it, and it hears of that one.
//!
//! A standby that misses something of a series, since it was begun anew or was too far behind, is filled beside the others, whose
//! clones are not given up for its sake: every page that the last epoch names is read while the tree runs ([`crate::dump::Base`]), sent
//! to it alone, ahead of all that comes after ([`copies`], `fan::fill`). With an epoch that was begun when the last page had been read it
//! has what the others have, and counts again ([`state::Part`]). What comes for it meanwhile is kept up to a bound, behind which it is begun
//! anew. Where too few are left that have the series there is another one, for all.
//!
//! # What is not here yet, and where it goes
//!
//! * A clone whose processes are planted beforehand: [`state::Action::Keep`] is where it is brought up to an epoch,
//!   [`state::Action::Place`] where it must be at one.

mod again;
pub mod agent;
mod beat;
mod bell;
pub mod change;
pub mod clean;
mod clone;
pub mod comeback;
pub mod control;
mod copies;
mod ear;
mod fence;
mod fit;
mod frame;
pub mod gate;
pub mod handover;
pub mod history;
mod lease;
pub mod local;
pub mod nodes;
mod polls;
mod porch;
pub mod protect;
mod pulse;
mod raised;
pub mod record;
mod resume;
mod ring;
mod say;
mod setup;
#[cfg(test)]
mod simulate;
mod start;
pub mod state;
pub mod status;
mod steps;
pub mod switch;
mod tree;
mod turn;
mod visit;
pub mod witness;
