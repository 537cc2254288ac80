//! A route: how a region's proxies reach one business cluster. One ConfigMap in the proxy cluster holds one route, as data.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;

use super::bounds::Bounds;
use super::names::{ApiHost, CLUSTER, ClusterName, DnsName, HUB, HubId, KIND, MANAGER, NAMESPACE, Slot, short_hash};
use super::ports::Ports;
use super::region::{Entry, SNI_LISTEN, SNI_PORT};
use crate::error::{Failure, Kind, Result};

/// The version of the route's data. An agent refuses one it does not know rather than guess.
pub const SCHEMA: &str = "1";
/// Label value (of [`KIND`]) of route ConfigMaps.
pub const KIND_ROUTE: &str = "route";

/// By what a region tells connections to one cluster from those to others.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By the port: the cluster has a listen port and a node port for itself.
    #[default]
    Port,
    /// By the TLS name they ask for (server name indication), on the region's own port.
    Sni,
}

impl Mode {
    /// As parameters, records and routes spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Sni => "sni",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Mode {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Port, Self::Sni];
        all.into_iter().find(|mode| mode.as_str() == text).ok_or_else(|| {
            Failure::new(
                Kind::Usage,
                format!("{text:?} is no mode"),
                "use port (a node port for the cluster) or sni (the region's own)",
            )
        })
    }
}

/// The name by which a cluster's connections are told from others', in a mode; none where it has a port for itself. `presented` is the name
/// that clients check its certificate for.
///
/// # Errors
/// Clients ask an address for no name; or a node port or bounds are asked for, too.
pub fn server_name(mode: Mode, presented: ApiHost, node_port: Option<u16>, bounds: &Bounds) -> Result<Option<DnsName>> {
    let Bounds { sources, connections } = bounds;
    match (mode, presented, node_port, connections) {
        (Mode::Port, ..) => Ok(None),
        (Mode::Sni, ..) if !sources.is_empty() => Err(Failure::new(
            Kind::Usage,
            format!("source ranges ({sources}) are asked for together with mode sni, in which the name is known too late for them"),
            "leave out sourceRanges, or use mode port; sourceRanges at the region's xregion-proxy apply to all clusters of the region",
        )),
        (Mode::Sni, _, _, Some(most)) => Err(Failure::new(
            Kind::Usage,
            format!(
                "a limit of {most} connections is asked for together with mode sni, in which the name is known too late to count them"
            ),
            "leave out maxConnections, or use mode port",
        )),
        (Mode::Sni, _, Some(port), _) => Err(Failure::new(
            Kind::Usage,
            format!("node port {port} is asked for together with mode sni, in which clusters share the region's own"),
            "leave out nodePort, or use mode port; nodePorts.sni at the region's xregion-proxy chooses the one they share",
        )),
        (Mode::Sni, ApiHost::Dns(name), None, None) => Ok(Some(name)),
        (Mode::Sni, ApiHost::Ip(ip), None, None) => Err(Failure::new(
            Kind::NoUsableName,
            format!("the server of the kubeconfig is the address {ip}, and mode sni tells clusters apart by name"),
            "set tls-server-name in the kubeconfig to a DNS name of the API server's certificate, or use mode port",
        )),
    }
}

/// One business cluster's way through a region.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// Which of the cluster's two places it has.
    pub slot: Slot,
    /// The hub that made it.
    pub hub: HubId,
    /// The cluster's name on that hub.
    pub cluster: ClusterName,
    /// The upstream: where the cluster's API server is, as seen from the region.
    pub host: ApiHost,
    /// The upstream's TCP port.
    pub port: u16,
    /// The TCP port a proxy listens on (`targetPort` of the shared Service): the route's own, or [`SNI_LISTEN`].
    pub listen: u16,
    /// What it lets in, in the bounds of its region.
    pub bounds: Bounds,
    /// The TLS name that tells its connections from others'; none: they come in by a port of its own.
    pub server_name: Option<DnsName>,
    /// The name that leads to the region's nodes on the hub, once it is known.
    pub alias: Option<DnsName>,
    /// When a join last reached the cluster over this route.
    pub proven_at: Option<Timestamp>,
    /// The UID of its ConfigMap; empty before it is written.
    pub uid: String,
}

