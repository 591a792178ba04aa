//! The saved form of a tree: one append-only stream of sections, the same on disk and on a wire.
//! The byte tables stand in `man/meio-image.5`. Nothing here touches a kernel.
//!
//! Writing: worker threads [`encode`] blocks of pages, one thread appends them in order with a [`Writer`].
//! Reading: one thread walks the sections with a [`Reader`], worker threads decode the blocks; a block's
//! copies are found again through a [`Placement`]. What an image has from others is found by [`Chain`], which reads no
//! more than that needs, or by [`Resolved`], which is made one image after the other while they come; [`Flat`] is what they come to. What stands in the metadata is the callers' business:
//! any serde type.

mod chain;
mod dedup;
mod elsewhere;
mod encode;
mod encoded;
mod entries;
mod flat;
mod format;
mod index;
mod inherited;
mod link;
mod pages;
mod placement;
mod reader;
mod resolved;
mod source;
mod spread;
mod verify;
mod wanted;
mod writer;

pub use chain::{Chain, FromParent, Needed, Piece, folder_of};
pub use dedup::Dedup;
pub use elsewhere::{Absent, Elsewhere, Left};
pub use encode::{
    Codec, Encoded, Known, Laid, MAX_KEPT, Pages, encode, encode_apart, encode_child, encode_kept, encode_known, encode_zero,
};
pub use encoded::EncodedBlock;
pub use entries::differs;
pub use flat::Flat;
pub use format::{BLOCK_PAGES, PAGE, SectionKind};
pub use inherited::Inherited;
pub use link::ParentLink;
pub use pages::{Block, Content, Owner, Run};
pub use placement::Placement;
pub use reader::Reader;
pub use resolved::{At, Place, Resolved, Source, deliver};
pub use verify::{Report, verify};
pub use writer::{Options, Placed, Summary, Writer, raw_data_at};

/// The hash of an image: BLAKE3 over its header and all section headers. It is the image's name.
pub type Hash = blake3::Hash;

/// `serde(with)` helper: `Vec<u8>` as a CBOR byte string.
pub mod bytes {
    use serde::{Deserializer, Serializer, de};

    /// Writes a byte string.
    pub fn serialize<S: Serializer>(v: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(v)
    }

    /// Reads a byte string, without trusting a length that it claims.
    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct V;
        impl<'de> de::Visitor<'de> for V {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E: de::Error>(self, v: &[u8]) -> Result<Vec<u8>, E> {
                Ok(v.to_vec())
            }
            fn visit_byte_buf<E: de::Error>(self, v: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(v)
            }
        }
        d.deserialize_byte_buf(V)
    }
}

#[cfg(test)]
mod tests;
