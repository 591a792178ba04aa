//! Everything in an image as JSON that people and programs can read: names as text, byte strings as hexadecimal digits.

use super::Seen;
use crate::error::{Error, Result};
use crate::postmortem::ThreadStack;
use serde_json::{Value, json};

/// Fields whose bytes are a name.
const NAMES: [&str; 1] = ["comm"];
/// Fields that are byte strings, or lists of them.
const BYTES: [&str; 7] = ["xstate", "auxv", "termios", "affinity", "content", "pending", "build_id"];

/// The fields of the result.
pub fn value(seen: &Seen, stacks: Option<&[ThreadStack]>) -> Result<Value> {
    let as_json = |value: serde_json::Result<Value>| value.map_err(|e| Error::other(format!("cannot write the image as JSON: {e}")));
    let mut tree = as_json(serde_json::to_value(&seen.tree))?;
    rewrite(&mut tree);
    let mut result = json!({
        "command": "inspect",
        "manifest": as_json(serde_json::to_value(&seen.manifest))?,
        "tree": tree,
    });
    if let Some(rest) = &seen.rest {
        result["image_bytes"] = rest.bytes.into();
        result["blocks"] = rest.blocks.into();
        result["hash"] = rest.hash.clone().ok().into();
    }
    if let Some(stacks) = stacks {
        result["stacks"] = as_json(serde_json::to_value(stacks))?;
    }
    Ok(result)
}

fn rewrite(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                match () {
                    () if NAMES.contains(&name.as_str()) => *field = text(field),
                    () if BYTES.contains(&name.as_str()) => hex(field),
                    () => rewrite(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(rewrite),
        _ => {}
    }
}

/// The bytes of an array of numbers; `None` when it is something else.
fn bytes(value: &Value) -> Option<Vec<u8>> {
    value.as_array()?.iter().map(|n| u8::try_from(n.as_u64()?).ok()).collect()
}

fn text(value: &Value) -> Value {
    bytes(value).map_or(Value::Null, |b| String::from_utf8_lossy(&b).into())
}

/// A byte string becomes digits; in a list of byte strings, each does.
fn hex(value: &mut Value) {
    let list = value.as_array().is_some_and(|items| items.iter().any(Value::is_array));
    match value {
        Value::Array(items) if list => items.iter_mut().for_each(hex),
        _ => {
            if let Some(b) = bytes(value) {
                *value = b.iter().map(|b| format!("{b:02x}")).collect::<String>().into();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_readable() {
        let mut v = json!([{"comm": [97, 98], "xstate": [0, 255], "pending": [[1], [2, 3]], "nice": [1, 2], "build_id": null}]);
        rewrite(&mut v);
        assert_eq!(v, json!([{"comm": "ab", "xstate": "00ff", "pending": ["01", "0203"], "nice": [1, 2], "build_id": null}]));
    }
}
