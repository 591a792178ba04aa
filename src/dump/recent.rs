//! What pages held when they were copied last: of a page that is written to again and again mostly a few bytes are others, and who
//! has the page as it was needs no more than those. To find them costs less than to pack the page, and there is less to unpack.
//!
//! Memory is bounded: a page that was not copied again for long gives way.

use super::spans::Spans;
use crate::image::{Known, PAGE};
use crate::tracee::track::Of;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Pages that are remembered, at most: 64 MiB of them.
const MOST: usize = 16 << 10;
/// Pieces of a page that are compared, and how many of them may be others before the page is better packed as it is.
const PIECE: usize = 64;
const FEW: usize = PAGE / PIECE / 2;

static ZERO: [u8; PAGE] = [0; PAGE];

/// Pages as they were copied last.
#[derive(Default)]
pub struct Recent(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    places: HashMap<(Of, u64), usize>,
    pages: Vec<Page>,
    /// Which one is asked next to give way.
    hand: usize,
}

struct Page {
    name: (Of, u64),
    bytes: Box<[u8; PAGE]>,
    /// It was copied again since it was asked.
    again: bool,
}

impl Recent {
    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares pages with what they held before, and remembers what they hold now. Of those that the image before `has`, by address,
    /// and that differ little, there is how they differ afterwards: both, XOR.
    pub fn compare(&self, of: Of, ranges: &[(u64, u32)], pages: &mut [u8], has: impl Fn(u64) -> bool) -> Vec<Known> {
        let mut inner = self.locked();
        let addresses = ranges.iter().flat_map(|&(start, count)| (0..u64::from(count)).map(move |n| start + n * PAGE as u64));
        let (pages, _) = pages.as_chunks_mut::<PAGE>();
        addresses.zip(pages).map(|(address, page)| inner.compare((of, address), page, has(address))).collect()
    }

    /// What these pages hold is not what they held when they were copied here.
    pub fn forget(&self, of: Of, spans: &Spans) {
        let mut inner = self.locked();
        let gone: Vec<_> = inner.places.keys().filter(|(whose, at)| *whose == of && spans.contains(*at)).copied().collect();
        gone.iter().for_each(|name| inner.forget(name));
    }
}

impl Inner {
    fn compare(&mut self, name: (Of, u64), page: &mut [u8; PAGE], has: bool) -> Known {
        // A page of zeros is named, and is in no data that others could differ from.
        if *page == ZERO {
            self.forget(&name);
            return Known::Nothing;
        }
        let Some(&place) = self.places.get(&name) else {
            self.remember(name, page);
            return Known::Nothing;
        };
        let known = &mut self.pages[place];
        known.again = true;
        let (new, old) = (page.as_chunks::<PIECE>().0, known.bytes.as_chunks::<PIECE>().0);
        let others = new.iter().zip(old).filter(|(new, old)| new != old).count();
        if others == 0 && has {
            return Known::Same;
        }
        if others > FEW || !has {
            *known.bytes = *page;
            return Known::Nothing;
        }
        for (new, old) in page.iter_mut().zip(known.bytes.iter_mut()) {
            let differs = *new ^ *old;
            *old = std::mem::replace(new, differs);
        }
        Known::Delta
    }

    fn remember(&mut self, name: (Of, u64), page: &[u8; PAGE]) {
        if self.pages.len() < MOST {
            self.places.insert(name, self.pages.len());
            return self.pages.push(Page { name, bytes: Box::new(*page), again: false });
        }
        let place = loop {
            let place = self.hand;
            self.hand = (place + 1) % self.pages.len();
            if !std::mem::take(&mut self.pages[place].again) {
                break place;
            }
        };
        let old = &mut self.pages[place];
        // What was forgotten has its place still, and what took another one since has its name there.
        if self.places.get(&old.name) == Some(&place) {
            self.places.remove(&old.name);
        }
        (old.name, *old.bytes) = (name, *page);
        self.places.insert(name, place);
    }

