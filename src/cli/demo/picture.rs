//! A time line in text: what the process did when.

use crate::cli::console::{Console, Paint};
use crate::cli::figures;
use std::time::Duration;

/// One stretch of the time line.
pub struct Stretch {
    /// What the process was, in a word or two.
    pub word: &'static str,
    /// How long.
    pub took: Duration,
    /// How it is drawn.
    pub mark: char,
    /// Its colour.
    pub paint: Paint,
    /// Digits that the file had when it ended.
    pub digits: usize,
}

/// Columns of the line.
const WIDTH: usize = 64;

/// Columns for each stretch: as long as it took, but at least one.
fn columns(line: &[Stretch]) -> Vec<usize> {
    let total: f64 = line.iter().map(|s| s.took.as_secs_f64()).sum::<f64>().max(1e-9);
    let wide = |s: &Stretch| (s.took.as_secs_f64() / total * WIDTH as f64).round() as usize;
    line.iter().map(|s| wide(s).max(1)).collect()
}

/// The picture, line by line.
pub fn draw(console: &Console, pid: i32, line: &[Stretch]) -> Vec<String> {
    let columns = columns(line);
    let indent = format!("  pid {pid}  ");
    let blank = " ".repeat(indent.chars().count());
    let bars: String = line.iter().zip(&columns).map(|(s, &n)| console.out(&s.mark.to_string().repeat(n), s.paint)).collect();
    let mut picture = vec![format!("{indent}{bars}")];
    // The number of digits stands under the border where it was reached.
    let mut scale = format!("{blank}0");
    let mut at = blank.chars().count();
    let mut last = 0;
    for (stretch, n) in line.iter().zip(&columns) {
        at += n;
        if std::mem::replace(&mut last, stretch.digits) == stretch.digits {
            continue;
        }
        let number = stretch.digits.to_string();
        let place = at.saturating_sub(number.len() / 2);
        if place > scale.chars().count() + 1 {
            scale += &" ".repeat(place - scale.chars().count());
            scale += &number;
        }
    }
    picture.push(format!("{scale}  digits"));
    picture.push(String::new());
    for s in line {
        picture.push(format!("{blank}{} {:<14} {:>8}", console.out(&s.mark.to_string().repeat(3), s.paint), s.word, figures::time(s.took)));
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(ms: u64) -> Stretch {
        Stretch { word: "running", took: Duration::from_millis(ms), mark: '=', paint: Paint::Good, digits: 5 }
    }

    #[test]
    fn stretches_are_in_proportion_and_none_is_lost() {
        assert_eq!(columns(&[stretch(3000), stretch(10), stretch(1000)]), [48, 1, 16]);
        assert_eq!(columns(&[stretch(0), stretch(0)]), [1, 1]);
    }
}
