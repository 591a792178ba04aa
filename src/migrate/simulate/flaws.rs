//! Machines and disks that are broken on purpose: the simulator is to see each of them.

use super::found;
use super::world::Flaw;

/// A test for each flaw: it is found.
macro_rules! flaws {
    ($($name:ident: $flaw:ident,)*) => {
        $(
            #[test]
            fn $name() {
                println!("{}", found(Flaw::$flaw));
            }
        )*
    };
}
pub(crate) use flaws;

flaws! {
    a_commit_that_is_not_durable: NoCommit,
    a_stop_that_is_not_on_record: NoStopping,
    a_stop_that_ends_with_meio: NoGroupStop,
    an_end_that_is_not_on_record: NoMoved,
    a_refusal_that_is_not_durable: NoRefusal,
    a_go_that_is_not_on_record: NoGoing,
    a_go_after_a_refusal: GoingOverRefused,
    a_target_that_does_not_wait: ReadyRuns,
    a_target_whose_new_start_is_not_noticed: NoBoot,
    a_perhaps_that_is_taken_for_never: PerhapsIsNever,
    a_source_that_goes_on_when_the_link_is_lost: LostIsNever,
    a_source_that_ends_the_tree_too_early: GoIsAlive,
    a_last_word_before_the_last_byte: EarlyLast,
    a_source_that_does_not_wait_for_all_pages: PullingIsAlive,
    a_target_that_does_not_wait_for_all_pages: PullingIsWhole,
    a_look_that_does_not_ask_for_pages: PullingRuns,
}
