//! The picture as SVG, for light and dark pages.

use super::layout::{BOX_WIDTH, INDENT, LINE, MARGIN, PORTS, Picture, PlacedRow, PlacedWire};
use super::view::Family;
use std::fmt::Write as _;

/// Colours: at least 4.5 to 1 against their page.
const STYLE: &str = "\
text{font:12px ui-sans-serif,system-ui,sans-serif;fill:#1b1f24}\
.h{font-weight:600}.s{font-size:11px;fill:#56606b}.bad{fill:#b3261e}\
.page{fill:#fff}.row{fill:#f4f6f8;stroke:#8a949e}.gone{stroke-dasharray:4 3}.box{fill:#fff;stroke-width:1.5}\
.tree{fill:none;stroke:#8a949e}.wire{fill:none;stroke-width:1.5}.wire:hover,g:hover .wire{stroke-width:3.5}\
.pipe{stroke:#005fa3}.terminal{stroke:#00705a}.memory{stroke:#8a3f8f}.file{stroke:#6b5b00}.socket{stroke:#a8430f}.space{stroke:#2d6a1f}.other{stroke:#4d5d73}.refused{stroke:#b3261e}\
.dot.pipe{fill:#005fa3}.dot.terminal{fill:#00705a}.dot.memory{fill:#8a3f8f}.dot.file{fill:#6b5b00}.dot.socket{fill:#a8430f}.dot.space{fill:#2d6a1f}.dot.other{fill:#4d5d73}.dot.refused{fill:#b3261e}\
@media(prefers-color-scheme:dark){text{fill:#e6e8ea}.s{fill:#a5afb9}.bad{fill:#ff8a80}.page{fill:#15181c}.row{fill:#22272d;stroke:#7c8791}.box{fill:#15181c}\
.pipe{stroke:#6ab7ff}.terminal{stroke:#4fd1b0}.memory{stroke:#d79be0}.file{stroke:#d8c04a}.socket{stroke:#ffa36b}.space{stroke:#9bd17f}.other{stroke:#a9b8cc}.refused{stroke:#ff8a80}\
.dot.pipe{fill:#6ab7ff}.dot.terminal{fill:#4fd1b0}.dot.memory{fill:#d79be0}.dot.file{fill:#d8c04a}.dot.socket{fill:#ffa36b}.dot.space{fill:#9bd17f}.dot.other{fill:#a9b8cc}.dot.refused{fill:#ff8a80}}";

const FAMILIES: [(Family, &str, &str); 8] = [
    (Family::Pipe, "pipe", "pipe"),
    (Family::Terminal, "terminal", "terminal"),
    (Family::Memory, "memory", "shared memory"),
    (Family::File, "file", "files"),
    (Family::Socket, "socket", "socket"),
    (Family::Space, "space", "namespace"),
    (Family::Other, "other", "other, or several kinds"),
    (Family::Refused, "refused", "cannot be saved"),
];

fn class(family: Family) -> &'static str {
    FAMILIES.iter().find(|f| f.0 == family).map_or("other", |f| f.1)
}

/// The whole file.
pub fn text(picture: &Picture, title: &str) -> String {
    let (width, height) = (picture.width.max(980), picture.height);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n\
         <style>{STYLE}</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n"
    );
    let _ = writeln!(svg, "<title>{}</title>", escaped(title));
    let _ = writeln!(svg, "<text class=\"h\" x=\"{MARGIN}\" y=\"{}\">{}</text>", MARGIN + LINE, fit(title, width - 2 * MARGIN, 7));
    legend(&mut svg);
    for row in &picture.rows {
        branch(&mut svg, picture, row);
    }
    for wire in &picture.wires {
        self::wire(&mut svg, picture, wire);
    }
    for row in &picture.rows {
        self::row(&mut svg, picture, row);
    }
    svg + "</svg>"
}

fn legend(svg: &mut String) {
    let mut x = MARGIN;
    for (_, class, name) in FAMILIES {
        let _ = writeln!(svg, "<path class=\"wire {class}\" d=\"M{x} {MARGIN}h20\"/>");
        let _ = writeln!(svg, "<text class=\"s\" x=\"{}\" y=\"{}\">{name}</text>", x + 26, MARGIN + 4);
        x += 46 + 7 * name.len() as i32;
    }
}

