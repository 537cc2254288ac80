//! What the hub's records say of who is joined and through which region: whom there is to ask.

use std::collections::{BTreeMap, BTreeSet};

use super::aliases::Record;
use super::names::ClusterName;

/// The hub's records.
pub struct Recorded<'a> {
    joined: &'a BTreeMap<ClusterName, Option<ClusterName>>,
    /// A cluster and a region where it has or had something, whether it is joined or not.
    traces: BTreeSet<(ClusterName, ClusterName)>,
}

impl<'a> Recorded<'a> {
    /// The records: every joined cluster with its region if it was joined through one, the gateway's record of host aliases, and what
    /// clusters left behind where.
    pub fn new(
        joined: &'a BTreeMap<ClusterName, Option<ClusterName>>,
        aliases: Option<&Record>,
        leftovers: &BTreeSet<(ClusterName, ClusterName)>,
    ) -> Self {
        let mut traces = leftovers.clone();
        for recorded in aliases.into_iter().flat_map(|aliases| aliases.0.values()) {
            let Ok(region) = recorded.region.parse::<ClusterName>() else { continue };
            traces.extend(recorded.clusters.iter().filter_map(|name| Some((name.parse().ok()?, region.clone()))));
        }
        traces.extend(joined.iter().filter_map(|(name, region)| Some((name.clone(), region.clone()?))));
        Self { joined, traces }
    }

    /// What some record calls a region.
    pub fn regions(&self) -> BTreeSet<ClusterName> {
        self.traces.iter().map(|(_, region)| region.clone()).collect()
    }

    /// The clusters to read as regions: of a cluster, those where it has something, and itself if it was
    /// joined directly; else every one that is recorded or
    /// may be one, as clusters joined directly are.
    pub fn to_read(&self, asked: Option<&ClusterName>) -> BTreeSet<ClusterName> {
        match asked.and_then(|name| Some((name, self.joined.get(name)?))) {
            Some((name, region)) => {
                let traces = self.traces.iter().filter(|(cluster, _)| cluster == name).map(|(_, region)| region.clone());
                traces.chain(region.is_none().then(|| name.clone())).collect()
            }
            None => {
                let directly = self.joined.iter().filter(|(_, region)| region.is_none()).map(|(name, _)| name.clone());
                directly.chain(self.regions()).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::aliases::Recorded as Alias;
    use super::*;

    fn name(text: &str) -> ClusterName {
        text.parse().unwrap()
    }

    #[test]
    fn who_is_asked() {
        let joined = [("a", Some("east")), ("moved", Some("east")), ("east", None), ("direct", None), ("lost", None)]
            .map(|(cluster, region)| (name(cluster), region.map(name)))
            .into();
        let alias = |region: &str, cluster: &str| Alias { region: region.into(), clusters: [cluster.to_owned()].into() };
        let aliases = [("gone.example", alias("south", "gone")), ("lost.example", alias("east", "lost"))];
        let aliases = Record(aliases.map(|(host, alias)| (host.to_owned(), alias)).into());
        let leftovers = [(name("moved"), name("west"))].into();
        let recorded = Recorded::new(&joined, Some(&aliases), &leftovers);
        let names = |names: BTreeSet<ClusterName>| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(names(recorded.regions()), "east south west");
        for (asked, want) in [
            (None, "direct east lost south west"),
            (Some("a"), "east"),
            (Some("moved"), "east west"),
            (Some("east"), "east"),
            (Some("direct"), "direct"),
            // Its record may be lost.
            (Some("lost"), "east lost"),
            // What a killed join left may be anywhere.
            (Some("nobody"), "direct east lost south west"),
            (Some("gone"), "direct east lost south west"),
        ] {
            assert_eq!(names(recorded.to_read(asked.map(name).as_ref())), want, "{asked:?}");
        }
    }
}
