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
    /// The regions that did not say whether they have anything of it.
    pub silent: Vec<ClusterName>,
}

/// In a sentence, as a step's message shows it.
impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, detached, hosts, regions, kept, silent } = self;
        if !detached && hosts.is_empty() && regions.is_empty() && kept.is_empty() {
            write!(f, "nothing to do: there is no cluster {cluster}, and ")?;
            if silent.is_empty() {
                return write!(f, "no region has anything of it");
            }
            let silent = silent.iter().map(ClusterName::as_str).collect::<Vec<_>>().join(", ");
            return write!(
                f,
                "no region that answers has anything of it; {silent} did not answer: run `xregion leave {cluster}` again when it does"
            );
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
        let none =
            Left { cluster: "a".parse().unwrap(), detached: false, hosts: vec![], regions: vec![], kept: vec![], silent: vec![] };
        assert_eq!(none.to_string(), "nothing to do: there is no cluster a, and no region has anything of it");
        let silent = Left { silent: vec!["east".parse().unwrap()], ..none.clone() };
        let told = silent.to_string();
        assert!(told.contains("no region that answers has anything of it; east did not answer"), "{told}");
        let all = Left { detached: true, hosts: vec!["a.example".into()], regions: vec!["east".parse().unwrap()], ..none.clone() };
        assert_eq!(all.to_string(), "a left: it is detached, the gateway forgot a.example, region east has nothing of it any more");
        let dead = Left { detached: true, kept: vec![("east".parse().unwrap(), "it is dead".into())], ..none };
        assert!(dead.to_string().ends_with("runs again when that can be reached: it is dead"), "{dead}");
    }
}
