//! Which Applications have resources in a cluster, by their own status.

use std::fmt;

use kube::ResourceExt as _;
use kube::api::DynamicObject;

use super::names::ClusterName;

/// An Application with resources in a cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Usage {
    /// `namespace/name`.
    pub application: String,
    /// How many.
    pub resources: usize,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.application, self.resources)
    }
}

/// How an Application uses a cluster, by `status.appliedResources`; not at all is none. (KubeVela's ResourceTrackers say the same,
/// compressed.)
pub fn usage(application: &DynamicObject, cluster: &ClusterName) -> Option<Usage> {
    let applied = application.data["status"]["appliedResources"].as_array()?;
    let resources = applied.iter().filter(|resource| resource["cluster"] == cluster.as_str()).count();
    let application = format!("{}/{}", application.namespace().unwrap_or_default(), application.name_any());
    (resources > 0).then_some(Usage { application, resources })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_application_uses_the_clusters_of_its_applied_resources() {
        let of = |status: Value| {
            let application = json!({
                "apiVersion": "core.oam.dev/v1beta1", "kind": "Application",
                "metadata": {"name": "hello", "namespace": "default"}, "status": status,
            });
            usage(&serde_json::from_value(application).unwrap(), &"a".parse().unwrap()).map(|usage| usage.to_string())
        };
        let applied = json!([{"cluster": "a", "name": "x"}, {"name": "on-the-hub"}, {"cluster": "a"}, {"cluster": "b"}]);
        assert_eq!(of(json!({"appliedResources": applied})).as_deref(), Some("default/hello (2)"));
        assert_eq!(of(json!({"appliedResources": [{"cluster": "b"}]})), None);
        assert_eq!(of(json!({})), None);
    }
}
