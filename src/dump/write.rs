//! All sections of an image, in their order.

use super::output::{Interruptible, Target};
use super::parent::Heritage;
use super::room::Room;
use super::rounds::Laid;
use super::tracking::Tracking;
use super::{Options, copy, tree};
use crate::error::{Context, Result};
use crate::image::{self, Codec, Dedup, SectionKind, Writer};
use crate::progress::Report;
use crate::resource::Manifest;
use crate::resource::birth::Birth;
use crate::sys::{arch, signal};
use std::fs::File;
use std::time::{SystemTime, UNIX_EPOCH};

/// What is written, and where.
pub struct Write<'a> {
    /// What the user asked for.
    pub options: &'a Options,
    /// Where it goes.
    pub target: &'a Target,
    /// The tree.
    pub captured: &'a tree::Captured,
    /// The random id of the image.
    pub id: [u8; 16],
    /// Pages that it has: keyed like those of the parent, where they are compared with them.
    pub dedup: &'a Dedup,
    /// Which tree it is of.
    pub birth: Birth,
    /// What it builds upon.
    pub parent: Option<&'a Heritage>,
}

impl Write<'_> {
    /// Writes all sections. `read_all` is called as soon as the tree is not needed any more.
    pub fn run(
        &self,
        tracking: Option<&Tracking>,
        room: &mut Room<'_>,
        report: &mut dyn Report,
        read_all: impl FnOnce(),
    ) -> Result<image::Summary> {
        self.sections(tracking, room, report, read_all).map_err(|e| {
            let laid = tracking.and_then(|t| Some(t.laid.as_ref()?.length() + Laid::bytes(&t.wanted)));
            self.target.no_room(e, copy::image_bytes(self.captured.bytes) + laid.unwrap_or(0))
        })
    }

    fn sections(
        &self,
        tracking: Option<&Tracking>,
        room: &mut Room<'_>,
        report: &mut dyn Report,
        read_all: impl FnOnce(),
    ) -> Result<image::Summary> {
        let &Write { options, target, captured, dedup, parent, .. } = self;
        let laid = tracking.and_then(|t| Some((t, t.laid.as_ref()?, &t.wanted)));
        let mut read_all = Some(read_all);
        let mut read_all = || {
            if let Some(read_all) = read_all.take() {
                read_all();
            }
        };
        let objects: Vec<File> = captured.capture.sources.iter().map(|s| s.file.try_clone()).collect::<std::io::Result<_>>()?;
        if room.stage(&captured.jobs, &objects)? {
            read_all();
        }
        let mut file = target.open();
        let mut writer = Writer::new(Interruptible(file), image::Options { machine: arch::MACHINE, id: self.id })?;
        writer.section(
            SectionKind::Manifest,
            &manifest(captured.tree.processes.first().map_or(options.pid, |root| root.pid), options.capsule.clone(), self.birth.clone()),
        )?;
        if let Some(parent) = parent {
            writer.parent(&parent.link)?;
        }
        writer.section(SectionKind::Tree, &captured.tree)?;
        if room.spool(&captured.jobs, &objects, writer.position())? {
            read_all();
        }
        let ready = room.ready();
        let codec = options.level.map_or(Codec::Raw, Codec::Zstd);
        let to = if target.is_file() { copy::Output::File(file) } else { copy::Output::Stream(file) };
        let mut all = captured.bytes;
        all += laid.map_or(0, |(_, _, wanted)| Laid::bytes(wanted));
        let mut tell = |pages: u64| {
            report.bytes(pages * image::PAGE as u64, Some(all));
            signal::check_interrupted()
        };
        let source = copy::Source { jobs: &captured.jobs, objects: &objects, codec, dedup, parent, ready, tracking };
        copy::copy(source, &mut writer, to, read_all, &mut tell)?;
        if let Some((tracking, laid, wanted)) = laid {
            let before = captured.bytes / image::PAGE as u64;
            let place = (writer.blocks(), parent.is_some());
            let numbers = &captured.numbers;
            let name = |of| tracking.owner(of, |pid| numbers.translate(pid));
            laid.write(&mut writer, to, wanted, place, name, |pages| tell(before + pages))?;
        }
        if target.is_file() {
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(writer.position())).context(|| "writing the image")?;
        }
        writer.index()?;
        let summary = writer.finish()?.1;
        target.trim(summary.bytes)?;
        Ok(summary)
    }
}

/// What an image says of where and of what it was made.
pub fn manifest(root_pid: i32, capsule: Option<String>, birth: Birth) -> Manifest {
    let uname = nix::sys::utsname::uname();
    let text = |f: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        uname.as_ref().map(|u| f(u).to_string_lossy().into_owned()).unwrap_or_default()
    };
    Manifest {
        meio: env!("CARGO_PKG_VERSION").to_owned(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        kernel: text(|u| u.release()),
        host: text(|u| u.nodename()),
        root_pid,
        xfeatures: arch::xfeatures(),
        processor: arch::instructions(),
        capsule,
        birth: Some(birth),
        stands_for: None,
    }
}
