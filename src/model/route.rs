//! A route: how a region's proxies reach one business cluster. One ConfigMap in the proxy cluster holds one route, as data.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::names::{ApiHost, CLUSTER, ClusterName, DnsName, HUB, HubId, KIND, MANAGER, NAMESPACE, Slot, short_hash};
use super::ports::Ports;
use super::region::Entry;
use super::sources::SourceRanges;

/// The version of the route's data. An agent refuses one it does not know rather than guess.
pub const SCHEMA: &str = "1";
/// Label value (of [`KIND`]) of route ConfigMaps.
pub const KIND_ROUTE: &str = "route";

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
    /// The TCP port a proxy listens on (`targetPort` of the shared Service).
    pub listen: u16,
    /// Where connections to it may come from, in the bounds of its region's; nowhere named: from wherever those allow.
    pub sources: SourceRanges,
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

    /// The name of its port on the shared Service.
    pub fn port_name(&self) -> String {
        self.hub.port_name(&self.cluster, self.slot)
    }

    /// What a proxy's configuration depends on, in 16 hex digits: equal digests need no reload.
    pub fn digest(&self) -> String {
        let sources = if self.sources.is_empty() { String::new() } else { format!("\nfrom {}", self.sources) };
        short_hash(&format!("port\n{}\n{}\n{}{sources}", self.host, self.port, self.listen), 16)
    }

    /// What a proxy reports when it serves just this route: one that was removed and made again, just as it was, is another one, and
    /// a report about the first says nothing about the second.
    pub fn mark(&self) -> String {
        format!("{}@{}", self.digest(), self.uid)
    }

    /// The route as the ConfigMap that is applied to the proxy cluster.
    pub fn to_config_map(&self) -> ConfigMap {
        let mut data = BTreeMap::from([
            ("schema", SCHEMA.to_owned()),
            ("hub", self.hub.uid().to_owned()),
            ("cluster", self.cluster.to_string()),
            ("host", self.host.to_string()),
            ("port", self.port.to_string()),
            ("listen", self.listen.to_string()),
            ("mode", "port".to_owned()),
        ]);
        data.extend((self.slot == Slot::Second).then(|| ("slot", "second".to_owned())));
        data.extend((!self.sources.is_empty()).then(|| ("sourceRanges", self.sources.to_string())));
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
        if get("mode")? != "port" {
            return Err(format!("its mode is {:?}, this version knows \"port\"", get("mode")?));
        }
        let route = Self {
            slot: if data.get("slot").is_some_and(|text| text == "second") { Slot::Second } else { Slot::First },
            hub: HubId::new(get("hub")?),
            cluster: parse("cluster", get("cluster")?)?,
            host: parse("host", get("host")?)?,
            port: port("port", get("port")?)?,
            listen: port("listen", get("listen")?)?,
            sources: data.get("sourceRanges").map(|text| parse("sourceRanges", text)).transpose()?.unwrap_or_default(),
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
    /// Its ports.
    pub ports: Option<Ports>,
}

/// The slot that serves a cluster which the hub reaches at the port `serving` of a region that it enters so, and the slot where the
/// way to an upstream belongs: that one if it leads there already, else the other.
pub fn slots(laid: &[Laid; 2], serving: Option<u16>, upstream: (&ApiHost, u16), entry: Entry) -> (Option<Slot>, Slot) {
    let at = |slot: Slot| &laid[slot as usize];
    let leads = |slot: Slot| at(slot).route.as_ref().is_some_and(|route| (&route.host, route.port) == upstream);
    let serves = |slot: &Slot| serving.is_some() && at(*slot).ports.map(|ports| ports.entered_by(entry)) == serving;
    match Slot::ALL.into_iter().find(serves) {
        // A route that was lost is written anew where its port is.
        Some(slot) if leads(slot) || at(slot).route.is_none() => (Some(slot), slot),
        Some(slot) => (Some(slot), slot.other()),
        None => (None, Slot::ALL.into_iter().find(|slot| leads(*slot)).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route() -> Route {
        Route {
            slot: Slot::First,
            hub: HubId::new("hub-uid"),
            cluster: "business-a".parse().unwrap(),
            host: "api.example".parse().unwrap(),
            port: 443,
            listen: 8000,
            sources: SourceRanges::EVERYBODY,
            alias: None,
            proven_at: None,
            uid: String::new(),
        }
    }

    #[test]
    fn a_route_survives_the_way_through_a_config_map() {
        let proven = Route { alias: Some("api.example".parse().unwrap()), proven_at: Some(Timestamp::UNIX_EPOCH), ..route() };
        let second = Route { slot: Slot::Second, ..route() };
        let narrow = Route { sources: "10.0.0.0/8,192.0.2.1".parse().unwrap(), ..route() };
        for route in [route(), proven, second, narrow] {
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
            assert_eq!(slots(&slots_of, serving, (host, 443), Entry::NodePort), want, "{name}");
        }
        let both = [first, second.clone()];
        assert_eq!(slots(&both, Some(8000), (&api, 443), Entry::HostNetwork), (Some(First), First));
        assert_eq!(slots(&both, Some(30000), (&api, 443), Entry::HostNetwork), (None, First), "joined by another way in");
    }

    #[test]
    fn proving_a_route_needs_no_reload() {
        let proven = Route { proven_at: Some(Timestamp::UNIX_EPOCH), alias: Some("x.example".parse().unwrap()), ..route() };
        assert_eq!(proven.digest(), route().digest());
        assert_ne!(Route { port: 6443, ..route() }.digest(), route().digest());
        assert_ne!(Route { sources: "10.0.0.0/8".parse().unwrap(), ..route() }.digest(), route().digest());
        let again = Route { uid: "2".into(), ..route() };
        assert!(again.digest() == route().digest() && again.mark() != route().mark(), "made again");
    }

    #[test]
    fn an_edited_config_map_is_refused_with_the_value_that_is_wrong() {
        for (key, value, want) in [
            ("schema", "2", "schema"),
            ("mode", "sni", "mode"),
            ("host", "a; } server { listen 1", "\"host\""),
            ("port", "0", "\"port\""),
            ("port", "443;", "\"port\""),
            ("listen", "70000", "\"listen\""),
            ("sourceRanges", "", "\"sourceRanges\""),
            ("sourceRanges", "10.0.0.0/8; allow all", "\"sourceRanges\""),
            ("cluster", "../../etc", "\"cluster\""),
            ("cluster", "business-b", "another cluster"),
            ("hub", "another", "another cluster"),
        ] {
            let mut map = route().to_config_map();
            map.data.as_mut().unwrap().insert(key.into(), value.into());
            let error = Route::from_config_map(&map).unwrap_err();
            assert!(error.contains(want), "{key}={value}: {error}");
        }
        assert_eq!(Route::from_config_map(&ConfigMap::default()), Err("it has no data".into()));
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_holds_no_character_that_means_something_to_nginx(host in ".{0,40}", cluster in ".{0,20}") {
            let mut map = route().to_config_map();
            let data = map.data.as_mut().unwrap();
            data.insert("host".into(), host);
            data.insert("cluster".into(), cluster);
            if let Ok(route) = Route::from_config_map(&map) {
                let text = format!("{}{}", route.host, route.cluster);
                prop_assert!(text.chars().all(|c| c.is_ascii_alphanumeric() || ".-:".contains(c)), "{}", text);
            }
        }
    }
}
