//! The addresses of a tree that is coming: they are up where it is to run before it runs there.

use crate::error::Result;
use crate::migrate::address::Address;
use crate::migrate::message::Id;
use crate::migrate::record::Store;
use crate::migrate::state::Life;
use crate::sys::guardian::Guardian;
use std::time::Duration;

/// Those that were brought up. Should the agent die before it has answered for them, a child of it takes them down unless the
/// tree runs: the source may let it go on, at the same addresses.
#[derive(Default)]
pub struct Arrival {
    up: Vec<Address>,
    guardian: Option<Guardian>,
}

impl Arrival {
    /// These will be brought up. Nobody may answer at them before the tree does: the lock over what comes for it is to be there
    /// already, so that its guardian holds it, too.
    pub fn expect(addresses: &[Address], store: &Store, id: Id) -> Result<Self> {
        let (store, all) = (store.clone(), addresses.to_vec());
        let guardian = Guardian::post(&[], move || give_up_unless_it_runs(&store, &id, &all))?;
        guardian.entrust()?;
        Ok(Arrival { up: Vec::new(), guardian: Some(guardian) })
    }

    /// They are locked.
    ///
    /// # Errors
    /// When one of them cannot be had; those before it are up, and to be taken [down](Arrival::take_down).
    pub fn bring_up(&mut self, addresses: &[Address]) -> Result<()> {
        for address in addresses {
            address.bring_up()?;
            self.up.push(address.clone());
        }
        Ok(())
    }

    /// The tree runs: they are its own.
    pub fn keep(&mut self) {
        self.up.clear();
        self.dismiss();
    }

    /// The tree does not come.
    pub fn take_down(&mut self) {
        for address in self.up.drain(..) {
            let _ = address.take();
        }
        self.dismiss();
    }

    fn dismiss(&mut self) {
        let _ = self.guardian.take().map(Guardian::dismiss);
    }
}

/// What the agent would have done. Whether the tree is let run may be somebody else's to say: who brings the pages that are missing.
fn give_up_unless_it_runs(store: &Store, id: &Id, addresses: &[Address]) {
    const STEP: Duration = Duration::from_millis(50);
    let life = loop {
        match store.look(id) {
            Ok(Life::AtWork) => std::thread::sleep(STEP),
            life => break life.unwrap_or(Life::Gone),
        }
    };
    if life != Life::Runs {
        addresses.iter().for_each(|address| drop(address.take()));
    }
}
