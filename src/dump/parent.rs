//! The image that the next one builds upon.

use crate::image::{Inherited, ParentLink};

/// What a child has of its parent.
pub struct Heritage {
    /// Which image it is.
    pub link: ParentLink,
    /// Its pages by their hashes, where pages that are read are to be compared with them.
    pub inherited: Option<Inherited>,
}