impl Route {
    /// The ConfigMap's name.
    pub fn name(&self) -> String {
        self.hub.route_name(&self.cluster, self.slot)
    }

    /// By what its connections are told from others'.
    pub const fn mode(&self) -> Mode {
        if self.server_name.is_some() { Mode::Sni } else { Mode::Port }
    }

    /// Where it leads.
    pub const fn way(&self) -> Way<'_> {
        Way { host: &self.host, port: self.port, server_name: self.server_name.as_ref() }
    }

    /// The name of its port on the shared Service: its own, or the region's.
    pub fn port_name(&self) -> String {
        match self.mode() {
            Mode::Port => self.hub.port_name(&self.cluster, self.slot),
            Mode::Sni => SNI_PORT.to_owned(),
        }
    }

    /// What a proxy's configuration depends on, in 16 hex digits: equal digests need no reload.
    pub fn digest(&self) -> String {
        let Bounds { sources, connections } = &self.bounds;
        let sources = if sources.is_empty() { String::new() } else { format!("\nfrom {sources}") };
        let most = connections.map(|most| format!("\nat most {most}")).unwrap_or_default();
        let (mode, Self { host, port, listen, .. }) = (self.mode(), self);
        let told_by = self.server_name.as_ref().map_or_else(|| listen.to_string(), ToString::to_string);
        short_hash(&format!("{mode}\n{host}\n{port}\n{told_by}{sources}{most}"), 16)
    }

    /// What a proxy reports when it serves just this route: one that was removed and made again, just as it was, is another one, and
    /// a report about the first says nothing about the second.
    pub fn mark(&self) -> String {
        format!("{}@{}", self.digest(), self.uid)
    }

    /// Whether it says just what another says, be that in the same ConfigMap or in one made anew.
    pub fn says(&self, other: &Self) -> bool {
        Self { uid: other.uid.clone(), ..self.clone() } == *other
    }

    /// The route as the ConfigMap that is applied to the proxy cluster.
    pub fn to_config_map(&self) -> ConfigMap {
        let mut data = BTreeMap::from([
            ("schema", SCHEMA.to_owned()),
            ("hub", self.hub.uid().to_owned()),
            ("cluster", self.cluster.to_string()),
            ("host", self.host.to_string()),
            ("port", self.port.to_string()),
            ("mode", self.mode().to_string()),
        ]);
        data.extend([match &self.server_name {
            Some(name) => ("serverName", name.to_string()),
            None => ("listen", self.listen.to_string()),
        }]);
        data.extend((self.slot == Slot::Second).then(|| ("slot", "second".to_owned())));
        let Bounds { sources, connections } = &self.bounds;
        data.extend((!sources.is_empty()).then(|| ("sourceRanges", sources.to_string())));
        data.extend(connections.map(|most| ("maxConnections", most.to_string())));
        data.extend(self.alias.as_ref().map(|alias| ("alias", alias.to_string())));
        data.extend(self.proven_at.map(|at| ("provenAt", at.to_string())));
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(self.name()),
                namespace: Some(NAMESPACE.to_owned()),
                labels: Some(
                    [
                        ("app.kubernetes.io/managed-by", MANAGER.to_owned()),
                        (KIND, KIND_ROUTE.to_owned()),
                        (HUB, self.hub.short()),
                        (CLUSTER, self.cluster.to_string()),
                    ]
                    .map(|(key, value)| (key.to_owned(), value))
                    .into(),
                ),
                ..ObjectMeta::default()
            },
            data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ..ConfigMap::default()
        }
    }

    /// Reads a route back. The error says which value is wrong: anybody may have edited the ConfigMap.
    pub fn from_config_map(map: &ConfigMap) -> Result<Self, String> {
        let data = map.data.as_ref().ok_or("it has no data")?;
        let get = |key: &str| data.get(key).map(String::as_str).ok_or_else(|| format!("{key:?} is missing"));
        fn parse<T: std::str::FromStr>(key: &str, text: &str) -> Result<T, String> {
            text.parse().map_err(|_| format!("{key:?} has the value {text:?}"))
        }
        fn port(key: &str, text: &str) -> Result<u16, String> {
            parse(key, text).and_then(|port| if port == 0 { Err(format!("{key:?} is 0")) } else { Ok(port) })
        }
        if get("schema")? != SCHEMA {
            return Err(format!("its schema is {:?}, this version knows {SCHEMA:?}", get("schema")?));
        }
        let mode: Mode =
            get("mode")?.parse().map_err(|_| format!("its mode is {:?}, this version knows \"port\" and \"sni\"", data["mode"]))?;
        let (listen, server_name) = match mode {
            Mode::Port => (port("listen", get("listen")?)?, None),
            Mode::Sni => (SNI_LISTEN, Some(parse("serverName", get("serverName")?)?)),
        };
        let route = Self {
            slot: if data.get("slot").is_some_and(|text| text == "second") { Slot::Second } else { Slot::First },
            hub: HubId::new(get("hub")?),
            cluster: parse("cluster", get("cluster")?)?,
            host: parse("host", get("host")?)?,
            port: port("port", get("port")?)?,
            listen,
            bounds: Bounds {
                sources: data.get("sourceRanges").map(|text| parse("sourceRanges", text)).transpose()?.unwrap_or_default(),
                connections: data.get("maxConnections").map(|text| parse("maxConnections", text)).transpose()?,
            },
            server_name,
            alias: data.get("alias").map(|text| parse("alias", text)).transpose()?,
            proven_at: data.get("provenAt").map(|text| parse("provenAt", text)).transpose()?,
            uid: map.metadata.uid.clone().unwrap_or_default(),
        };
        if map.metadata.name.as_deref() != Some(&route.name()) {
            return Err(format!("its name belongs to another cluster than {:?} of that hub", route.cluster.as_str()));
        }
        Ok(route)
    }
}

