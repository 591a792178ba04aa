//! Numbers as people read them: sizes, times, counts.

use std::time::Duration;

/// Bytes in binary units, three significant digits.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = n as f64;
    let mut unit = 0;
    // 999.95 would be written as 1000.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} B"),
        _ if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// A time span in the unit that fits it.
pub fn time(d: Duration) -> String {
    let s = d.as_secs_f64();
    match s {
        _ if s < 0.000_999_5 => format!("{:.0} µs", s * 1e6),
        _ if s < 0.009_995 => format!("{:.2} ms", s * 1e3),
        _ if s < 0.999_5 => format!("{:.0} ms", s * 1e3),
        _ if s < 59.95 => format!("{s:.1} s"),
        _ => format!("{} min {:02} s", s.round() as u64 / 60, s.round() as u64 % 60),
    }
}

/// Milliseconds with three decimals, for JSON.
pub fn ms(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}

/// `1 process`, `2 processes`.
pub fn count(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Reads `5s`, `500ms`, `2m` or plain seconds.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let value: f64 = text[..at].parse().map_err(|_| "not a time; write 5s, 500ms or 2m".to_string())?;
    let unit = match &text[at..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("unknown unit `{other}`; write 5s, 500ms or 2m")),
    };
    Duration::try_from_secs_f64(value * unit).map_err(|_| "too long".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [(0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1024, "1.00 KiB"), (10 * 1024, "10.0 KiB")];
        for (n, text) in cases.into_iter().chain([(1 << 30, "1.00 GiB"), (1023 << 10, "1.00 MiB"), (u64::MAX, "16.0 EiB")]) {
            assert_eq!(bytes(n), text, "{n}");
        }
    }

    #[test]
    fn times() {
        let cases = [(0, "0 µs"), (999, "999 µs"), (1_500, "1.50 ms"), (42_000, "42 ms"), (1_250_000, "1.2 s"), (61_000_000, "1 min 01 s")];
        for (us, text) in cases {
            assert_eq!(time(Duration::from_micros(us)), text, "{us}");
        }
        assert_eq!(time(Duration::from_millis(59_990)), "1 min 00 s");
    }

    #[test]
    fn reads_times() {
        assert_eq!(parse_time("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_time("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "s", "5x", "-1", "1e400s", "99999999999999999999999h"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
