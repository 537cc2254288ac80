//! What a leave came to.

use std::fmt;

use super::names::ClusterName;

/// The result of a leave.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Left {
    /// The cluster.
    pub cluster: ClusterName,
    /// Whether KubeVela had it.
    pub detached: bool,
    /// The host names that were taken off the gateway.
    pub hosts: Vec<String>,
    /// The regions in which something was removed.
    pub regions: Vec<ClusterName>,
    /// The regions that could not be cleared, and why.
    pub kept: Vec<(ClusterName, String)>,
}

/// In a sentence, as a step's message shows it.
impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, detached, hosts, regions, kept } = self;
        if !detached && hosts.is_empty() && regions.is_empty() && kept.is_empty() {
            return write!(f, "nothing to do: there is no cluster {cluster}, and no region has anything of it");
        }
        let mut done = Vec::new();
        done.extend(detached.then(|| "it is detached".to_owned()));
        done.extend((!hosts.is_empty()).then(|| format!("the gateway forgot {}", hosts.join(", "))));
        done.extend(regions.iter().map(|region| format!("region {region} has nothing of it any more")));
        write!(f, "{cluster} left: {}", done.join(", "))?;
        for (region, why) in kept {
            write!(
                f,
                "; its route in region {region} stays until `xregion leave {cluster}` runs again when that can be reached: {why}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leave_tells_what_went_and_what_stays() {
        let none = Left { cluster: "a".parse().unwrap(), detached: false, hosts: vec![], regions: vec![], kept: vec![] };
        assert!(none.to_string().starts_with("nothing to do: there is no cluster a"));
        let all = Left { detached: true, hosts: vec!["a.example".into()], regions: vec!["east".parse().unwrap()], ..none.clone() };
        assert_eq!(all.to_string(), "a left: it is detached, the gateway forgot a.example, region east has nothing of it any more");
        let dead = Left { detached: true, kept: vec![("east".parse().unwrap(), "it is dead".into())], ..none };
        assert!(dead.to_string().ends_with("runs again when that can be reached: it is dead"), "{dead}");
    }
}
