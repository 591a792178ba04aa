//! Where everything stands: processes are the rows of an indented tree on the left, shared things are boxes on the right,
//! and between them each shared thing has an upright wire in a track of its own. Boxes stand at the mean of their holders;
//! tracks are swapped until that saves no more crossings.

use super::view::{Row, View, Wire};

/// Height of a line of text. Wires enter their boxes at whole lines and ports stand apart from those, so that they never
/// coincide.
pub const LINE: i32 = 16;
/// Indent of a child.
pub const INDENT: i32 = 22;
/// Distance between tracks.
const TRACK: i32 = 14;
/// Width of the deepest process's box.
const ROW_WIDTH: i32 = 360;
/// Part of it that ports may take.
pub const PORTS: i32 = 130;
/// Width of the boxes on the right.
pub const BOX_WIDTH: i32 = 300;
/// Space around the picture.
pub const MARGIN: i32 = 24;

/// A process with its place.
pub struct PlacedRow {
    pub row: Row,
    pub x: i32,
    pub y: i32,
    pub height: i32,
    /// Height of each port, in the order of the row's ports.
    pub ports: Vec<i32>,
}

/// A shared thing with its place.
pub struct PlacedWire {
    pub wire: Wire,
    /// Heights at which it is tied to rows, sorted.
    pub ties: Vec<i32>,
    /// Where its upright part is.
    pub track: i32,
    /// Top of its box.
    pub y: i32,
    pub height: i32,
}

impl PlacedWire {
    /// Where it enters its box.
    pub fn entry(&self) -> i32 {
        self.y + LINE
    }

    /// Its upright part.
    pub fn span(&self) -> (i32, i32) {
        let ends = self.ties.iter().copied().chain([self.entry()]);
        (ends.clone().min().unwrap_or(0), ends.max().unwrap_or(0))
    }
}

/// The whole picture.
pub struct Picture {
    pub rows: Vec<PlacedRow>,
    pub wires: Vec<PlacedWire>,
    /// Right edge of all rows.
    pub edge: i32,
    /// Left edge of the boxes.
    pub boxes: i32,
    pub width: i32,
    pub height: i32,
}

impl Picture {
    /// Finds a place for everything.
    pub fn of(view: View) -> Picture {
        let deepest = view.rows.iter().map(|r| r.depth).max().unwrap_or(0) as i32;
        let edge = MARGIN + deepest.min(12) * INDENT + ROW_WIDTH;
        let mut rows = rows(view.rows);
        let mut wires: Vec<PlacedWire> = view.wires.into_iter().map(placed).collect();
        // Ports of a row are ordered by where their wires lead, and those places follow from the ports: a few sweeps.
        for _ in 0..4 {
            tie(&rows, &mut wires);
            stack(&mut wires);
            for r in &mut rows {
                let ports = &mut r.row.ports;
                ports.sort_by_key(|p| (wires[p.wire].entry(), p.wire));
            }
        }
        tie(&rows, &mut wires);
        let tracks = tracks(&mut wires, edge + 2 * TRACK);
        let boxes = edge + 3 * TRACK + tracks * TRACK;
        let bottom = rows.iter().map(|r| r.y + r.height).chain(wires.iter().map(|w| w.y + w.height)).max().unwrap_or(0);
        let right = if wires.is_empty() { edge } else { boxes + BOX_WIDTH };
        Picture { rows, wires, edge, boxes, width: right + MARGIN, height: bottom + LINE + MARGIN }
    }
}

fn rows(rows: Vec<Row>) -> Vec<PlacedRow> {
    let mut y = MARGIN + 3 * LINE;
    let place = |row: Row| {
        let height = (1 + row.lines.len()).max(row.ports.len()) as i32 * LINE + LINE / 2;
        let placed = PlacedRow { x: MARGIN + row.depth.min(12) as i32 * INDENT, y, height, ports: Vec::new(), row };
        y += (height / LINE + 1) * LINE;
        placed
    };
    let mut placed: Vec<PlacedRow> = rows.into_iter().map(place).collect();
    for r in &mut placed {
        let first = r.y + LINE - 6;
        r.ports = (0..r.row.ports.len() as i32).map(|n| first + n * LINE).collect();
    }
    placed
}

