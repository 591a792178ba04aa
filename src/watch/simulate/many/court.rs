//! The witness of a world with several standbys, who are one end to it; and clocks that jump.

use super::super::super::state::{Event, Ruling};
use super::super::court::{Asks, Court, Matter, granted};
use super::super::parts::Gate;
use super::world::{Fault, Flaw, MS, What, World};
use crate::migrate::simulate::Dice;
use std::time::Duration;

impl Asks for World {
    fn bench(&mut self) -> &mut Court {
        &mut self.court
    }

    fn thrown(&mut self) -> &mut Dice {
        &mut self.dice
    }

    fn clock(&self) -> Duration {
        self.now
    }

    fn way(&mut self) -> Duration {
        self.short()
    }

    fn later(&mut self, delay: Duration, matter: Matter) {
        self.at(delay, What::Court(matter));
    }

    fn hears(&mut self, who: usize, number: u64, matter: Matter) -> bool {
        self.present(who, number, &What::Court(matter))
    }

    fn judgement(&mut self, who: usize, generation: u64, leases: bool) -> Option<Ruling> {
        let lease = if leases { self.limits.lease() } else { Duration::ZERO };
        self.court.judge(who, generation, lease, self.now, false)
    }

    fn silence(&mut self, who: usize, generation: u64) -> Event {
        let taken = self.flaw == Some(Flaw::SilenceIsGrant) && who > 0;
        if taken { Event::Ruled(granted(generation, Duration::ZERO)) } else { Event::Unruled }
    }

    fn ruled(&mut self, who: usize, event: Event) {
        self.step(who, event);
    }

    fn noted(&mut self, text: String) {
        self.tell(|_| text);
    }
}

impl World {
    /// The primary has its generation there before the watch begins.
    pub(super) fn open_court(&mut self) {
        self.court = Court::of(self.limits.standbys + 1);
        if self.limits.witness {
            self.judgement(0, 1, true);
        }
    }

    pub(super) fn befall_witness(&mut self, fault: Fault) {
        match fault {
            Fault::KillWitness => self.court.end(),
            Fault::AnewWitness => {
                self.court.end();
                self.begin_witness();
            }
            Fault::CutWitness(of) => {
                let way = 1 + self.dice.below(3);
                self.court.cut[of] = [way & 1 != 0, way & 2 != 0];
            }
            Fault::WitnessDisk => self.court.disk_fails = true,
            // Leases seem to be over at once.
            Fault::JumpWitness => {
                let leap = self.leap();
                self.court.ahead += leap;
            }
            _ => {}
        }
    }

    pub(super) fn heal_witness(&mut self, fault: Fault) {
        match fault {
            Fault::KillWitness if self.court.is_gone() => self.begin_witness(),
            Fault::CutWitness(of) => self.court.cut[of] = [false; 2],
            Fault::WitnessDisk => self.court.disk_fails = false,
            _ => {}
        }
    }

    pub(super) fn mend_witness(&mut self) {
        self.court.cut.fill([false; 2]);
        self.court.disk_fails = false;
        if self.court.is_gone() {
            self.begin_witness();
        }
    }

    /// With what is in its file, and another clock.
    fn begin_witness(&mut self) {
        let later = MS * self.dice.below(5000) as u32;
        self.court.begin(later, self.now, false);
    }

    /// From seconds to an hour.
    fn leap(&mut self) -> Duration {
        let most = if self.dice.chance(500) { 5_000 } else { 3_600_000 };
        self.limits.timeout + MS * self.dice.below(most) as u32
    }

    /// What a host takes the time for.
    pub(super) fn time(&self, who: usize) -> Duration {
        self.now + self.ahead[who]
    }

    /// The clock of a host jumps; whoever is there sees it with what comes next.
    pub(super) fn jump(&mut self, who: usize) {
        let leap = self.leap();
        self.ahead[who] += leap;
        if let (0, Gate::Leased(until)) = (who, &mut self.gate) {
            *until = until.saturating_sub(leap);
        }
        self.step(who, Event::Tick);
    }
}
