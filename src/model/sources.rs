//! Where connections may come from: the networks that a region and a route let in.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::error::{Failure, Kind};

/// A network that connections may come from, written as a CIDR or as one address.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(try_from = "String")]
pub struct SourceRange(IpNet);

impl FromStr for SourceRange {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        // nginx would warn of the bits behind the prefix, and then ignore them.
        network.map(|network| Self(network.trunc())).map_err(|_| {
            Failure::new(Kind::Usage, format!("{text:?} is no source range"), "give a network such as 10.0.0.0/8, or one address")
        })
    }
}

impl TryFrom<String> for SourceRange {
    type Error = Failure;

    fn try_from(text: String) -> Result<Self, Failure> {
        text.parse()
    }
}

impl fmt::Display for SourceRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The networks that may come in, written with commas between them; none: everybody.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(transparent)]
pub struct SourceRanges(BTreeSet<SourceRange>);

impl SourceRanges {
    /// Everybody may come in.
    pub const EVERYBODY: Self = Self(BTreeSet::new());

    /// Whether everybody may.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The networks whose connections both let in; none where that is everybody. An empty set lets nobody in.
    pub fn both(&self, other: &Self) -> Option<BTreeSet<SourceRange>> {
        let within = |one: &SourceRange, all: &Self| all.is_empty() || all.0.iter().any(|other| other.0.contains(&one.0));
        // Of two networks that share an address, one holds the other.
        let of = |some: &Self, all: &Self| some.0.iter().copied().filter(|one| within(one, all)).collect::<Vec<_>>();
        (!self.is_empty() || !other.is_empty()).then(|| of(self, other).into_iter().chain(of(other, self)).collect())
    }
}

impl FromIterator<SourceRange> for SourceRanges {
    fn from_iter<I: IntoIterator<Item = SourceRange>>(ranges: I) -> Self {
        Self(ranges.into_iter().collect())
    }
}

impl<'a> IntoIterator for &'a SourceRanges {
    type Item = &'a SourceRange;
    type IntoIter = std::collections::btree_set::Iter<'a, SourceRange>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl FromStr for SourceRanges {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        text.split(',').map(str::parse).collect()
    }
}

impl fmt::Display for SourceRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&listed(self))
    }
}

/// Networks as text.
pub fn listed<'a>(ranges: impl IntoIterator<Item = &'a SourceRange>) -> String {
    ranges.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(texts: &[&str]) -> SourceRanges {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn networks_and_addresses_are_ranges_and_nothing_else_is() {
        for (text, want) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(text.parse::<SourceRange>().unwrap().to_string(), want);
        }
        for text in ["", "10.0.0.0/33", "10.0.0", "all", "10.0.0.0/8;", "10.0.0.0/8 10.1.0.0/16", "hub.example"] {
            assert_eq!(text.parse::<SourceRange>().unwrap_err().kind, Kind::Usage, "{text:?}");
        }
        assert!("10.0.0.0/8,".parse::<SourceRanges>().is_err());
        let json = r#"["10.0.0.0/8","10.80.0.10"]"#;
        assert_eq!(serde_json::from_str::<SourceRanges>(json).unwrap().to_string(), "10.0.0.0/8,10.80.0.10/32");
        assert!(serde_json::from_str::<SourceRanges>(r#"["anywhere"]"#).is_err());
    }

    #[test]
    fn a_connection_must_be_let_in_by_region_and_route() {
        for (region, route, want) in [
            (&[][..], &[][..], None),
            (&["10.0.0.0/8"], &[], Some("10.0.0.0/8")),
            (&[], &["10.0.0.0/8"], Some("10.0.0.0/8")),
            (&["10.0.0.0/8"], &["10.80.0.0/16", "192.0.2.0/24"], Some("10.80.0.0/16")),
            (&["10.80.0.10"], &["10.0.0.0/8"], Some("10.80.0.10/32")),
            (&["10.0.0.0/8"], &["192.0.2.0/24"], Some("")),
        ] {
            let both = ranges(region).both(&ranges(route));
            assert_eq!(both.map(|both| listed(&both)).as_deref(), want, "{region:?} {route:?}");
        }
    }

    proptest! {
        #[test]
        fn both_let_in_just_what_each_does(
            one in prop::collection::vec((0u8..4, 28u8..=32), 0..4), other in prop::collection::vec((0u8..4, 28u8..=32), 0..4), last: u8,
        ) {
            let of = |some: &[(u8, u8)]| some.iter().map(|(last, bits)| format!("192.0.2.{}/{bits}", last * 5).parse().unwrap()).collect();
            let (one, other): (SourceRanges, SourceRanges) = (of(&one), of(&other));
            let address = IpAddr::from([192, 0, 2, last % 32]);
            let lets_in = |ranges: &SourceRanges| ranges.is_empty() || ranges.into_iter().any(|range| range.0.contains(&address));
            let both = one.both(&other).is_none_or(|both| both.iter().any(|range| range.0.contains(&address)));
            prop_assert_eq!(both, lets_in(&one) && lets_in(&other));
        }

        #[test]
        fn ranges_survive_the_way_through_text(some in prop::collection::vec((any::<IpAddr>(), 0u8..=32), 1..5)) {
            let ranges: SourceRanges = some.iter().map(|(ip, bits)| SourceRange(IpNet::new(*ip, *bits).unwrap().trunc())).collect();
            prop_assert_eq!(ranges.to_string().parse::<SourceRanges>().unwrap(), ranges);
        }
    }
}