/// What a region has of a cluster in one slot.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Laid {
    /// The route, if it can be read.
    pub route: Option<Route>,
    /// The ports of its own.
    pub ports: Option<Ports>,
}

/// Where a way leads, and by what name if it has no port of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Way<'a> {
    /// The upstream.
    pub host: &'a ApiHost,
    /// Its TCP port.
    pub port: u16,
    /// The TLS name.
    pub server_name: Option<&'a DnsName>,
}

/// By what a hub reaches a cluster: the parts of its endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Serving<'a> {
    /// The host, which is also the TLS name that is asked for.
    pub host: &'a str,
    /// The port that the hub connects to.
    pub node_port: u16,
}

impl<'a> Serving<'a> {
    /// Of an endpoint such as `https://api.example:30000`.
    pub fn of(endpoint: &'a str) -> Option<Self> {
        let (host, port) = endpoint.strip_prefix("https://")?.rsplit_once(':')?;
        Some(Self { host, node_port: port.parse().ok()? })
    }
}

/// The slot that serves a cluster which the hub reaches by `serving` in a region that it enters so, and the slot where a way belongs: that
/// one if it leads there already, else the other. `own` is the region's own port, by which the routes by name are reached.
pub fn slots(
    laid: &[Laid; 2],
    own: Option<Ports>,
    serving: Option<Serving<'_>>,
    way: Way<'_>,
    entry: Entry,
) -> (Option<Slot>, Slot) {
    let at = |slot: Slot| &laid[slot as usize];
    let leads = |slot: Slot| at(slot).route.as_ref().is_some_and(|route| route.way() == way);
    let serves = |slot: &Slot| {
        let Laid { route, ports } = at(*slot);
        let is_entered =
            |ports: &Option<Ports>| ports.map(|ports| ports.entered_by(entry)) == serving.map(|serving| serving.node_port);
        let name = route.as_ref().and_then(|route| route.server_name.as_ref()).map(DnsName::as_str);
        let is_named = name.is_some() && name == serving.map(|serving| serving.host);
        serving.is_some() && (is_entered(ports) || (is_named && is_entered(&own)))
    };
    match Slot::ALL.into_iter().find(serves) {
        // A route that was lost is written anew where its port is.
        Some(slot) if leads(slot) || (at(slot).route.is_none() && way.server_name.is_none()) => (Some(slot), slot),
        Some(slot) => (Some(slot), slot.other()),
        None => (None, Slot::ALL.into_iter().find(|slot| leads(*slot)).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::num::NonZeroU16;

    use proptest::prelude::*;

    use super::*;
    use crate::model::observed::sample;

    /// Not proven yet.
    fn route() -> Route {
        let proven = sample::route("business-a", Slot::First, "api.example", 8000);
        Route { alias: None, proven_at: None, uid: String::new(), ..proven }
    }

    fn narrow() -> Bounds {
        Bounds { sources: "10.0.0.0/8,192.0.2.1".parse().unwrap(), ..Bounds::NONE }
    }

    fn limited(most: u16) -> Bounds {
        Bounds { connections: NonZeroU16::new(most), ..Bounds::NONE }
    }

    fn by_name(name: &str) -> Route {
        Route { listen: SNI_LISTEN, server_name: Some(name.parse().unwrap()), ..route() }
    }

    #[test]
    fn a_route_survives_the_way_through_a_config_map() {
        let proven = Route { alias: Some("api.example".parse().unwrap()), proven_at: Some(Timestamp::UNIX_EPOCH), ..route() };
        let second = Route { slot: Slot::Second, ..route() };
        let narrow = Route { bounds: narrow(), ..route() };
        let limited = Route { bounds: limited(20), ..route() };
        assert_eq!(limited.to_config_map().data.unwrap()["maxConnections"], "20");
        assert_eq!(route().to_config_map().data.unwrap().get("maxConnections"), None);
        let named = by_name("api.example").to_config_map().data.unwrap();
        assert_eq!((named["mode"].as_str(), named["serverName"].as_str(), named.get("listen")), ("sni", "api.example", None));
        for route in [route(), proven, second, by_name("api.example"), narrow, limited] {
            assert_eq!(Route::from_config_map(&route.to_config_map()), Ok(route));
        }
    }

    #[test]
    fn a_changed_upstream_gets_the_other_slot() {
        let laid = |host: &str, node: u16| Laid {
            route: Some(Route { host: host.parse().unwrap(), ..route() }),
            ports: Some(Ports { listen: 8000, node }),
        };
        let (api, new) = ("api.example".parse().unwrap(), "new.example".parse().unwrap());
        let (first, second, none) = (laid("api.example", 30000), laid("new.example", 30001), Laid::default());
        let lost = Laid { route: None, ..first.clone() };
        use Slot::{First, Second};
        for (name, slots_of, serving, host, want) in [
            ("nothing there", [none.clone(), none.clone()], None, &api, (None, First)),
            ("serves it", [first.clone(), none.clone()], Some(30000), &api, (Some(First), First)),
            ("serves another", [first.clone(), none.clone()], Some(30000), &new, (Some(First), Second)),
            ("interrupted", [first.clone(), second.clone()], Some(30000), &new, (Some(First), Second)),
            ("taken over", [first.clone(), second.clone()], Some(30001), &new, (Some(Second), Second)),
            ("back again", [none.clone(), second.clone()], Some(30001), &api, (Some(Second), First)),
            ("never joined", [first.clone(), second.clone()], None, &new, (None, Second)),
            ("another region serves", [first.clone(), none.clone()], Some(31000), &api, (None, First)),
            ("lost", [lost, none.clone()], Some(30000), &api, (Some(First), First)),
        ] {
            let serving = serving.map(|node_port| Serving { host: "whatever.example", node_port });
            let way = Way { host, port: 443, server_name: None };
            assert_eq!(slots(&slots_of, None, serving, way, Entry::NodePort), want, "{name}");
        }
        let both = [first, second.clone()];
        let way = Way { host: &api, port: 443, server_name: None };
        let slots = |node_port| slots(&both, None, Some(Serving { host: "whatever.example", node_port }), way, Entry::HostNetwork);
        assert_eq!(slots(8000), (Some(First), First));
        assert_eq!(slots(30000), (None, First), "joined by another way in");
    }

    #[test]
    fn of_clusters_that_share_a_port_each_is_served_by_the_route_of_its_name() {
        let own = Some(Ports { listen: SNI_LISTEN, node: 30085 });
        let at = |host, node_port| Some(Serving { host, node_port });
        let named = |name: &str| Laid { route: Some(by_name(name)), ports: None };
        let ported = || Laid { route: Some(route()), ports: Some(Ports { listen: 8000, node: 30000 }) };
        let (none, lost) = (Laid::default(), Laid { route: None, ..ported() });
        // It has a port on the Service, and somebody has written a name into its route.
        let bent = || Laid { route: Some(by_name("api.example")), ..ported() };
        use Slot::{First, Second};
        for (what, laid, serving, name, want) in [
            ("nothing there", [none.clone(), none.clone()], None, Some("api.example"), (None, First)),
            ("joined", [named("api.example"), none.clone()], at("api.example", 30085), Some("api.example"), (Some(First), First)),
            (
                "by another name",
                [named("a.example"), none.clone()],
                at("a.example", 30085),
                Some("b.example"),
                (Some(First), Second),
            ),
            (
                "another cluster's name",
                [named("a.example"), none.clone()],
                at("b.example", 30085),
                Some("b.example"),
                (None, First),
            ),
            ("from port to name", [ported(), none.clone()], at("api.example", 30000), Some("api.example"), (Some(First), Second)),
            ("taken over", [ported(), named("api.example")], at("api.example", 30085), Some("api.example"), (Some(Second), Second)),
            ("not yet", [ported(), named("api.example")], at("api.example", 30000), Some("api.example"), (Some(First), Second)),
            ("and back", [none.clone(), named("api.example")], at("api.example", 30085), None, (Some(Second), First)),
            ("lost by port", [lost.clone(), none.clone()], at("api.example", 30000), Some("api.example"), (Some(First), Second)),
            ("lost by name", [none.clone(), none.clone()], at("api.example", 30085), Some("api.example"), (None, First)),
            ("bent", [bent(), none.clone()], at("api.example", 30000), None, (Some(First), Second)),
        ] {
            let (host, name) = ("api.example".parse().unwrap(), name.map(|name| name.parse().unwrap()));
            let way = Way { host: &host, port: 443, server_name: name.as_ref() };
            assert_eq!(slots(&laid, own, serving, way, Entry::NodePort), want, "{what}");
        }
        let (host, name) = ("api.example".parse().unwrap(), "api.example".parse().unwrap());
        let way = Way { host: &host, port: 443, server_name: Some(&name) };
        let laid = [named("api.example"), none.clone()];
        let slots = |node_port| slots(&laid, own, at("api.example", node_port), way, Entry::LoadBalancer);
        assert_eq!(slots(SNI_LISTEN), (Some(First), First));
        assert_eq!(slots(30085), (None, First), "joined by another way in");
    }

    #[test]
    fn endpoints() {
        assert_eq!(Serving::of("https://api.example:30000"), Some(Serving { host: "api.example", node_port: 30000 }));
        for other in ["https://api.example", "http://api.example:30000", "https://api.example:x", ""] {
            assert_eq!(Serving::of(other), None, "{other}");
        }
    }

    #[test]
    fn clusters_are_told_apart_by_the_name_that_clients_ask_for() {
        let of =
            |mode, host: &str, port| server_name(mode, host.parse().unwrap(), port, &Bounds::NONE).map_err(|failure| failure.kind);
        for (bounds, want) in [(narrow(), "leave out sourceRanges"), (limited(20), "leave out maxConnections")] {
            let failure = server_name(Mode::Sni, "api.example".parse().unwrap(), None, &bounds).unwrap_err();
            assert!(failure.kind == Kind::Usage && failure.hint().starts_with(want), "{failure}");
            assert!(server_name(Mode::Port, "api.example".parse().unwrap(), None, &bounds).unwrap().is_none());
        }
        assert_eq!(of(Mode::Port, "10.0.0.1", Some(30000)), Ok(None));
        assert_eq!(of(Mode::Sni, "api.example", None), Ok(Some("api.example".parse().unwrap())));
        assert_eq!(of(Mode::Sni, "10.0.0.1", None), Err(Kind::NoUsableName));
        assert_eq!(of(Mode::Sni, "api.example", Some(30000)), Err(Kind::Usage));
        for mode in [Mode::Port, Mode::Sni] {
            assert_eq!(mode.to_string().parse::<Mode>().unwrap(), mode);
        }
        assert!("SNI".parse::<Mode>().is_err());
    }

    #[test]
    fn proving_a_route_needs_no_reload() {
        let proven = Route { proven_at: Some(Timestamp::UNIX_EPOCH), alias: Some("x.example".parse().unwrap()), ..route() };
        assert_eq!(proven.digest(), route().digest());
        assert_ne!(Route { port: 6443, ..route() }.digest(), route().digest());
        let digests =
            [Bounds::NONE, narrow(), limited(20), limited(21), Bounds { connections: limited(20).connections, ..narrow() }]
                .map(|bounds| Route { bounds, ..route() }.digest());
        assert_eq!(BTreeSet::from(digests.clone()).len(), 5, "{digests:?}");
        let named = [by_name("a.example"), by_name("b.example"), route()].map(|route| route.digest());
        assert!(named[0] != named[1] && named[1] != named[2], "{named:?}");
        let again = Route { uid: "2".into(), ..route() };
        assert!(again.digest() == route().digest() && again.mark() != route().mark(), "made again");
    }

    #[test]
    fn an_edited_config_map_is_refused_with_the_value_that_is_wrong() {
        for (key, value, want) in [
            ("schema", "2", "schema"),
            ("mode", "http", "mode"),
            ("mode", "sni", "\"serverName\" is missing"),
            ("host", "a; } server { listen 1", "\"host\""),
            ("port", "0", "\"port\""),
            ("port", "443;", "\"port\""),
            ("listen", "70000", "\"listen\""),
            ("sourceRanges", "", "\"sourceRanges\""),
            ("sourceRanges", "10.0.0.0/8; allow all", "\"sourceRanges\""),
            ("maxConnections", "0", "\"maxConnections\""),
            ("maxConnections", "-1", "\"maxConnections\""),
            ("maxConnections", "65536", "\"maxConnections\""),
            ("maxConnections", "20; allow all", "\"maxConnections\""),
            ("cluster", "../../etc", "\"cluster\""),
            ("cluster", "business-b", "another cluster"),
            ("hub", "another", "another cluster"),
        ] {
            let mut map = route().to_config_map();
            map.data.as_mut().unwrap().insert(key.into(), value.into());
            let error = Route::from_config_map(&map).unwrap_err();
            assert!(error.contains(want), "{key}={value}: {error}");
        }
        for name in ["", "*.example", "~^.*$", ".example", "10.0.0.1", "a\"; }", "\\default"] {
            let mut map = by_name("api.example").to_config_map();
            map.data.as_mut().unwrap().insert("serverName".into(), name.into());
            assert!(Route::from_config_map(&map).unwrap_err().contains("\"serverName\""), "{name:?}");
        }
        assert_eq!(Route::from_config_map(&ConfigMap::default()), Err("it has no data".into()));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_holds_no_character_that_means_something_to_nginx(host in ".{0,40}", cluster in ".{0,20}", name in ".{0,40}") {
            let mut map = route().to_config_map();
            let data = map.data.as_mut().unwrap();
            data.insert("host".into(), host);
            data.extend([("mode".into(), "sni".into()), ("serverName".into(), name)]);
            data.insert("cluster".into(), cluster);
            if let Ok(route) = Route::from_config_map(&map) {
                let name = route.server_name.map(|name| name.to_string()).unwrap_or_default();
                let text = format!("{}{}{name}", route.host, route.cluster);
                prop_assert!(text.chars().all(|c| c.is_ascii_alphanumeric() || ".-:".contains(c)), "{}", text);
            }
        }
    }
}
