//! The hub's record of what a cluster that left, or moved to another region, still has in a region: a ConfigMap each, written before
//! anything is taken away and removed when all is. From it an interrupted leave is finished.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use super::{Hub, call, gone_is_fine};
use crate::error::Result;
use crate::model::names::{CLUSTER, ClusterName, KIND, MANAGER, NAMESPACE, short_hash};

/// Label value (of [`KIND`]) of these ConfigMaps.
const KIND_LEAVING: &str = "leaving";

/// A cluster's route and port in a region, to be removed.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Leftover {
    /// The cluster.
    pub cluster: ClusterName,
    /// The region.
    pub region: ClusterName,
    /// Whether connections to it that are open through the gateway are to be cut with its name.
    pub cut: bool,
}

impl Leftover {
    fn name(&self) -> String {
        format!("xregion-leaving-{}-{}", self.cluster, short_hash(self.region.as_str(), 8))
    }
}

impl Hub {
    pub(super) fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client(), NAMESPACE)
    }

    /// Records that a cluster is about to leave a region.
    pub async fn put_leftover(&self, leftover: &Leftover) -> Result<()> {
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": leftover.name(),
                "labels": {
                    KIND: KIND_LEAVING, CLUSTER: leftover.cluster.as_str(), "app.kubernetes.io/managed-by": MANAGER,
                },
            },
            "data": {
                "cluster": leftover.cluster.as_str(), "region": leftover.region.as_str(), "cut": leftover.cut.to_string(),
            },
        });
        let params = PatchParams::apply(MANAGER).force();
        let name = leftover.name();
        call(&format!("write ConfigMap {NAMESPACE}/{name}"), self.maps().patch(&name, &params, &Patch::Apply(&map))).await.map(drop)
    }

    /// Forgets a record: all is removed.
    pub async fn remove_leftover(&self, leftover: &Leftover) -> Result<()> {
        let name = leftover.name();
        call(&format!("remove ConfigMap {NAMESPACE}/{name}"), gone_is_fine(self.maps().delete(&name, &Default::default())))
            .await
            .map(drop)
    }

    /// Every record.
    pub async fn leftovers(&self) -> Result<Vec<Leftover>> {
        let params = ListParams::default().labels(&format!("{KIND}={KIND_LEAVING}"));
        let list = call("list what clusters that left still have in regions", self.maps().list(&params)).await?;
        let read = |map: ConfigMap| {
            let get = |key: &str| map.data.as_ref()?.get(key);
            let cut = get("cut").is_some_and(|text| text == "true");
            Some(Leftover { cluster: get("cluster")?.parse().ok()?, region: get("region")?.parse().ok()?, cut })
        };
        Ok(list.items.into_iter().filter_map(read).collect())
    }
}
