//! Files that take their places, and those that do not.

use super::super::Storage;
use super::*;
use crate::migrate::state::{Recorded, Verdict};

const ID: Id = [7; 16];

struct Place {
    folder: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(folder.path().join("store")).unwrap();
        fs::write(folder.path().join("old"), "before").unwrap();
        fs::write(folder.path().join("followed"), "as it is here").unwrap();
        Place { folder, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn begin(&self) -> Stage {
        let wanted = |name: &str| Wanted {
            pid: 1,
            object: name.into(),
            path: of(&self.path(name)),
            kind: libc::S_IFREG,
            size: 0,
            build_id: None,
            content: None,
            written: true,
            storage: Storage::default(),
        };
        let wanted: Vec<Wanted> = ["old", "followed", "new/er/file"].into_iter().map(wanted).collect();
        let there: Vec<_> = wanted.iter().map(|w| now(&w.path)).collect();
        let request = Request { wanted, copying: Copying::Written, ..Request::default() };
        Stage::begin(self.folder.path(), &ID, &request, &there, &self.store).unwrap().expect("there is something to send")
    }

    fn fill(&self, stage: &mut Stage) {
        fs::write(stage.build(&self.path("old"), true).unwrap(), "after").unwrap();
        stage.folder(&self.path("new")).unwrap();
        stage.folder(&self.path("new/er")).unwrap();
        fs::write(stage.build(&self.path("new/er/file"), true).unwrap(), "new").unwrap();
        let built = stage.build(&self.path("followed"), false).unwrap();
        assert_eq!(fs::read_to_string(&built).unwrap(), "as it is here");
        fs::write(built, "as it is there").unwrap();
        assert_eq!(self.text("old"), "before", "nothing has its place yet");
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// All names, but for the store's.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).filter(|n| n != "store").collect();
        names.sort();
        names
    }

    fn is_as_before(&self) {
        assert_eq!(self.names(), ["followed", "old"]);
        assert_eq!((self.text("old"), self.text("followed")), ("before".into(), "as it is here".into()));
    }
}

#[test]
fn what_is_kept_takes_its_place() {
    let place = Place::new();
    let mut stage = place.begin();
    place.fill(&mut stage);
    stage.take_places().unwrap();
    assert_eq!(stage.keep(), Vec::<String>::new());
    drop(stage);
    assert_eq!(place.names(), ["followed", "new", "old"]);
    let texts = ["old", "new/er/file", "followed"].map(|name| place.text(name));
    assert_eq!(texts, ["after", "new", "as it is there"]);
    assert_eq!(fs::read_dir(place.path("new/er")).unwrap().count(), 1);
}

#[test]
fn what_is_given_up_is_as_it_was() {
    for places in [false, true] {
        let place = Place::new();
        let mut stage = place.begin();
        place.fill(&mut stage);
        if places {
            stage.take_places().unwrap();
            assert_eq!(place.text("old"), "after");
        }
        assert_eq!(stage.undo(), Vec::<String>::new());
        assert!(stage.build(&place.path("old"), true).is_err(), "nothing is built any more");
        place.is_as_before();
    }
}

/// As if nobody were there any more: what is on record says what becomes of it.
#[test]
fn what_a_killed_meio_has_left_is_settled() {
    for (verdict, stays) in [(None, false), (Some(Verdict::Refused), false), (Some(Verdict::Going), true)] {
        let place = Place::new();
        let mut stage = place.begin();
        place.fill(&mut stage);
        stage.take_places().unwrap();
        if let Some(verdict) = verdict {
            let own = record::Member::of(std::process::id() as i32).unwrap();
            assert_eq!(place.store.judge(&ID, verdict, own, &[]), Recorded::Written);
        }
        // Somebody answers for it.
        journal::sweep(place.folder.path(), &place.store);
        assert_eq!(place.text("old"), "after");
        let path = stage.journal.path().to_owned();
        stage.settled = true;
        let _ = stage.guardian.take().map(Guardian::dismiss);
        drop(stage);
        assert!(path.exists());
        journal::sweep(place.folder.path(), &place.store);
        assert!(!path.exists());
        if stays {
            assert_eq!((place.names().len(), place.text("old")), (3, "after".into()));
        } else {
            place.is_as_before();
        }
    }
}

/// Links and renames that were noted and not done, or half done.
#[test]
fn what_was_half_done_is_undone() {
    for step in 0..3 {
        let place = Place::new();
        let mut stage = place.begin();
        let built = stage.build(&place.path("old"), true).unwrap();
        let aside = place.path(".aside");
        let meta = fs::symlink_metadata(&built).unwrap();
        let deed = Deed::Placed { path: of(&place.path("old")), aside: Some(of(&aside)), file: (meta.dev(), meta.ino()) };
        stage.journal.note(&deed).unwrap();
        if step > 0 {
            fs::hard_link(place.path("old"), &aside).unwrap();
        }
        if step > 1 {
            fs::rename(&built, place.path("old")).unwrap();
        }
        assert_eq!(stage.undo(), Vec::<String>::new());
        place.is_as_before();
    }
}

#[test]
fn what_others_have_changed_is_left_alone() {
    let place = Place::new();
    let mut stage = place.begin();
    place.fill(&mut stage);
    fs::write(place.path("old"), "by somebody else").unwrap();
    assert!(stage.take_places().unwrap_err().message.contains("somebody else"));
    stage.undo();
    drop(stage);
    assert_eq!((place.names(), place.text("old")), (vec!["followed".into(), "old".into()], "by somebody else".into()));
    let mut stage = place.begin();
    assert!(stage.build(&place.path("not agreed"), true).is_err());
    assert!(stage.folder(&place.path("not agreed")).is_err());
}