/// From a parent down to its child.
fn branch(svg: &mut String, picture: &Picture, row: &PlacedRow) {
    let Some(parent) = row.row.parent.map(|p| &picture.rows[p]) else { return };
    let (x, top, y) = (row.x - INDENT / 2, parent.y + parent.height, row.y + LINE - 4);
    let _ = writeln!(svg, "<path class=\"tree\" d=\"M{x} {top}V{y}H{}\"/>", row.x);
}

fn row(svg: &mut String, picture: &Picture, row: &PlacedRow) {
    let width = picture.edge - row.x;
    let text_width = if row.row.ports.is_empty() { width } else { width - PORTS };
    let gone = if row.row.ended { " gone" } else { "" };
    let _ = writeln!(svg, "<g><title>{}</title>", escaped(&row.row.tip));
    let _ =
        writeln!(svg, "<rect class=\"row{gone}\" x=\"{}\" y=\"{}\" width=\"{width}\" height=\"{}\" rx=\"4\"/>", row.x, row.y, row.height);
    let _ = writeln!(
        svg,
        "<text class=\"h\" x=\"{}\" y=\"{}\">{}</text></g>",
        row.x + 8,
        row.y + LINE - 1,
        fit(&row.row.title, text_width - 8, 7)
    );
    let mut y = row.y + LINE - 1;
    for line in &row.row.lines {
        y += LINE;
        let bad = if line.refused { " bad" } else { "" };
        let text = fit(&line.text, text_width - 16, 6);
        let _ = writeln!(
            svg,
            "<g><title>{}</title><text class=\"s{bad}\" x=\"{}\" y=\"{y}\">{text}</text></g>",
            escaped(&line.tip),
            row.x + 16
        );
    }
    for (port, y) in row.row.ports.iter().zip(&row.ports) {
        let text = fit(&port.text, PORTS - 12, 6);
        let tip = escaped(&picture.wires[port.wire].wire.tip);
        let _ = writeln!(
            svg,
            "<g><title>{tip}</title><text class=\"s\" text-anchor=\"end\" x=\"{}\" y=\"{}\">{text}</text></g>",
            picture.edge - 8,
            y + 4
        );
    }
}

fn wire(svg: &mut String, picture: &Picture, wire: &PlacedWire) {
    let class = class(wire.wire.family);
    let (x, (top, bottom)) = (wire.track, wire.span());
    let _ = writeln!(svg, "<g><title>{}</title>", escaped(&wire.wire.tip));
    let mut path = format!("M{x} {top}V{bottom}M{x} {}H{}", wire.entry(), picture.boxes);
    wire.ties.iter().for_each(|y| path.push_str(&format!("M{} {y}H{x}", picture.edge)));
    let _ = writeln!(svg, "<path class=\"wire {class}\" d=\"{path}\"/>");
    for y in wire.ties.iter().chain([&wire.entry()]) {
        let _ = writeln!(svg, "<circle class=\"dot {class}\" cx=\"{x}\" cy=\"{y}\" r=\"3\"/>");
    }
    let _ = writeln!(
        svg,
        "<rect class=\"box {class}\" x=\"{}\" y=\"{}\" width=\"{BOX_WIDTH}\" height=\"{}\" rx=\"4\"/>",
        picture.boxes, wire.y, wire.height
    );
    for (n, line) in wire.wire.lines.iter().enumerate() {
        let y = wire.y + (n as i32 + 1) * LINE;
        let _ = writeln!(svg, "<text class=\"s\" x=\"{}\" y=\"{y}\">{}</text>", picture.boxes + 8, fit(line, BOX_WIDTH - 16, 6));
    }
    svg.push_str("</g>\n");
}

