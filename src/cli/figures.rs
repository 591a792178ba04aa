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

/// Seconds since 1970 as a date and time in UTC.
pub fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, in cycles of 400 years: the leap day is then the last day of a year.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (400 * cycle + year, month + 3) } else { (400 * cycle + year + 1, month - 9) };
    format!("{year}-{month:02}-{of_month:02} {:02}:{:02}:{:02} UTC", rest / 3_600, rest / 60 % 60, rest % 60)
}

/// Reads `50M`, `1.5GiB` or plain bytes; units are binary.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let shift = match unit.trim().trim_end_matches(['B', 'b']).trim_end_matches('i') {
        "" => 0,
        "k" | "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err("write a number of bytes, such as 50M or 1G".into()),
    };
    let number: f64 = number.parse().map_err(|_| "write a number of bytes, such as 50M or 1G".to_string())?;
    let bytes = number * (1u64 << shift) as f64;
    if (1.0..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err("it is too small or too large".into()) }
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
    fn dates() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(date(1_735_689_599), "2024-12-31 23:59:59 UTC");
        assert!(date(u64::MAX).ends_with("UTC"));
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
