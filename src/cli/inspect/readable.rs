//! Everything in an image as JSON that people and programs can read: names as text, byte strings as hexadecimal digits.

use super::Seen;
use crate::error::{Error, Result};
use crate::postmortem::ThreadStack;
use ciborium::Value as Cbor;
use serde_json::{Value, json};

/// Fields whose bytes are a name.
const NAMES: [&str; 1] = ["comm"];
/// Fields that are bytes but are saved as lists of numbers.
const LISTS: [&str; 2] = ["build_id", "affinity"];

/// The fields of the result.
pub fn value(seen: &Seen, stacks: Option<&[ThreadStack]>) -> Result<Value> {
    let mut result = json!({"command": "inspect", "manifest": readable(&seen.manifest)?, "tree": readable(&seen.tree)?});
    result["parent"] = seen.parent.as_ref().map_or(
        Value::Null,
        |link| json!({"id": hex(&link.id), "hash": link.hash.to_string(), "file": String::from_utf8_lossy(&link.file)}),
    );
    if let Some(rest) = &seen.rest {
        result["image_bytes"] = rest.bytes.into();
        result["blocks"] = rest.blocks.into();
        result["hash"] = rest.hash.clone().ok().into();
    }
    if let Some(stacks) = stacks {
        result["stacks"] = serde_json::to_value(stacks).map_err(unwritable)?;
    }
    Ok(result)
}

fn unwritable(e: impl std::fmt::Display) -> Error {
    Error::other(format!("cannot write the image as JSON: {e}"))
}

/// By way of the image's own encoding, which tells byte strings from lists of numbers.
fn readable(value: &impl serde::Serialize) -> Result<Value> {
    Ok(json("", Cbor::serialized(value).map_err(unwritable)?))
}

fn json(name: &str, value: Cbor) -> Value {
    match value {
        Cbor::Bytes(b) if NAMES.contains(&name) => String::from_utf8_lossy(&b).into(),
        Cbor::Bytes(b) => hex(&b),
        Cbor::Array(items) if LISTS.contains(&name) => match items.iter().map(byte).collect::<Option<Vec<u8>>>() {
            Some(b) => hex(&b),
            None => items.into_iter().map(|item| json("", item)).collect(),
        },
        Cbor::Array(items) => items.into_iter().map(|item| json("", item)).collect(),
        Cbor::Map(fields) => Value::Object(fields.into_iter().map(field).collect()),
        Cbor::Integer(n) => u64::try_from(n).map(Value::from).or_else(|_| i64::try_from(n).map(Value::from)).unwrap_or_default(),
        Cbor::Float(n) => n.into(),
        Cbor::Text(text) => text.into(),
        Cbor::Bool(b) => b.into(),
        Cbor::Tag(_, inner) => json(name, *inner),
        _ => Value::Null,
    }
}

fn field((name, value): (Cbor, Cbor)) -> (String, Value) {
    let name = name.into_text().unwrap_or_else(|other| json("", other).to_string());
    let value = json(&name, value);
    (name, value)
}

fn byte(value: &Cbor) -> Option<u8> {
    value.as_integer().and_then(|n| u8::try_from(n).ok())
}

fn hex(bytes: &[u8]) -> Value {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_readable() {
        let text = |t: &str| Cbor::Text(t.into());
        let list = |n: &[i32]| Cbor::Array(n.iter().map(|n| (*n).into()).collect());
        let v = Cbor::Map(vec![
            (text("comm"), Cbor::Bytes(b"ab".to_vec())),
            (text("xstate"), Cbor::Bytes(vec![0, 255])),
            (text("pending"), Cbor::Array(vec![Cbor::Bytes(vec![1]), Cbor::Bytes(vec![2, 3])])),
            (text("nice"), list(&[1, -2])),
            (text("build_id"), list(&[1, 2])),
            (text("path"), Cbor::Null),
        ]);
        let wanted = json!({"comm": "ab", "xstate": "00ff", "pending": ["01", "0203"], "nice": [1, -2], "build_id": "0102", "path": null});
        assert_eq!(json("", v), wanted);
    }
}