fn placed(wire: Wire) -> PlacedWire {
    let height = wire.lines.len().max(1) as i32 * LINE + LINE / 2;
    PlacedWire { wire, ties: Vec::new(), track: 0, y: 0, height }
}

fn tie(rows: &[PlacedRow], wires: &mut [PlacedWire]) {
    wires.iter_mut().for_each(|w| w.ties.clear());
    for r in rows {
        for (port, &y) in r.row.ports.iter().zip(&r.ports) {
            wires[port.wire].ties.push(y);
        }
    }
    wires.iter_mut().for_each(|w| w.ties.sort_unstable());
}

/// Puts the boxes below each other, each as near to the mean of its ties as the others allow: boxes that would overlap
/// form a block that stands at the mean of what its members wish.
fn stack(wires: &mut [PlacedWire]) {
    let step = |w: &PlacedWire| (w.height / LINE + 1) * LINE;
    let mean = |w: &PlacedWire| w.ties.iter().sum::<i32>() / w.ties.len().max(1) as i32 - LINE;
    let mut order: Vec<usize> = (0..wires.len()).collect();
    order.sort_by_key(|&n| (mean(&wires[n]), n));
    // Blocks: first place in `order`, number of members, sum of the wishes for its top, height.
    let mut blocks: Vec<(usize, i64, i64, i64)> = Vec::new();
    for (at, &n) in order.iter().enumerate() {
        let mut block = (at, 1, i64::from(mean(&wires[n])), i64::from(step(&wires[n])));
        while let Some(&(first, members, wishes, height)) = blocks.last() {
            if wishes / members + height <= block.2 / block.1 {
                break;
            }
            blocks.pop();
            block = (first, members + block.1, wishes + block.2 - height * block.1, height + block.3);
        }
        blocks.push(block);
    }
    let mut free = MARGIN + 3 * LINE;
    for (first, members, wishes, _) in blocks {
        let mut y = ((wishes / members) as i32).max(free) / (LINE) * LINE;
        y = if y < free { y + LINE } else { y };
        // Rows begin at this offset, too: entries of wires stay between the ports.
        y += (MARGIN + 2 * LINE) % LINE;
        for &n in &order[first..first + members as usize] {
            wires[n].y = y;
            y += step(&wires[n]);
        }
        free = y;
    }
}

/// Gives each wire a track; returns how many there are.
fn tracks(wires: &mut [PlacedWire], first: i32) -> i32 {
    let mut order: Vec<usize> = (0..wires.len()).collect();
    order.sort_by_key(|&n| (wires[n].span().1 - wires[n].span().0, wires[n].span().0, n));
    let inside = |y: i32, span: (i32, i32)| y > span.0 && y < span.1;
    // Crossings of two wires when `a` stands left of `b`: ties of `b` cross the upright of `a`, and the end of `a` that of `b`.
    let crossings =
        |a: &PlacedWire, b: &PlacedWire| b.ties.iter().filter(|y| inside(**y, a.span())).count() + usize::from(inside(a.entry(), b.span()));
    for _ in 0..wires.len().min(64) {
        let mut better = false;
        for at in 1..order.len() {
            let (a, b) = (&wires[order[at - 1]], &wires[order[at]]);
            if crossings(b, a) < crossings(a, b) {
                order.swap(at - 1, at);
                better = true;
            }
        }
        if !better {
            break;
        }
    }
    // Wires whose spans do not touch may share a track, as long as nothing that was left of it comes to its right.
    let mut tracks: Vec<Vec<usize>> = Vec::new();
    for n in order {
        let span = wires[n].span();
        let apart = |other: &usize| {
            let o = wires[*other].span();
            o.1 + LINE < span.0 || span.1 + LINE < o.0
        };
        match tracks.iter().rposition(|t| !t.iter().all(apart)) {
            Some(blocked) if blocked + 1 < tracks.len() => tracks[blocked + 1].push(n),
            None if !tracks.is_empty() => tracks[0].push(n),
            _ => tracks.push(vec![n]),
        }
    }
    for (track, members) in tracks.iter().enumerate() {
        members.iter().for_each(|&n| wires[n].track = first + track as i32 * TRACK);
    }
    tracks.len() as i32
}
