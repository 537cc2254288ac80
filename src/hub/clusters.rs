//! The joined clusters: Secrets in `vela-system` that cluster-gateway reads, with xregion's record in their annotations.

use std::collections::BTreeMap;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Resource as _};
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::{Hub, call};
use crate::error::{Failure, Kind, Result};
use crate::model::aliases::Wanted;
use crate::model::direct::DirectHosts;
use crate::model::kubeconfig::{Access, Credentials};
use crate::model::membership::{CREDENTIAL_TYPE, Membership, OPTIONAL};
use crate::model::names::{ClusterName, DnsName, NAMESPACE};
use crate::model::once::OnRecord;

/// The Job's ServiceAccount, as clusters name it that are asked as it; and how the controller's begins.
const ACCOUNT: &str = "system:serviceaccount:vela-system:xregion";
/// How long a cluster may take to say who it is, when that is asked only to compare.
const IDENTITY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// A cluster's Secret.
#[derive(Clone)]
pub struct JoinedCluster {
    secret: Secret,
}

impl JoinedCluster {
    /// The address cluster-gateway connects to.
    pub fn endpoint(&self) -> Option<&str> {
        self.data("endpoint").and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// The host name by which the hub reaches it, if it is by a name.
    pub fn host(&self) -> Option<DnsName> {
        self.endpoint()?.parse::<http::Uri>().ok()?.host()?.parse().ok()
    }

    /// The port at which the hub reaches it, if its address says one.
    pub fn port(&self) -> Option<u16> {
        self.endpoint()?.rsplit_once(':')?.1.parse().ok()
    }

    /// Whether the hub shows its credentials for it already to whoever has a certificate for this name by one of these authorities.
    pub fn is_shown_to(&self, name: &DnsName, ca: &[u8]) -> bool {
        self.host().as_ref() == Some(name) && self.data("ca.crt") == Some(ca)
    }

    /// Whether KubeVela has it with just this address, and this authority and these credentials.
    pub fn is_reached_by(&self, endpoint: &str, access: &Access) -> bool {
        let credentials = match &access.credentials {
            Credentials::Token(token) => {
                self.label(CREDENTIAL_TYPE) == Some("ServiceAccountToken")
                    && self.data("token") == Some(token.expose_secret().as_bytes())
            }
            Credentials::Certificate(certificate, key) => {
                self.label(CREDENTIAL_TYPE) == Some("X509Certificate")
                    && self.data("tls.crt") == Some(certificate)
                    && self.data("tls.key") == Some(key.expose_secret().as_bytes())
            }
        };
        credentials && self.endpoint() == Some(endpoint) && self.data("ca.crt") == Some(&access.ca)
    }

    /// A value of the Secret's data.
    pub fn data(&self, key: &str) -> Option<&[u8]> {
        self.secret.data.as_ref().and_then(|data: &BTreeMap<String, ByteString>| data.get(key)).map(|bytes| bytes.0.as_slice())
    }

    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.secret.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str)
    }

    /// What xregion recorded about how it was joined, if it was joined so.
    pub fn membership(&self) -> Option<Membership> {
        self.secret.metadata.annotations.as_ref().and_then(Membership::from_annotations)
    }

    /// The host alias that it is recorded with.
    pub fn wanted(&self) -> Option<Wanted> {
        let membership = self.membership()?;
        Some(Wanted { host: membership.alias, cluster: self.name().parse().ok()?, region: membership.region })
    }

    /// Its record, as those compare it who were joined at the same time.
    pub fn on_record(&self) -> Option<OnRecord> {
        let version = self.version().and_then(|version| version.parse().ok());
        Some(OnRecord { name: self.name().to_owned(), identity: self.membership()?.identity, version })
    }

    /// Its Secret, for those who tell about it.
    pub fn reference(&self) -> ObjectReference {
        self.secret.object_ref(&())
    }

    /// The Secret as the API had it when it was read.
    pub fn version(&self) -> Option<&str> {
        self.secret.metadata.resource_version.as_deref()
    }

    /// What the hub shows to the cluster.
    pub fn credentials(&self) -> Option<Credentials> {
        let text = |key: &str| self.data(key).and_then(|bytes| std::str::from_utf8(bytes).ok()).map(str::to_owned);
        match self.label(CREDENTIAL_TYPE)? {
            "ServiceAccountToken" => Some(Credentials::Token(text("token")?.into())),
            "X509Certificate" => Some(Credentials::Certificate(self.data("tls.crt")?.to_vec(), text("tls.key")?.into())),
            _ => None,
        }
    }

    /// When it was joined for the first time under its name.
    pub fn since(&self) -> Option<Timestamp> {
        self.secret.metadata.creation_timestamp.as_ref().map(|time| time.0)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.secret.metadata.name.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
impl From<Secret> for JoinedCluster {
    fn from(secret: Secret) -> Self {
        Self { secret }
    }
}

/// What a run joins a cluster with, which tells its Secret from that of another run.
pub struct JoinedWith {
    /// How the cluster is asked.
    pub access: Access,
    /// What is recorded in the end.
    pub membership: Membership,
}

impl JoinedWith {
    /// Whether a Secret is what the run made of the one before, be it that it is not recorded yet.
    fn made(&self, now: &JoinedCluster, before: Option<&JoinedCluster>) -> bool {
        let record = now.membership();
        let is_mine =
            record.is_none() || record.as_ref() == Some(&self.membership) || record == before.and_then(JoinedCluster::membership);
        is_mine && now.is_reached_by(&self.membership.endpoint(), &self.access)
    }
}

/// What a joined cluster says of who it is.
pub enum Identity {
    /// The UID of its namespace `kube-system`.
    Known(String),
    /// It answers, and does not let this Job's account read that. With KubeVela's `authentication.enabled` the gateway asks clusters as
    /// whoever asks it, and no cluster but the regions' need know that account.
    Withheld(Failure),
}

impl Hub {
    /// The cluster joined under a name, if there is one.
    ///
    /// # Errors
    /// A Secret of that name exists and is no cluster: joining over it would fail at the very end, in `vela`.
    pub async fn cluster(&self, name: &ClusterName) -> Result<Option<JoinedCluster>> {
        let Some(secret) = call(&format!("read Secret {NAMESPACE}/{name}"), self.secrets().get_opt(name.as_str())).await? else {
            return Ok(None);
        };
        let cluster = JoinedCluster { secret };
        if cluster.label(CREDENTIAL_TYPE).is_none() {
            return Err(Failure::new(
                Kind::NameTaken,
                format!(
                    "Secret {NAMESPACE}/{name} exists and is no cluster, and KubeVela keeps a cluster in the Secret of its name"
                ),
                "choose another name for the cluster, or rename that Secret",
            ));
        }
        Ok(Some(cluster))
    }

    /// The host names by which clusters are reached that no region leads to.
    pub async fn direct_hosts(&self) -> Result<DirectHosts> {
        let clusters = self.joined_clusters().await?;
        let alias = |cluster: &JoinedCluster| cluster.membership().map(|membership| membership.alias);
        Ok(DirectHosts::of(clusters.iter().map(|cluster| (cluster.name().to_owned(), cluster.host(), alias(cluster)))))
    }

    /// Every joined cluster.
    pub async fn joined_clusters(&self) -> Result<Vec<JoinedCluster>> {
        let params = ListParams::default().labels(CREDENTIAL_TYPE);
        let list = call("list the joined clusters", self.secrets().list(&params)).await?;
        Ok(list.items.into_iter().map(|secret| JoinedCluster { secret }).collect())
    }

    /// The UID of the namespace `kube-system` of a joined cluster, as seen through the gateway now.
    pub async fn identity_through_gateway(&self, name: &ClusterName) -> Result<String> {
        match self.ask_identity(name).await? {
            Identity::Known(uid) => Ok(uid),
            Identity::Withheld(failure) => Err(failure),
        }
    }

    /// The same for a Job, to whose account a cluster may withhold it and yet be there.
    pub async fn ask_identity(&self, name: &ClusterName) -> Result<Identity> {
        let namespaces: Api<Namespace> = Api::all(self.through_gateway(name)?);
        let system = tokio::time::timeout(IDENTITY_TIMEOUT, namespaces.get("kube-system"))
            .await
            .map_err(|_| no_answer(name, None, &format!("nothing within {} s", IDENTITY_TIMEOUT.as_secs())))?;
        match system {
            Ok(system) => Ok(Identity::Known(system.metadata.uid.unwrap_or_default())),
            Err(kube::Error::Api(status)) => {
                let failure = no_answer(name, Some(status.code), &status.message);
                let withheld = status.code == 403 && status.message.contains(ACCOUNT);
                if withheld { Ok(Identity::Withheld(failure)) } else { Err(failure) }
            }
            Err(error) => Err(no_answer(name, None, &super::root_cause(&error))),
        }
    }

    /// The identity of each joined cluster, by name. Clusters that xregion did not join are asked; of one that doesn't answer it is not known.
    pub async fn identities(&self) -> Result<Vec<(String, Option<String>)>> {
        let clusters = self.joined_clusters().await?;
        Ok(join_all(clusters.into_iter().map(|cluster| async move {
            let known = cluster.membership().map(|membership| membership.identity);
            let identity = match (known, cluster.name().parse()) {
                (Some(known), _) => Some(known),
                (None, Ok(name)) => self.identity_through_gateway(&name).await.ok(),
                (None, Err(_)) => None,
            };
            (cluster.name().to_owned(), identity)
        }))
        .await)
    }

    /// Every joined cluster's record. Only that is read: their credentials make up most of what there is of a thousand clusters.
    pub async fn on_record(&self) -> Result<Vec<OnRecord>> {
        let params = ListParams::default().labels(CREDENTIAL_TYPE);
        let list = call("list the records of the joined clusters", self.secrets().list_metadata(&params)).await?;
        let secrets = list.items.into_iter().map(|one| Secret { metadata: one.metadata, ..Secret::default() });
        Ok(secrets.filter_map(|secret| JoinedCluster { secret }.on_record()).collect())
    }

    /// Writes xregion's record onto a cluster's Secret, and gives that.
    pub async fn record(&self, name: &ClusterName, membership: &Membership) -> Result<JoinedCluster> {
        let recorded = membership.to_annotations();
        let mut annotations = json!(recorded);
        for key in OPTIONAL.into_iter().filter(|key| !recorded.contains_key(*key)) {
            // What an earlier join recorded and this one has not.
            annotations[key] = json!(null);
        }
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        let secret = call(
            &format!("annotate Secret {NAMESPACE}/{name}"),
            self.secrets().patch(name.as_str(), &PatchParams::default(), &patch),
        )
        .await?;
        Ok(JoinedCluster { secret })
    }

    /// Puts a cluster's Secret back to what it was: as `before`, or gone. What another run has made of it since stays.
    pub async fn restore(&self, name: &ClusterName, joined: &JoinedWith, before: Option<&JoinedCluster>) -> Result<()> {
        let what = format!("restore Secret {NAMESPACE}/{name}");
        let now = call(&what, self.secrets().get_opt(name.as_str())).await?;
        if now.clone().is_some_and(|secret| !joined.made(&JoinedCluster { secret }, before)) {
            tracing::info!(cluster = %name, "its Secret is not what this run made, and is left as it is");
            return Ok(());
        }
        match (before, now) {
            (None, None) => Ok(()),
            (None, Some(Secret { metadata, .. })) => {
                let preconditions = Preconditions { resource_version: metadata.resource_version, uid: metadata.uid };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                call(&what, self.secrets().delete(name.as_str(), &params)).await.map(drop)
            }
            (Some(before), now) => {
                let mut secret = before.secret.clone();
                secret.metadata.managed_fields = None;
                secret.metadata.resource_version = now.as_ref().and_then(|secret| secret.metadata.resource_version.clone());
                match now {
                    Some(_) => call(&what, self.secrets().replace(name.as_str(), &PostParams::default(), &secret)).await.map(drop),
                    None => call(&what, self.secrets().create(&PostParams::default(), &secret)).await.map(drop),
                }
            }
        }
    }
}

/// Why a joined cluster gives no answer through the gateway, which hands on the cluster's own refusals and what its client says of the
/// way there.
fn no_answer(name: &ClusterName, code: Option<u16>, why: &str) -> Failure {
    let (cause, hint) = match code {
        Some(401) => (
            "does not accept the credentials in its Secret (401)".to_owned(),
            "join it again with a kubeconfig whose credentials it accepts".to_owned(),
        ),
        Some(403) => (
            format!("does not let the hub in (403): {why}"),
            "give the user that this names the right, or join it again with a kubeconfig that has it".to_owned(),
        ),
        _ if why.contains("x509: ") && why.contains("expired") => {
            (format!("does not answer through the gateway: {why}"), format!("renew the certificate of {name}'s API server"))
        }
        _ if why.contains("x509: ") => (
            format!("does not answer through the gateway: {why}"),
            "its certificate is another one than when it was joined: join it again with a kubeconfig of today".to_owned(),
        ),
        _ => (format!("does not answer through the gateway: {why}"), format!("check the API server of {name}, from its region")),
    };
    Failure::new(Kind::NotReachable, format!("cluster {name} {cause}"), hint)
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::Client;
    use kube::client::Body;
    use tower_test::mock::pair;

    use super::*;
    use crate::model::observed::sample;

    #[tokio::test]
    async fn records_are_read_without_credentials_and_with_their_versions() {
        let (service, mut handle) = pair::<Request<Body>, Response<Body>>();
        let hub = Hub::mocked(Client::new(service, "vela-system"));
        let asking = tokio::spawn(async move { hub.on_record().await });
        let (request, respond) = handle.next_request().await.unwrap();
        assert_eq!(request.uri().path(), "/api/v1/namespaces/vela-system/secrets");
        assert!(request.headers()["accept"].to_str().unwrap().contains("as=PartialObjectMetadataList"));
        let annotations = Membership { identity: "uid".into(), ..sample::membership("a", "10.9.0.1", 30000) }.to_annotations();
        let kind = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata"});
        let mut items = [kind.clone(), kind];
        items[0]["metadata"] = json!({"name": "a", "resourceVersion": "41", "annotations": annotations});
        items[1]["metadata"] = json!({"name": "joined-otherwise", "resourceVersion": "42"});
        let list = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": items});
        respond.send_response(Response::new(Body::from(list.to_string().into_bytes())));
        let want = OnRecord { name: "a".into(), identity: "uid".into(), version: Some(41) };
        assert_eq!(asking.await.unwrap().unwrap(), [want]);
    }

    #[test]
    fn a_cluster_s_host_is_the_name_in_its_endpoint() {
        for (endpoint, want) in [
            ("https://a.example:30000", Some("a.example")),
            ("https://A.example", Some("a.example")),
            ("https://a.example./", Some("a.example")),
            ("https://a.example:6443/k8s/clusters/c-1", Some("a.example")),
            ("https://10.0.0.1:6443", None),
            ("https://[2001:db8::1]:6443", None),
            ("", None),
        ] {
            let data = json!({"endpoint": ByteString(endpoint.into())});
            let secret: Secret = serde_json::from_value(json!({"data": data})).unwrap();
            assert_eq!(JoinedCluster { secret }.host().as_ref().map(DnsName::as_str), want, "{endpoint}");
        }
    }

    #[test]
    fn each_silence_has_a_fix_of_its_own() {
        for (code, why, cause, hint) in [
            (Some(401), "Unauthorized", "does not accept the credentials", "whose credentials it accepts"),
            (Some(403), "namespaces \"kube-system\" is forbidden", "does not let the hub in (403): namespaces", "give the user"),
            (
                Some(502),
                "tls: failed to verify certificate: x509: certificate signed by unknown authority",
                "x509: ",
                "its certificate is another one",
            ),
            (Some(502), "x509: certificate has expired or is not yet valid", "x509: ", "renew the certificate"),
            (
                Some(502),
                "dial tcp 10.80.0.21:30000: connect: connection refused",
                "connection refused",
                "check the API server of a,",
            ),
            (None, "nothing within 5 s", "nothing within 5 s", "check the API server of a,"),
        ] {
            let failure = no_answer(&"a".parse().unwrap(), code, why);
            assert!(failure.cause().starts_with("cluster a ") && failure.cause().contains(cause), "{failure}");
            assert!(failure.hint().contains(hint), "{failure}");
        }
    }
}
