//! The payload of a PARENT section: which image this one builds upon, and how its owners are found there.

use super::Hash;
use super::pages::Owner;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What an image says of its parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Saved", into = "Saved")]
pub struct ParentLink {
    /// The random id in its header.
    pub id: [u8; 16],
    /// Its name.
    pub hash: Hash,
    /// Where it was: a path, from the child's folder unless it is absolute. A hint: it is known by its hash.
    pub file: Vec<u8>,
    /// Memory objects that may have pages as in the parent: number here, number there; by the former. Processes have
    /// the same number in both.
    pub objects: Vec<(u32, u32)>,
}

impl ParentLink {
    /// The owner in the parent whose pages are those that an owner of this image has from there.
    pub fn there(&self, owner: Owner) -> Option<Owner> {
        match owner {
            Owner::Process(_) => Some(owner),
            Owner::Object(here) => {
                let at = self.objects.binary_search_by_key(&here, |o| o.0).ok()?;
                Some(Owner::Object(self.objects[at].1))
            }
        }
    }
}

/// As it is saved.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    #[serde(with = "super::bytes")]
    id: Vec<u8>,
    #[serde(with = "super::bytes")]
    hash: Vec<u8>,
    #[serde(with = "super::bytes")]
    file: Vec<u8>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    objects: Vec<(u32, u32)>,
}

impl From<ParentLink> for Saved {
    fn from(link: ParentLink) -> Saved {
        Saved { id: link.id.into(), hash: link.hash.as_bytes().into(), file: link.file, objects: link.objects }
    }
}

impl TryFrom<Saved> for ParentLink {
    type Error = String;

    fn try_from(saved: Saved) -> Result<ParentLink, String> {
        let id = saved.id.try_into().map_err(|_| "the parent's id has a wrong length")?;
        let hash: [u8; 32] = saved.hash.try_into().map_err(|_| "the parent's hash has a wrong length")?;
        let Saved { file, objects, .. } = saved;
        if file.is_empty() || file.contains(&0) {
            return Err("the parent's file name is no path".into());
        }
        // Each has one of its own there: else few bytes could describe much more memory than there ever was.
        let mut there = HashSet::new();
        if !objects.is_sorted_by(|a, b| a.0 < b.0) || !objects.iter().all(|o| there.insert(o.1)) {
            return Err("its table of objects is out of order, or two of them are one in the parent".into());
        }
        Ok(ParentLink { id, hash: hash.into(), file, objects })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> ParentLink {
        ParentLink { id: [1; 16], hash: [2; 32].into(), file: b"one.meio".into(), objects: vec![(0, 3), (2, 0)] }
    }

    fn read(change: impl FnOnce(&mut Saved)) -> Result<ParentLink, String> {
        let mut saved = Saved::from(link());
        change(&mut saved);
        saved.try_into()
    }

    #[test]
    fn it_comes_back() {
        let mut bytes = Vec::new();
        ciborium::into_writer(&link(), &mut bytes).unwrap();
        assert_eq!(ciborium::from_reader::<ParentLink, _>(&bytes[..]).unwrap(), link());
        assert_eq!(read(|_| {}), Ok(link()));
    }

    #[test]
    fn owners_are_found_in_the_parent() {
        assert_eq!(link().there(Owner::Process(7)), Some(Owner::Process(7)));
        assert_eq!(link().there(Owner::Object(0)), Some(Owner::Object(3)));
        assert_eq!(link().there(Owner::Object(2)), Some(Owner::Object(0)));
        assert_eq!(link().there(Owner::Object(1)), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(read(|s| s.id.push(0)).unwrap_err().contains("id"));
        assert!(read(|s| s.hash.truncate(31)).unwrap_err().contains("hash"));
        assert!(read(|s| s.file.clear()).unwrap_err().contains("no path"));
        assert!(read(|s| s.file.push(0)).unwrap_err().contains("no path"));
        assert!(read(|s| s.objects.reverse()).unwrap_err().contains("out of order"));
        assert!(read(|s| s.objects.push((2, 1))).unwrap_err().contains("out of order"));
        assert!(read(|s| s.objects.push((3, 0))).unwrap_err().contains("one in the parent"));
    }
}