    fn forget(&mut self, name: &(Of, u64)) {
        if let Some(place) = self.places.remove(name) {
            self.pages[place].again = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Of = Of::Process(1);

    fn page(byte: u8) -> [u8; PAGE] {
        std::array::from_fn(|n| byte ^ (n / 7) as u8)
    }

    fn compare(recent: &Recent, address: u64, page: &[u8; PAGE], has: bool) -> (Known, Vec<u8>) {
        let mut bytes = page.to_vec();
        let known = recent.compare(A, &[(address, 1)], &mut bytes, |_| has);
        (known[0], bytes)
    }

    #[test]
    fn what_differs_little_is_told_by_how_it_differs() {
        let recent = Recent::default();
        let (mut now, whole) = (page(1), page(1));
        assert_eq!(compare(&recent, 0, &now, false), (Known::Nothing, whole.to_vec()), "nothing is known of it");
        assert_eq!(compare(&recent, 0, &now, true).0, Known::Same);
        now[5] ^= 9;
        let (known, bytes) = compare(&recent, 0, &now, true);
        assert_eq!((known, bytes[5]), (Known::Delta, 9));
        assert!(bytes.iter().enumerate().all(|(n, byte)| n == 5 || *byte == 0));
        assert_eq!(compare(&recent, 0, &now, true).0, Known::Same, "what it holds now is remembered");
        // Little is half of it.
        let much = page(77);
        assert_eq!(compare(&recent, 0, &much, true), (Known::Nothing, much.to_vec()));
        assert_eq!(compare(&recent, 0, &much, true).0, Known::Same);
        assert_eq!(compare(&recent, 0, &much, false), (Known::Nothing, much.to_vec()), "the image before does not have it");
        assert_eq!(compare(&recent, 0, &ZERO, true).0, Known::Nothing);
        assert_eq!(compare(&recent, 0, &much, true), (Known::Nothing, much.to_vec()), "it was a page of zeros meanwhile");
    }

    #[test]
    fn others_have_pages_at_the_same_addresses() {
        let recent = Recent::default();
        compare(&recent, 0, &page(1), true);
        let other = recent.compare(Of::Object(1, 1), &[(0, 1)], &mut page(1).to_vec(), |_| true);
        assert_eq!(other, [Known::Nothing]);
    }

    #[test]
    fn what_went_another_way_is_forgotten() {
        let recent = Recent::default();
        let mut two = [page(1), page(2)].concat();
        recent.compare(A, &[(0, 2)], &mut two, |_| true);
        recent.forget(A, &Spans::of(vec![(0, PAGE as u64)]));
        let mut two = [page(1), page(2)].concat();
        assert_eq!(recent.compare(A, &[(0, 2)], &mut two, |_| true), [Known::Nothing, Known::Same]);
    }

    #[test]
    fn what_was_copied_long_ago_gives_way() {
        let recent = Recent::default();
        let at = |n: usize| (n * PAGE) as u64;
        compare(&recent, at(0), &page(3), true);
        compare(&recent, at(1), &page(4), true);
        for n in 2..MOST + 100 {
            compare(&recent, at(n), &page(5), true);
            if n % 1000 == 0 {
                assert_eq!(compare(&recent, at(0), &page(3), true).0, Known::Same);
            }
        }
        assert_eq!(recent.locked().places.len(), MOST);
        assert_eq!(compare(&recent, at(0), &page(3), true).0, Known::Same);
        assert_eq!(compare(&recent, at(1), &page(4), true).0, Known::Nothing);
        // Names that were forgotten do not take the places of others away.
        recent.forget(A, &Spans::of(vec![(0, at(MOST / 2))]));
        for n in 0..2 * MOST {
            let expected = page((n % 250) as u8);
            compare(&recent, at(n), &expected, true);
            assert_eq!(compare(&recent, at(n), &expected, true).0, Known::Same);
        }
        let inner = recent.locked();
        assert!(inner.places.iter().all(|(name, place)| inner.pages[*place].name == *name));
    }
}
