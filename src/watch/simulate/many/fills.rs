//! One that is out of step gets a copy of everything, beside what the others get.

use super::super::super::state::{Mark, Part, Wish};
use super::world::{Flaw, What, World};

/// A copy of everything on its way to one of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fill {
    /// What it stands for.
    pub mark: Option<Mark>,
    pub complete: bool,
    /// The first epoch that was begun after that.
    pub whole: Option<Mark>,
}

impl Fill {
    fn part(&self, mark: Mark) -> Part {
        match self.whole {
            _ if self.mark == Some(mark) => Part::Base,
            Some(whole) if mark >= whole => Part::All,
            _ => Part::Upon,
        }
    }
}

impl World {
    /// What the primary does for one that is out of step.
    pub(super) fn fill(&mut self) {
        let Some(primary) = self.primary.as_ref().filter(|p| !p.ended && p.machine.is_protected()) else { return };
        let (series, now, time) = (primary.machine.series(), self.now, self.time(0));
        let wish = self.group.as_mut().and_then(|group| group.wish(series, time));
        match wish {
            Some(Wish::Yield(n)) => {
                let host = &mut self.hosts[n + 1];
                (host.fill, host.queue[0]) = (None, host.queue[0].max(now));
                let (of, link, delay) = (n + 1, host.link, host.queue[0] - now);
                self.at(delay, What::GiveUp { of, link });
            }
            Some(Wish::Fill(n)) => self.hosts[n + 1].fill = Some(Fill::default()),
            None => return,
        }
        self.tell(|_| format!("{wish:?}"));
    }

    /// What an epoch is to one of them; `None`: it does not get it.
    pub(super) fn part(&self, of: usize, mark: Mark) -> Option<Part> {
        let group = self.group.as_ref()?;
        let fills = self.hosts[of].fill.filter(|fill| fill.complete && fill.mark.is_some_and(|from| mark >= from));
        match fills.filter(|_| group.is_joined(of - 1) || group.is_filling(of - 1)) {
            Some(fill) if self.flaw == Some(Flaw::HalfCopy) && fill.part(mark) == Part::Upon => Some(Part::All),
            Some(fill) => Some(fill.part(mark)),
            None if group.is_joined(of - 1) && self.hosts[of].fill.is_none() => Some(Part::All),
            None => None,
        }
    }

    /// An epoch begins: with it, copies that are complete by now are of use.
    pub(super) fn begins(&mut self, mark: Mark) {
        for of in self.standbys() {
            if let Some(Fill { mark: Some(from), complete: true, whole }) = &mut self.hosts[of].fill
                && whole.is_none()
            {
                *whole = Some(mark);
                self.wholes.insert((of, *from), mark);
            }
        }
    }
}
