//! Machines, kernels and disks that are broken on purpose: the simulator is to see each of them.

use super::found;
use super::world::Flaw;
use crate::migrate::simulate::flaws;

flaws! {
    output_that_does_not_wait: ReleaseUnsaid,
    a_word_before_the_epoch: EarlyWord,
    output_that_waits_too_late: LateHold,
    a_primary_that_takes_silence_for_freedom: SilenceIsFreedom,
    a_primary_that_takes_any_end_for_freedom: GoneIsFreedom,
    a_take_over_that_is_not_on_record: NoRecord,
    a_standby_that_takes_epochs_when_it_has_decided: TakesEpochsLate,
    a_clone_that_is_not_dropped: KeepsOldSeries,
    a_generation_that_is_not_heeded: NoGeneration,
    a_tree_that_is_ended_too_soon: EndsTooSoon,
    epochs_with_gaps: GapsAreFine,
    a_lease_that_does_not_end: NoLease,
    a_lease_that_is_too_long: LongLease,
    a_standby_that_takes_its_own_stop_for_silence: NoPardon,
    one_path_that_is_enough: OnePathIsEnough,
    a_watch_that_ends_too_early: LeavesAtOnce,
    a_fence_that_need_not_work: FenceNeedNotWork,
    a_primary_that_takes_a_silent_witness_for_leave: SilenceIsLeave,
    a_standby_that_takes_a_silent_witness_for_a_grant: SilenceIsGrant,
    a_witness_that_grants_to_both: GrantsToBoth,
    a_witness_that_forgets: WitnessForgets,
    a_witness_that_tells_without_writing: TellsWithoutWriting,
    a_witness_without_leases: NoWitnessLease,
}
