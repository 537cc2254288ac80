//! The ConfigMaps of a region, as the watch tells of them.

use std::collections::BTreeMap;

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, ResourceExt as _};

use crate::model::names::KIND;
use crate::model::region::{CONFIG_MAP, KEY, KIND_REGION, Region};
use crate::model::route::KIND_ROUTE;

/// Routes and settings as they are in the cluster.
#[derive(Debug, Default)]
pub(super) struct Watched {
    routes: BTreeMap<String, ConfigMap>,
    region: Option<Region>,
    listed: bool,
    listing: BTreeMap<String, ConfigMap>,
}

/// Follows the ConfigMaps of routes and settings in a namespace, for ever.
pub(super) fn config_maps(client: Client, namespace: &str) -> impl Stream<Item = Event<ConfigMap>> + use<> {
    // A connection that died without a word is noticed when a watch outlives its time, so the time is short.
    let config = watcher::Config::default().labels(&format!("{KIND} in ({KIND_ROUTE},{KIND_REGION})")).timeout(60);
    watch(Api::namespaced(client, namespace), config).default_backoff().filter_map(async |event| {
        event.inspect_err(|error| tracing::warn!(%error, "watching ConfigMaps failed; serving what is known and trying again")).ok()
    })
}

impl Watched {
    /// The routes and the settings, once both are known.
    pub fn known(&self) -> Option<(&BTreeMap<String, ConfigMap>, &Region)> {
        self.region.as_ref().filter(|_| self.listed).map(|region| (&self.routes, region))
    }

    /// Takes an event, and says whether it may have changed anything.
    pub fn take(&mut self, event: Event<ConfigMap>) -> bool {
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(map) => {
                let route = self.take_up(map);
                self.listing.extend(route);
            }
            Event::InitDone => {
                self.listed = true;
                self.routes = std::mem::take(&mut self.listing);
                return true;
            }
            Event::Apply(map) => {
                let route = self.take_up(map);
                self.routes.extend(route);
                return true;
            }
            Event::Delete(map) => return self.routes.remove(&map.name_any()).is_some(),
        }
        false
    }

    /// Takes settings in, and hands a route back. Settings that can't be read or are gone leave the last ones in use.
    fn take_up(&mut self, mut map: ConfigMap) -> Option<(String, ConfigMap)> {
        let name = map.name_any();
        if map.labels().get(KIND).is_some_and(|kind| kind == KIND_ROUTE) {
            map.metadata.managed_fields = None;
            return Some((name, map));
        }
        if name == CONFIG_MAP {
            let json = map.data.as_ref().and_then(|data| data.get(KEY)).ok_or_else(|| format!("{KEY:?} is missing"));
            match json.and_then(|json| Region::parse(json)) {
                Ok(region) => self.region = Some(region),
                Err(error) => tracing::error!(name, error, "the region's settings can't be read; keeping the last ones"),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(name: &str, kind: &str, data: &[(&str, &str)]) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.into());
        map.metadata.labels = Some([(KIND.to_owned(), kind.to_owned())].into());
        map.data = Some(data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect());
        map
    }

    fn settings(drain: u32) -> ConfigMap {
        let json = format!(
            r#"{{"nodes":{{"addressType":"InternalIP"}},"nodePorts":{{"first":1,"last":2}},"upstreams":{{}},
                "timeouts":{{"connectSeconds":3,"idleSeconds":4,"drainSeconds":{drain}}}}}"#
        );
        map(CONFIG_MAP, KIND_REGION, &[(KEY, &json)])
    }

    fn drain(watched: &Watched) -> Option<u32> {
        watched.known().map(|(_, region)| region.timeouts.drain_seconds)
    }

    fn routes(watched: &Watched) -> Vec<&str> {
        watched.known().unwrap().0.keys().map(String::as_str).collect()
    }

    #[test]
    fn nothing_is_known_before_the_list_is_whole_and_the_settings_are_there() {
        let mut watched = Watched::default();
        for event in [Event::Init, Event::InitApply(map("a", KIND_ROUTE, &[])), Event::InitDone] {
            assert!(watched.known().is_none());
            watched.take(event);
        }
        assert!(watched.known().is_none(), "no settings yet");
        assert!(watched.take(Event::Apply(settings(9))));
        assert_eq!((drain(&watched), routes(&watched)), (Some(9), vec!["a"]));
    }

    #[test]
    fn a_new_list_replaces_the_old_one_at_once_and_the_last_good_settings_stay() {
        let mut watched = Watched::default();
        for event in [Event::Init, Event::InitApply(settings(9)), Event::InitApply(map("a", KIND_ROUTE, &[])), Event::InitDone] {
            watched.take(event);
        }
        assert!(!watched.take(Event::Init) && !watched.take(Event::InitApply(map("b", KIND_ROUTE, &[]))));
        assert_eq!(routes(&watched), ["a"]);
        assert!(watched.take(Event::InitDone));
        assert_eq!((routes(&watched), drain(&watched)), (vec!["b"], Some(9)));

        watched.take(Event::Apply(map(CONFIG_MAP, KIND_REGION, &[(KEY, "{")])));
        watched.take(Event::Delete(settings(9)));
        assert_eq!(drain(&watched), Some(9));
        assert!(watched.take(Event::Delete(map("b", KIND_ROUTE, &[]))));
        assert!(routes(&watched).is_empty());
    }
}
