//! What a renewal reads and writes on the hub: the kubeconfig that a cluster was joined with, and the cluster's Secret. Each is written as
//! it was read, or not at all.

use jiff::Timestamp;
use k8s_openapi::ByteString;
use kube::api::{Patch, PatchParams};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

use super::clusters::JoinedCluster;
use super::{Hub, OPT_IN, call};
use crate::error::Result;
use crate::model::membership::{EXPIRES, Origin, RENEWS};
use crate::model::names::{MANAGER, NAMESPACE};

/// The kubeconfig that a cluster was joined with, as it is now.
pub struct Source {
    /// Its text.
    pub text: Vec<u8>,
    version: Option<String>,
}

impl Hub {
    /// The kubeconfig that a cluster was joined with. None where it isn't there any more, may not be read, or can't be changed.
    pub async fn source(&self, origin: &Origin) -> Result<Option<Source>> {
        let name = &origin.secret;
        let found = call(&format!("read Secret {NAMESPACE}/{name}"), self.secrets().get_opt(name.as_str())).await?;
        let Some(secret) = found.filter(|secret| secret.immutable != Some(true)) else { return Ok(None) };
        let opted_in = secret.metadata.labels.as_ref().and_then(|labels| labels.get(OPT_IN)).is_some_and(|value| value == "true");
        let text = secret.data.unwrap_or_default().remove(&origin.key).filter(|_| opted_in);
        Ok(text.map(|text| Source { text: text.0, version: secret.metadata.resource_version }))
    }

    /// Writes that kubeconfig anew.
    pub async fn put_source(&self, origin: &Origin, source: &Source, text: &[u8]) -> Result<()> {
        let data = json!({origin.key.as_str(): ByteString(text.to_vec())});
        self.patch_secret(origin.secret.as_str(), json!({"metadata": {"resourceVersion": source.version}, "data": data})).await
    }

    /// Gives a cluster's Secret another token, with its end on record, and from when on it is renewed. The gateway reads the Secret anew for
    /// each request.
    pub async fn put_token(
        &self,
        cluster: &JoinedCluster,
        token: &SecretString,
        expires: Option<Timestamp>,
        renews: Option<Timestamp>,
    ) -> Result<()> {
        let [expires, renews] = [expires, renews].map(|time| time.map(|time| time.to_string()));
        let annotations = json!({EXPIRES: expires, RENEWS: renews});
        let data = json!({"token": ByteString(token.expose_secret().as_bytes().to_vec())});
        let patch = json!({"metadata": {"resourceVersion": cluster.version(), "annotations": annotations}, "data": data});
        self.patch_secret(cluster.name(), patch).await
    }

    async fn patch_secret(&self, name: &str, patch: Value) -> Result<()> {
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let what = format!("write Secret {NAMESPACE}/{name}");
        call(&what, self.secrets().patch(name, &params, &Patch::Merge(&patch))).await.map(drop)
    }
}
