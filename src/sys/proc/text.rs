//! What all texts of proc(5) are made of: lines, fields, numbers, escapes.

use crate::error::Error;

/// The lines of a text, without their newlines. The last one may lack its newline.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    // An empty text has no line, not one empty line.
    let none = text.is_empty();
    text.split(|&b| b == b'\n').skip(usize::from(none))
}

/// The fields of a line, separated by any number of spaces and tabs.
pub fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&b| b == b' ' || b == b'\t').filter(|f| !f.is_empty())
}

/// What stands before and after the first `at`.
pub fn split_once(line: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let i = line.iter().position(|&b| b == at)?;
    Some((&line[..i], &line[i + 1..]))
}

fn digits(field: &[u8], radix: u64) -> Option<u64> {
    if field.is_empty() {
        return None;
    }
    field.iter().try_fold(0u64, |n, &b| {
        let digit = u64::from((b as char).to_digit(radix as u32)?);
        n.checked_mul(radix)?.checked_add(digit)
    })
}

/// A number without sign, of decimal digits only.
pub fn decimal(field: &[u8]) -> Option<u64> {
    digits(field, 10)
}

/// A decimal number that may be negative.
pub fn signed(field: &[u8]) -> Option<i64> {
    match field.strip_prefix(b"-") {
        Some(magnitude) => 0i64.checked_sub_unsigned(digits(magnitude, 10)?),
        None => i64::try_from(digits(field, 10)?).ok(),
    }
}

/// A decimal number that fits `int`, such as a pid.
pub fn int(field: &[u8]) -> Option<i32> {
    i32::try_from(signed(field)?).ok()
}

/// A hexadecimal number, with or without `0x`.
pub fn hex(field: &[u8]) -> Option<u64> {
    digits(field.strip_prefix(b"0x").unwrap_or(field), 16)
}

/// An octal number, as open flags and umasks are shown.
pub fn octal(field: &[u8]) -> Option<u64> {
    digits(field, 8)
}

/// Major and minor number, hexadecimal, as `maj:min`.
pub fn device(field: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = split_once(field, b':')?;
    let number = |f| u32::try_from(digits(f, 16)?).ok();
    Some((number(major)?, number(minor)?))
}

/// Undoes the kernel's `\ooo`, for those bytes that it escaped in this text.
///
/// The kernel escapes the backslash itself only in some texts. Where it does
/// not, undoing every `\ooo` would damage names that contain one.
pub fn unescape(field: &[u8], escaped: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let byte = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0')).filter(|b| escaped.contains(b))
            }
            _ => None,
        };
        out.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &tail[3..] } else { tail };
    }
    out
}

/// The error for a text that is not what its man page says.
pub fn malformed(file: &str, part: &[u8]) -> Error {
    let shown = &part[..part.len().min(200)];
    Error::other(format!("{file}: cannot understand `{}`", shown.escape_ascii()))
}

/// The error for a text that lacks a field which every supported kernel shows.
pub fn missing(file: &str, field: &str) -> Error {
    Error::other(format!("{file}: no {field}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn numbers_do_not_wrap() {
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(decimal(b"18446744073709551616"), None);
        assert_eq!(signed(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(signed(b"-9223372036854775809"), None);
        assert_eq!(int(b"-2147483649"), None);
        assert_eq!(hex(b"0xffffffffffffffff"), Some(u64::MAX));
        assert_eq!(hex(b"10000000000000000"), None);
        for not in [&b""[..], b"-", b"+1", b" 1", b"1 ", b"0x", b"\xff"] {
            assert_eq!((decimal(not), signed(not), octal(not)), (None, None, None));
        }
    }

    #[test]
    fn an_empty_text_has_no_lines() {
        assert_eq!(lines(b"").count(), 0);
        assert_eq!(lines(b"a\n\nb").collect::<Vec<_>>(), [&b"a"[..], b"", b"b"]);
        assert_eq!(lines(b"a\n").count(), 1);
    }

    #[test]
    fn only_what_the_kernel_escaped_is_undone() {
        assert_eq!(unescape(br"a\012b\040c\01", b"\n"), b"a\nb\\040c\\01");
        // The digits after an undone backslash are the name's own.
        assert_eq!(unescape(br"\134012\134", b"\n\\"), br"\012\");
        assert_eq!(unescape(br"\777\400", b"\n\xff\x00"), br"\777\400");
    }
}
