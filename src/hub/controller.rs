//! What the controller keeps on the hub: the Lease by which one writes, and a ConfigMap with what it can't mend.

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource as _};
use serde_json::json;

use super::{Hub, call};
use crate::error::Result;
use crate::lock::Claim;
use crate::model::drift::Told;
use crate::model::names::{CONTROLLER, MANAGER, NAMESPACE};
use crate::model::observed::SeenController;

/// The ConfigMap's key: JSON of a list.
const PROBLEMS: &str = "problems";

impl Hub {
    /// A claim to the right to mend, which one controller has.
    pub fn claim_controller(&self, holder: &str) -> Claim {
        Claim::new(Api::namespaced(self.client(), NAMESPACE), CONTROLLER, holder)
    }

    /// The controller, if the addon has one.
    pub async fn controller(&self) -> Result<Option<SeenController>> {
        let Some(deployment) = self.controller_deployment().await? else { return Ok(None) };
        let ready = deployment.status.and_then(|status| status.ready_replicas).unwrap_or(0) > 0;
        Ok(Some(SeenController { ready, problems: self.problems().await? }))
    }

    pub(super) async fn controller_deployment(&self) -> Result<Option<Deployment>> {
        let deployments: Api<Deployment> = Api::namespaced(self.client(), NAMESPACE);
        call(&format!("read Deployment {NAMESPACE}/{CONTROLLER}"), deployments.get_opt(CONTROLLER)).await
    }

    /// What the controller told last that it can't mend.
    pub async fn problems(&self) -> Result<Vec<Told>> {
        let found = call(&format!("read ConfigMap {NAMESPACE}/{CONTROLLER}"), self.maps().get_opt(CONTROLLER)).await?;
        let json = found.and_then(|map| map.data).and_then(|mut data| data.remove(PROBLEMS)).unwrap_or_default();
        // Whatever somebody else made of it is written anew.
        Ok(serde_json::from_str(&json).unwrap_or_default())
    }

    /// Tells what the controller can't mend, in a ConfigMap that goes with it.
    pub async fn put_problems(&self, problems: &[Told]) -> Result<()> {
        let owner = self.controller_deployment().await?.and_then(|deployment| deployment.owner_ref(&()));
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": CONTROLLER, "labels": {"app.kubernetes.io/managed-by": MANAGER}, "ownerReferences": owner.as_slice()},
            "data": {PROBLEMS: json!(problems).to_string()},
        });
        let params = PatchParams::apply(MANAGER).force();
        let what = format!("write ConfigMap {NAMESPACE}/{CONTROLLER}");
        call(&what, self.maps().patch(CONTROLLER, &params, &Patch::Apply(&map))).await.map(drop)
    }
}
