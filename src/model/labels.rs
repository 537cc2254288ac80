//! Labels a user gives a joined cluster, to be chosen by topology policies.

use std::fmt;
use std::str::FromStr;

use crate::error::{Failure, Kind};

/// One label, written `key=value`, under Kubernetes' rules.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Label {
    /// `name`, or `prefix/name`.
    pub key: String,
    /// At most 63 characters; may be empty.
    pub value: String,
}

impl FromStr for Label {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            Failure::new(
                Kind::Label,
                format!("label {text:?}: {why}"),
                "write key=value of letters, digits, '-', '_' and '.', at most 63 characters each, starting and ending with a letter or digit",
            )
        };
        let (key, value) = text.split_once('=').ok_or_else(|| wrong("it has no '='"))?;
        let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
        if !is_qualified(name) || prefix.is_some_and(|prefix| !is_subdomain(prefix)) {
            return Err(wrong("its key is no label key"));
        }
        if !value.is_empty() && !is_qualified(value) {
            return Err(wrong("its value is no label value"));
        }
        // cluster-gateway tells cluster Secrets and their kinds by labels of this prefix; a second writer breaks the cluster.
        if prefix.is_some_and(|prefix| prefix == "cluster.core.oam.dev" || prefix == "xregion.oam.dev") {
            return Err(Failure::new(
                Kind::Label,
                format!("label {text:?}: labels of this prefix are written by KubeVela and xregion"),
                "use another prefix, or none",
            ));
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

fn is_qualified(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && ends(text.chars().next())
        && ends(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text
            .split('.')
            .all(|label| is_qualified(label) && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["region=east", "a=", "example.com/tier=gold-1", "A_b.c=D"] {
            assert_eq!(good.parse::<Label>().unwrap().to_string(), good);
        }
        let long = format!("a={}", "x".repeat(64));
        for bad in [
            "region",
            "=x",
            "a=b=c",
            "a=b,c=d",
            "a b=c",
            "-a=b",
            "a=-b",
            "/a=b",
            "A.B/a=b",
            "a=b\n",
            &long,
            "xregion.oam.dev/x=y",
            "cluster.core.oam.dev/cluster-credential-type=X509Certificate",
        ] {
            assert_eq!(bad.parse::<Label>().unwrap_err().kind, Kind::Label, "{bad:?}");
        }
    }
}
