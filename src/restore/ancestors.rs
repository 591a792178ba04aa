//! Pages that an image has from its ancestors, on their way into stubs.

use super::fill::Targets;
use crate::error::Result;
use crate::image::{Block, Chain, FromParent, Needed, Reader};

/// Places what the image of `reader`, which has been read to its end, has from its ancestors. Of an image that came as a
/// stream it is known now only what that is: `from_parent`.
pub fn fill(
    chain: Chain,
    reader: &Reader<'_>,
    from_parent: FromParent,
    targets: &Targets<'_>,
    progress: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let chain = if reader.is_stream() { Chain::find(reader, from_parent)? } else { chain };
    chain.zero.iter().try_for_each(|&(owner, address, pages)| targets.zero(owner, address, pages))?;
    let place = |needed: &Needed, block: &Block| {
        needed.pieces.iter().try_for_each(|piece| targets.write(piece.owner, piece.address, needed.bytes(block, piece)?))
    };
    chain.deliver(&place, progress)
}
