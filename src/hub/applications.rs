//! KubeVela's Applications, as far as a leave must know of them.

use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};

use super::{Hub, call};
use crate::error::Result;
use crate::model::names::ClusterName;
use crate::model::usage::{Usage, usage};

impl Hub {
    /// The Applications that have resources in a cluster.
    pub async fn usage(&self, cluster: &ClusterName) -> Result<Vec<Usage>> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("core.oam.dev", "v1beta1", "Application"));
        let applications: Api<DynamicObject> = Api::all_with(self.client(), &resource);
        let list = call("list the Applications", applications.list(&ListParams::default())).await?;
        Ok(list.items.iter().filter_map(|application| usage(application, cluster)).collect())
    }
}
