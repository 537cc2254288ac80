//! How a cluster was joined: the hub's own record, in annotations of the cluster's Secret. From it a lost route is rebuilt and
//! an interrupted leave is finished.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::names::{ApiHost, ClusterName, DnsName};
use super::route::{Mode, Serving, Way};
use super::sources::SourceRanges;

/// Label by which KubeVela and cluster-gateway tell cluster Secrets from others.
pub const CREDENTIAL_TYPE: &str = "cluster.core.oam.dev/cluster-credential-type";
/// What the record's annotations begin with.
const PREFIX: &str = "xregion.oam.dev/";
/// Annotations of the record that may be missing: the end of the credentials, and where connections may come from.
pub const OPTIONAL: [&str; 2] = ["xregion.oam.dev/expires", "xregion.oam.dev/source-ranges"];
/// The version of the record.
const SCHEMA: &str = "1";

/// A cluster's way and identity.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Membership {
    /// The region (the proxy cluster's name).
    pub region: ClusterName,
    /// The API server as the region sees it.
    pub upstream: ApiHost,
    /// Its port.
    pub upstream_port: u16,
    /// Where connections to its route may come from.
    pub sources: SourceRanges,
    /// The host name that leads to the region's nodes on the hub.
    pub alias: DnsName,
    /// The node port there.
    pub node_port: u16,
    /// By what the region tells its connections from those to others: where by name, its alias is that.
    pub mode: Mode,
    /// UID of the cluster's namespace `kube-system`.
    pub identity: String,
    /// When the credentials that the hub has for it end, where that can be told.
    pub expires: Option<Timestamp>,
}

/// The server by which the hub reaches a cluster: its alias at its node port.
pub fn endpoint(alias: &DnsName, node_port: u16) -> String {
    format!("https://{alias}:{node_port}")
}

impl Membership {
    /// The server that the hub connects to.
    pub fn endpoint(&self) -> String {
        endpoint(&self.alias, self.node_port)
    }

    /// By what the hub reaches it.
    pub fn serving(&self) -> Serving<'_> {
        Serving { host: self.alias.as_str(), node_port: self.node_port }
    }

    /// The way that its region has to have for it.
    pub fn way(&self) -> Way<'_> {
        Way { host: &self.upstream, port: self.upstream_port, server_name: self.server_name() }
    }

    /// The TLS name that tells its connections from others'; none: it has a node port for itself.
    pub fn server_name(&self) -> Option<&DnsName> {
        (self.mode == Mode::Sni).then_some(&self.alias)
    }

    /// The annotations.
    pub fn to_annotations(&self) -> BTreeMap<String, String> {
        [
            ("schema", SCHEMA.to_owned()),
            ("region", self.region.to_string()),
            ("upstream", super::kubeconfig::authority_part(&self.upstream.to_string(), self.upstream_port)),
            ("alias", self.alias.to_string()),
            ("node-port", self.node_port.to_string()),
            ("mode", self.mode.to_string()),
            ("identity", self.identity.clone()),
        ]
        .into_iter()
        .chain(self.expires.map(|expires| ("expires", expires.to_string())))
        .chain((!self.sources.is_empty()).then(|| ("source-ranges", self.sources.to_string())))
        .map(|(key, value)| (format!("{PREFIX}{key}"), value))
        .collect()
    }

    /// Reads the annotations; none where the cluster was not joined by a version that writes this schema.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let get = |key: &str| annotations.get(&format!("{PREFIX}{key}"));
        if get("schema")? != SCHEMA {
            return None;
        }
        let (host, port) = get("upstream")?.rsplit_once(':')?;
        Some(Self {
            region: get("region")?.parse().ok()?,
            upstream: host.parse().ok()?,
            upstream_port: port.parse().ok()?,
            sources: get("source-ranges").map(|ranges| ranges.parse()).transpose().ok()?.unwrap_or_default(),
            alias: get("alias")?.parse().ok()?,
            node_port: get("node-port")?.parse().ok()?,
            mode: get("mode").map_or(Some(Mode::Port), |mode| mode.parse().ok())?,
            identity: get("identity")?.clone(),
            expires: get("expires").and_then(|expires| expires.parse().ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_reads_back() {
        let end = "2026-12-24T09:00:00Z".parse().unwrap();
        let hub: SourceRanges = "10.80.0.10,2001:db8::/32".parse().unwrap();
        for (upstream, expires, sources, mode) in [
            ("api.example", None, SourceRanges::EVERYBODY, Mode::Sni),
            ("api.example", None, hub, Mode::Port),
            ("10.0.0.1", Some(end), SourceRanges::EVERYBODY, Mode::Port),
            ("2001:db8::1", None, SourceRanges::EVERYBODY, Mode::Port),
        ] {
            let membership = Membership {
                region: "proxy-east".parse().unwrap(),
                upstream: upstream.parse().unwrap(),
                upstream_port: 6443,
                sources: sources.clone(),
                alias: "api.example".parse().unwrap(),
                node_port: 30001,
                mode,
                identity: "uid".into(),
                expires,
            };
            let mut annotations = membership.to_annotations();
            let there = OPTIONAL.map(|key| annotations.contains_key(key));
            assert_eq!(there, [expires.is_some(), !sources.is_empty()]);
            assert_eq!(Membership::from_annotations(&annotations).as_ref(), Some(&membership));
            let mut older = annotations.clone();
            older.remove("xregion.oam.dev/mode");
            let older = Membership::from_annotations(&older);
            assert_eq!(older, Some(Membership { mode: Mode::Port, ..membership }), "no mode was recorded once");
            annotations.insert("xregion.oam.dev/source-ranges".into(), "anybody".into());
            assert_eq!(Membership::from_annotations(&annotations), None, "what can't be read is not taken for everybody");
            annotations.insert("xregion.oam.dev/source-ranges".into(), "0.0.0.0/0".into());
            annotations.insert("xregion.oam.dev/schema".into(), "2".into());
            assert_eq!(Membership::from_annotations(&annotations), None);
        }
    }
}
