//! What a join or leave would change, for people and for programs.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// Everything that would be changed, in the order in which it would be.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    /// The changes; none means that all is as it should be.
    pub changes: Vec<Change>,
}

/// One object's change.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The cluster that the run is about.
    pub cluster: String,
    /// `hub`, or `region NAME`.
    pub place: String,
    /// What is done.
    pub action: Action,
    /// `Kind namespace/name`, or the part of it that is meant.
    pub object: String,
    /// What is there now, if it matters.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub from: Value,
    /// What would be there.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub to: Value,
    /// What follows from it.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub note: &'static str,
}

/// What is done to an object.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// It is made.
    Create,
    /// It is changed.
    Change,
    /// It is removed.
    Remove,
}

impl Change {
    /// The change from one value to another; none where they are the same. `null` stands for nothing.
    pub fn between(cluster: &str, place: &str, object: String, from: Value, to: Value) -> Option<Self> {
        let action = match (&from, &to) {
            (from, to) if from == to => return None,
            (Value::Null, _) => Action::Create,
            (_, Value::Null) => Action::Remove,
            _ => Action::Change,
        };
        Some(Self { cluster: cluster.to_owned(), place: place.to_owned(), action, object, from, to, note: "" })
    }

    /// The same with what follows from it.
    pub fn with_note(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }
}

impl Plan {
    /// Adds a change, if it is one.
    pub fn add(&mut self, change: Option<Change>) {
        self.changes.extend(change);
    }

    /// For programs.
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

/// As a diff: `+` is made, `~` changed, `-` removed; below a change the values that differ.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.changes.is_empty() {
            return write!(f, "nothing would change");
        }
        for (number, change) in self.changes.iter().enumerate() {
            let newline = if number > 0 { "\n" } else { "" };
            let sign = match change.action {
                Action::Create => '+',
                Action::Change => '~',
                Action::Remove => '-',
            };
            write!(f, "{newline}{sign} {}: {}", change.place, change.object)?;
            if !change.note.is_empty() {
                write!(f, " ({})", change.note)?;
            }
            for (key, from, to) in differences(&change.from, &change.to) {
                match (from, to) {
                    (None, Some(to)) => write!(f, "\n    {key}: {}", plain(to))?,
                    (Some(from), Some(to)) => write!(f, "\n    {key}: {} -> {}", plain(from), plain(to))?,
                    (Some(from), None) => write!(f, "\n    {key}: {} -> none", plain(from))?,
                    (None, None) => {}
                }
            }
        }
        Ok(())
    }
}

/// The fields of two objects that differ.
fn differences<'a>(from: &'a Value, to: &'a Value) -> Vec<(&'a String, Option<&'a Value>, Option<&'a Value>)> {
    if to.is_null() {
        return Vec::new();
    }
    let keys: BTreeSet<&String> = [from, to].into_iter().filter_map(Value::as_object).flat_map(|object| object.keys()).collect();
    keys.into_iter().map(|key| (key, from.get(key), to.get(key))).filter(|(_, old, new)| old != new).collect()
}

/// A value without the quotes and brackets of JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_reads_as_a_diff_and_as_json() {
        let mut plan = Plan::default();
        assert_eq!(plan.to_string(), "nothing would change");
        let change = |from, to| Change::between("a", "region east", "ConfigMap vela-system/r".into(), from, to);
        plan.add(change(json!({"host": "x"}), json!({"host": "x"})));
        assert!(plan.changes.is_empty());
        plan.add(change(Value::Null, json!({"host": "x", "port": 443})));
        plan.add(change(json!({"host": "x", "port": 443}), json!({"host": "y", "port": 443})));
        plan.add(change(json!({"names": ["x", "y"]}), json!({"names": ["y"]})).map(|change| change.with_note("rolls the gateway")));
        plan.add(change(json!({"host": "x"}), Value::Null));
        assert_eq!(
            plan.to_string(),
            "+ region east: ConfigMap vela-system/r\n    host: x\n    port: 443\n\
             ~ region east: ConfigMap vela-system/r\n    host: x -> y\n\
             ~ region east: ConfigMap vela-system/r (rolls the gateway)\n    names: x, y -> y\n\
             - region east: ConfigMap vela-system/r"
        );
        let first = &serde_json::to_value(&plan).unwrap()["changes"][0];
        assert_eq!(
            *first,
            json!({"cluster": "a", "place": "region east", "action": "create", "object": "ConfigMap vela-system/r", "to": {"host": "x", "port": 443}})
        );
    }
}
