//! The image that the next one builds upon: opened and looked through before anything of the tree is touched.

use super::Output;
use crate::error::{Context, Error, Kind, Result};
use crate::image::{Chain, Inherited, PAGE, ParentLink, Reader, folder_of};
use crate::progress::Report;
use crate::resource::birth::Birth;
use crate::resource::shared::Object;
use crate::resource::{Manifest, Tree};
use crate::sys::proc::{read, status};
use crate::sys::{arch, signal};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// What a child has of its parent.
pub struct Heritage {
    /// Which image it is.
    pub link: ParentLink,
    /// Its pages by their hashes, where pages that are read are to be compared with them.
    pub inherited: Option<Inherited>,
    /// Which tree it is of.
    birth: Birth,
    /// Its memory objects.
    objects: Vec<Object>,
}

impl Heritage {
    /// Opens the image at `path` as the parent of one of the tree below `pid`, whose root began as `birth` says, that goes to
    /// `output`. It must be whole, with all that it builds upon itself, and of the same tree.
    pub fn open(path: &Path, pid: i32, birth: &Birth, output: &Output, report: &mut dyn Report) -> Result<Heritage> {
        let doing = || format!("parent image {}", path.display());
        let unusable = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => Error::image("it is missing"),
            _ => e.into(),
        };
        let metadata = std::fs::metadata(path).map_err(unusable).context(doing)?;
        if !metadata.is_file() {
            return Err(Error::image("it is no regular file").context(doing()));
        }
        let mut reader = Reader::from_file(File::open(path).map_err(unusable).context(doing)?, arch::MACHINE).context(doing)?;
        let manifest: Manifest = reader.manifest().context(doing)?;
        let theirs = manifest.birth.as_ref().filter(|theirs| birth.is_of(theirs) && has_number(pid, manifest.root_pid));
        let Some(theirs) = theirs else {
            let other = format!("it is of another process {}, which ran on {}", manifest.root_pid, manifest.host);
            return Err(Error::image(other)
                .context(doing())
                .help("a parent is an image of the same tree; without --parent the dump is whole"));
        };
        let objects = reader.tree::<Tree>().context(doing)?.objects;
        let chain = Chain::whole(path, arch::MACHINE, &[])?;
        if let Output::Path(output) = output
            && let Ok(output) = std::fs::canonicalize(output)
            && let Some(member) = chain.members.iter().find(|m| std::fs::canonicalize(&m.path).is_ok_and(|p| p == output))
        {
            let what = format!("the image would replace {}, which it builds upon", member.path.display());
            return Err(Error::new(Kind::Usage, what).help("give it another name"));
        }
        // Of pages that the tree does not have any more no child knows what to do.
        let most = 2 * super::extent(pid).1 / PAGE as u64 + (1 << 18);
        let inherited = Inherited::of_image(&chain, most, &mut |bytes| {
            report.bytes(bytes, None);
            signal::check_interrupted()
        })?;
        let link = ParentLink { id: chain.members[0].id, hash: chain.members[0].hash, file: hint(path, output)?, objects: Vec::new() };
        Ok(Heritage { link, inherited: Some(inherited), birth: theirs.clone(), objects })
    }

    /// The image before this one in a series, which is at `path`: its id and name, and the tree then. What has not changed
    /// since is known, nothing needs to be compared.
    pub fn after((id, hash): ([u8; 16], crate::image::Hash), birth: Birth, path: &Path, output: &Output) -> Result<Heritage> {
        let link = ParentLink { id, hash, file: hint(path, output)?, objects: Vec::new() };
        Ok(Heritage { link, inherited: None, birth, objects: Vec::new() })
    }

    /// The same for images that are in a folder of another machine, where this one has this name.
    pub fn named((id, hash): ([u8; 16], crate::image::Hash), birth: Birth, name: &str) -> Heritage {
        let link = ParentLink { id, hash, file: name.as_bytes().to_vec(), objects: Vec::new() };
        Heritage { link, inherited: None, birth, objects: Vec::new() }
    }

    /// Finds the memory objects of the tree as it stands now among those of the parent.
    pub fn settle(&mut self, birth: &Birth, objects: &[Object]) {
        self.link.objects = if birth.ran_on_from(&self.birth) {
            by_inode(&birth.objects, &self.birth.objects)
        } else {
            // A restored tree: the same one has the same number, or a page of it is found to differ.
            let same = objects.iter().zip(&self.objects).filter(|(here, there)| here.origin == there.origin);
            same.map(|(here, _)| (here.id, here.id)).collect()
        };
        if let Some(inherited) = &mut self.inherited {
            inherited.adopt(&self.link);
        }
    }
}

/// The numbers of those that are in both lists, by the first.
fn by_inode(here: &[(u64, u64)], there: &[(u64, u64)]) -> Vec<(u32, u32)> {
    let known: std::collections::HashMap<_, _> = there.iter().enumerate().map(|(n, inode)| (inode, n as u32)).collect();
    let mut used = std::collections::HashSet::new();
    let found = here.iter().enumerate().filter_map(|(n, inode)| Some((n as u32, *known.get(inode)?)));
    found.filter(|&(_, there)| used.insert(there)).collect()
}

/// Whether a process has this number in one of the pid namespaces that it is in.
fn has_number(pid: i32, number: i32) -> bool {
    pid == number || read::parsed(pid, "status", status::parse).is_ok_and(|s| s.ns_pid.contains(&number))
}

/// The parent's path as the child says it: from its own folder where they have one above them in common.
fn hint(parent: &Path, output: &Output) -> Result<Vec<u8>> {
    let parent = std::fs::canonicalize(parent).context(|| parent.display().to_string())?;
    let path = match output {
        Output::Path(child) => relative(&folder_of(child), &parent),
        Output::Stdout | Output::Pipe(_) => parent,
    };
    Ok(path.as_os_str().as_bytes().to_vec())
}

fn relative(folder: &Path, path: &Path) -> PathBuf {
    let folder = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    let common = folder.components().zip(path.components()).take_while(|(a, b)| a == b).count();
    // With nothing but the root in common it is no way from here.
    if common < 2 && folder.components().count() > 1 {
        return path.to_owned();
    }
    let up = folder.components().skip(common).map(|_| Component::ParentDir);
    up.chain(path.components().skip(common)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_named_from_the_folder_of_the_child() {
        let from = |folder: &str, path: &str| relative(Path::new(folder), Path::new(path)).display().to_string();
        assert_eq!(from("/no/such/a", "/no/such/a/1.meio"), "1.meio");
        assert_eq!(from("/no/such/a", "/no/such/a/full/1.meio"), "full/1.meio");
        assert_eq!(from("/no/such/a", "/no/such/b/1.meio"), "../b/1.meio");
        assert_eq!(from("/no/such/a", "/other/1.meio"), "/other/1.meio");
        assert_eq!(from("/", "/1.meio"), "1.meio");
    }

    #[test]
    fn objects_are_found_by_their_inodes() {
        let there = [(1, 10), (1, 11), (2, 10)];
        assert_eq!(by_inode(&[(2, 10), (1, 12), (1, 10)], &there), [(0, 2), (2, 0)]);
        assert_eq!(by_inode(&[(1, 10), (1, 10)], &there), [(0, 0)], "no two are one");
        assert_eq!(by_inode(&[], &there), []);
    }
}
