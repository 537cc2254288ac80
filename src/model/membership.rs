//! How a cluster was joined: the hub's own record, in annotations of the cluster's Secret. From it a lost route is rebuilt and
//! an interrupted leave is finished.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;

use super::bounds::Bounds;
use super::names::{ApiHost, ClusterName, DnsName, SecretName};
use super::route::{Mode, Serving, Way};

/// Label by which KubeVela and cluster-gateway tell cluster Secrets from others.
pub const CREDENTIAL_TYPE: &str = "cluster.core.oam.dev/cluster-credential-type";
/// What the record's annotations begin with.
const PREFIX: &str = "xregion.oam.dev/";
/// Annotation for the end of the credentials.
pub const EXPIRES: &str = "xregion.oam.dev/expires";
/// Annotation for the time from which the controller renews the token.
pub const RENEWS: &str = "xregion.oam.dev/renews";
/// Annotation for the Secret that the kubeconfig came from.
pub const SOURCE: &str = "xregion.oam.dev/source";
/// Annotation for the networks that connections may come from.
const SOURCE_RANGES: &str = "xregion.oam.dev/source-ranges";
/// Annotation for how many connections its route carries at once in each proxy.
const MAX_CONNECTIONS: &str = "xregion.oam.dev/max-connections";
/// Those of the record that may be missing.
pub const OPTIONAL: [&str; 5] = [EXPIRES, RENEWS, SOURCE, SOURCE_RANGES, MAX_CONNECTIONS];
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
    /// What its route lets in, in the bounds of the region.
    pub bounds: Bounds,
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
    /// From when on the controller renews them: of a token that it may renew.
    pub renews: Option<Timestamp>,
    /// Where its kubeconfig came from, if that stays there.
    pub source: Option<Origin>,
}

/// Where a kubeconfig is: in a Secret of `vela-system`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    /// The Secret.
    pub secret: SecretName,
    /// The key in it.
    pub key: String,
    /// The context in the kubeconfig, if not its current one.
    pub context: Option<String>,
}

/// As it is recorded: `secret/key`, or `secret/key/context`. Neither a Secret's name nor a key can have a slash.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.secret, self.key)?;
        self.context.iter().try_for_each(|context| write!(f, "/{context}"))
    }
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '/');
        let (secret, key) = (parts.next()?.parse().ok()?, parts.next()?.to_owned());
        Some(Self { secret, key, context: parts.next().map(str::to_owned) })
    }
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
        .map(|(key, value)| (format!("{PREFIX}{key}"), value))
        .chain((!self.bounds.sources.is_empty()).then(|| (SOURCE_RANGES.to_owned(), self.bounds.sources.to_string())))
        .chain(self.bounds.connections.map(|most| (MAX_CONNECTIONS.to_owned(), most.to_string())))
        .chain(self.expires.map(|expires| (EXPIRES.to_owned(), expires.to_string())))
        .chain(self.renews.map(|renews| (RENEWS.to_owned(), renews.to_string())))
        .chain(self.source.as_ref().map(|source| (SOURCE.to_owned(), source.to_string())))
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
            bounds: Bounds {
                sources: annotations.get(SOURCE_RANGES).map(|ranges| ranges.parse()).transpose().ok()?.unwrap_or_default(),
                connections: annotations.get(MAX_CONNECTIONS).map(|most| most.parse()).transpose().ok()?,
            },
            alias: get("alias")?.parse().ok()?,
            node_port: get("node-port")?.parse().ok()?,
            mode: get("mode").map_or(Some(Mode::Port), |mode| mode.parse().ok())?,
            identity: get("identity")?.clone(),
            expires: annotations.get(EXPIRES).and_then(|expires| expires.parse().ok()),
            renews: annotations.get(RENEWS).and_then(|renews| renews.parse().ok()),
            source: annotations.get(SOURCE).and_then(|source| Origin::parse(source)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    #[test]
    fn the_record_reads_back() {
        let end = "2026-12-24T09:00:00Z".parse().unwrap();
        let origin = |context: Option<&str>| {
            let context = context.map(str::to_owned);
            Some(Origin { secret: "a.kubeconfig".parse().unwrap(), key: "kube_config.yaml".into(), context })
        };
        let hub = Bounds { sources: "10.80.0.10,2001:db8::/32".parse().unwrap(), ..Bounds::NONE };
        let few = Bounds { connections: NonZeroU16::new(20), ..Bounds::NONE };
        for (upstream, expires, bounds, mode, source) in [
            ("api.example", None, Bounds::NONE, Mode::Sni, None),
            ("api.example", None, hub, Mode::Port, None),
            ("api.example", None, few, Mode::Port, None),
            ("10.0.0.1", Some(end), Bounds::NONE, Mode::Port, origin(None)),
            ("2001:db8::1", None, Bounds::NONE, Mode::Port, origin(Some("arn:aws:eks:x:1:cluster/prod"))),
        ] {
            let membership = Membership {
                region: "proxy-east".parse().unwrap(),
                upstream: upstream.parse().unwrap(),
                upstream_port: 6443,
                bounds: bounds.clone(),
                alias: "api.example".parse().unwrap(),
                node_port: 30001,
                mode,
                identity: "uid".into(),
                expires,
                renews: expires,
                source,
            };
            let mut annotations = membership.to_annotations();
            let optional = OPTIONAL.map(|key| annotations.contains_key(key));
            let (sources, most) = (!bounds.sources.is_empty(), bounds.connections.is_some());
            assert_eq!(optional, [expires.is_some(), expires.is_some(), membership.source.is_some(), sources, most]);
            assert_eq!(Membership::from_annotations(&annotations).as_ref(), Some(&membership));
            let mut older = annotations.clone();
            older.remove("xregion.oam.dev/mode");
            let older = Membership::from_annotations(&older);
            assert_eq!(older, Some(Membership { mode: Mode::Port, ..membership }), "no mode was recorded once");
            for (key, value) in [("source-ranges", "anybody"), ("max-connections", "0"), ("max-connections", "")] {
                let mut bent = annotations.clone();
                bent.insert(format!("xregion.oam.dev/{key}"), value.into());
                assert_eq!(Membership::from_annotations(&bent), None, "what can't be read is not taken for no bound");
            }
            annotations.insert("xregion.oam.dev/schema".into(), "2".into());
            assert_eq!(Membership::from_annotations(&annotations), None);
        }
    }
}
