//! Aligned columns of text.

/// Which side of its column a cell stands at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a head; the last column is not padded.
pub struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns with their names.
    pub fn new<const N: usize>(columns: [(&str, Side); N]) -> Self {
        Table { sides: columns.iter().map(|c| c.1).collect(), rows: vec![columns.iter().map(|c| c.0.to_string()).collect()] }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    fn widths(&self) -> Vec<usize> {
        (0..self.sides.len()).map(|c| self.rows.iter().map(|r| width(&r[c])).max().unwrap_or(0)).collect()
    }

    /// Cuts the cells of these columns, the widest first, until all lines have `most` columns; none to fewer than `least`.
    pub fn fit(&mut self, columns: &[usize], least: usize, most: usize) {
        loop {
            let widths = self.widths();
            let all = widths.iter().map(|width| width + 2).sum::<usize>().saturating_sub(2);
            let widest = columns.iter().copied().max_by_key(|c| widths[*c]);
            let Some(c) = widest.filter(|c| all > most && widths[*c] > least) else { return };
            let to = least.max(widths[c] - 1);
            self.rows.iter_mut().for_each(|row| row[c] = shortened(&row[c], to));
        }
    }

    /// The rows as lines; `head` paints the first.
    pub fn lines(&self, head: impl Fn(&str) -> String) -> Vec<String> {
        let widths = self.widths();
        let line = |row: &Vec<String>| {
            let mut text = String::new();
            for (c, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[c] - width(cell));
                match self.sides[c] {
                    Side::Left => text.extend([cell.as_str(), &pad]),
                    Side::Right => text.extend([pad.as_str(), cell]),
                }
                text.push_str("  ");
            }
            text.truncate(text.trim_end().len());
            text
        };
        self.rows.iter().enumerate().map(|(n, row)| if n == 0 { head(&line(row)) } else { line(row) }).collect()
    }
}

/// Columns that a text takes; control characters never reach a table.
fn width(text: &str) -> usize {
    text.chars().count()
}

/// At most so many columns of a text, and a sign where something is missing.
pub fn shortened(text: &str, most: usize) -> String {
    let text = printable(text);
    let rest = text.strip_suffix('…').unwrap_or(&text);
    if width(&text) <= most { text } else { format!("{}…", rest.chars().take(most.saturating_sub(1)).collect::<String>()) }
}

/// Makes bytes from outside harmless to a terminal: control characters are written as escapes.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut t = Table::new([("PID", Side::Right), ("NAME", Side::Left), ("WHY", Side::Left)]);
        t.row(["1".into(), "é".into(), "x".into()]);
        t.row(["1234".into(), "longer".into(), String::new()]);
        assert_eq!(t.lines(str::to_string), [" PID  NAME    WHY", "   1  é       x", "1234  longer"]);
    }

    #[test]
    fn the_widest_give_way() {
        let mut t = Table::new([("NAME", Side::Left), ("HOST", Side::Left), ("N", Side::Right)]);
        t.row(["a-long-name".into(), "host".into(), "123456".into()]);
        t.row(["b".into(), "a-longer-host".into(), "1".into()]);
        t.fit(&[0, 1], 4, 24);
        let lines = t.lines(str::to_string);
        assert!(lines.iter().all(|line| width(line) <= 24) && lines[1].starts_with("a-long…"), "{lines:#?}");
        t.fit(&[0, 1], 4, 2);
        assert_eq!(t.lines(str::to_string)[2], "b     a-l…       1");
    }

    #[test]
    fn no_escape_sequence_gets_through() {
        assert_eq!(printable("a\x1b[31mb\n"), "a\\u{1b}[31mb\\n");
    }
}
