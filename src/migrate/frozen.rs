//! Stand-in.
use super::address::Address;
use super::message::Id;
use super::state::Mark;
use crate::dump::moving::Standing;
use crate::error::Result;
/// Record.
pub struct Record;
impl Record {
    /// New.
    pub fn new(_: Id, _: Mark, _: u64, _: &Standing, _: &str, _: &[Address]) -> Result<Record> {
        Ok(Record)
    }
    /// Mark.
    pub fn mark(&mut self, _: Mark, _: u64) -> Result<()> {
        Ok(())
    }
    /// Forget.
    pub fn forget(self) {}
}
