//! What bounds the connections that a route carries: those of its region, which hold for every route, and its cluster's own.

use std::collections::BTreeSet;
use std::num::NonZeroU16;

use super::route::Mode;
use super::sources::{SourceRange, SourceRanges};

/// Bounds on connections.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Bounds {
    /// Where they may come from; nowhere named: from everywhere.
    pub sources: SourceRanges,
    /// How many each proxy carries at once; none: as many as come. nginx counts no further than to 65,535.
    pub connections: Option<NonZeroU16>,
}

/// What two bounds let in together.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LetIn {
    /// Where connections may come from; none: from everywhere. An empty set: from nowhere.
    pub sources: Option<BTreeSet<SourceRange>>,
    /// How many each proxy carries at once; none: as many as come.
    pub connections: Option<NonZeroU16>,
}

impl Bounds {
    /// Whatever comes is let in.
    pub const NONE: Self = Self { sources: SourceRanges::EVERYBODY, connections: None };

    /// What a region's bounds and a route's let in together. In mode `sni` nobody counts: whose a connection is, is known too late.
    pub fn both(&self, other: &Self, mode: Mode) -> LetIn {
        let least = [self.connections, other.connections].into_iter().flatten().min();
        LetIn { sources: self.sources.both(&other.sources), connections: least.filter(|_| mode == Mode::Port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lesser_number_holds_where_connections_can_be_counted() {
        for (region, route, want) in
            [(0, 0, None), (100, 0, Some(100)), (0, 20, Some(20)), (100, 20, Some(20)), (20, 100, Some(20)), (20, 20, Some(20))]
        {
            let [region, route] = [region, route].map(|most| Bounds { connections: NonZeroU16::new(most), ..Bounds::NONE });
            let most = |mode| region.both(&route, mode).connections.map(NonZeroU16::get);
            assert_eq!((most(Mode::Port), most(Mode::Sni)), (want, None), "{region:?} {route:?}");
        }
    }

    #[test]
    fn sources_hold_however_connections_are_told_apart() {
        let (wide, narrow) = ("10.0.0.0/8".parse().unwrap(), "10.80.0.0/16".parse().unwrap());
        let [wide, narrow] = [wide, narrow].map(|sources| Bounds { sources, ..Bounds::NONE });
        for mode in [Mode::Port, Mode::Sni] {
            assert_eq!(wide.both(&narrow, mode).sources, Some((&narrow.sources).into_iter().copied().collect()));
            assert_eq!(Bounds::NONE.both(&Bounds::NONE, mode), LetIn { sources: None, connections: None });
        }
    }
}