/// As much of a text as fits into a width, cut in the middle where paths are alike; escaped.
fn fit(text: &str, width: i32, letter: i32) -> String {
    let room = (width / letter).max(8) as usize;
    let letters: Vec<char> = text.chars().collect();
    if letters.len() <= room {
        return escaped(text);
    }
    let (head, tail) = (room / 2 - 1, room - room / 2);
    let short: String = letters[..head].iter().chain(['…'].iter()).chain(&letters[letters.len() - tail..]).collect();
    escaped(&short)
}

/// Text for XML; what may not stand there at all is shown as an escape.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push('\n'),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::graph::layout::PORTS;
    use crate::cli::graph::view::{Line, Port, Row, View, Wire};

    /// A pipeline of `n` processes below a shell, all of which share one file.
    fn pipeline(n: usize) -> Picture {
        let port = |wire: usize| Port { wire, text: "1 w".into() };
        let row = |at: usize, ports: Vec<Port>| Row {
            pid: at as i32,
            depth: usize::from(at > 0),
            parent: (at > 0).then_some(0),
            title: format!("{at} <&\"\u{1}>"),
            tip: "a < b\n&".into(),
            ended: false,
            lines: vec![Line { text: "x".repeat(at * 7), tip: "t".into(), refused: at == 3 }],
            ports,
        };
        let ends = |at: usize| [at.checked_sub(2), Some(at - 1)].into_iter().flatten().filter(|w| *w < n - 1).map(|w| w + 1);
        let rows = (0..=n).map(|at| row(at, if at == 0 { vec![port(0)] } else { ends(at).chain([0]).map(port).collect() })).collect();
        let wire = |lines: usize| Wire { family: Family::Pipe, lines: vec!["pipe:[1]".into(); lines], tip: String::new() };
        Picture::of(View { rows, wires: (0..n).map(|w| wire(1 + w % 3)).collect() })
    }

    #[test]
    fn nothing_lies_over_anything_else() {
        for n in [2, 10, 50] {
            let p = pipeline(n);
            assert!(p.rows.windows(2).all(|w| w[0].y + w[0].height < w[1].y));
            let mut boxes: Vec<(i32, i32)> = p.wires.iter().map(|w| (w.y, w.y + w.height)).collect();
            boxes.sort_unstable();
            assert!(boxes.windows(2).all(|w| w[0].1 < w[1].0), "{boxes:?}");
            for (i, a) in p.wires.iter().enumerate() {
                assert!(p.edge < a.track && a.track < p.boxes && a.y >= MARGIN && a.y + a.height <= p.height);
                for b in &p.wires[i + 1..] {
                    let apart = a.span().1 < b.span().0 || b.span().1 < a.span().0;
                    assert!(a.track != b.track || apart, "two wires in one place");
                    // An end never runs along another wire's tie.
                    assert!(!b.ties.contains(&a.entry()) && !a.ties.contains(&b.entry()));
                }
            }
            for row in &p.rows {
                assert!(row.ports.iter().all(|y| row.y < *y && *y < row.y + row.height) && p.edge - row.x > PORTS);
            }
        }
    }

    #[test]
    fn a_pipeline_has_few_crossings() {
        let p = pipeline(50);
        let inside = |y: i32, w: &PlacedWire| y > w.span().0 && y < w.span().1;
        let mut crossings = 0;
        for a in &p.wires {
            for b in p.wires.iter().filter(|b| b.track > a.track) {
                crossings += b.ties.iter().filter(|y| inside(**y, a)).count() + usize::from(inside(a.entry(), b));
            }
        }
        // Each pipe's end has to cross the wire of the file that all share; hardly anything else.
        assert!(crossings <= 3 * 50, "{crossings} crossings");
    }

    #[test]
    fn it_is_xml() {
        let svg = text(&pipeline(5), "capsule \u{1}<&");
        assert!(!svg.contains('\u{1}') && svg.contains("&lt;&amp;&quot;"));
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1) {
            let (tag, rest) = tag.split_once('>').expect("a tag ends");
            assert!(!rest.contains('>') && !tag.contains('<') && tag.matches('"').count() % 2 == 0, "{tag}");
            match tag.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None if tag.ends_with('/') => {}
                None => open.push(tag.split(' ').next().expect("a name")),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }
}
