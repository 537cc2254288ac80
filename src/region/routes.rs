//! Route ConfigMaps in the proxy cluster.

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};

use super::{Region, answer, call, explain};
use crate::error::Result;
use crate::hub::gone_is_fine;
use crate::model::drift::last_writer;
use crate::model::names::{HUB, HubId, KIND, MANAGER, NAMESPACE};
use crate::model::route::{KIND_ROUTE, Mode, Route};

impl Region {
    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// The route of that name, if there is one and it can be read: one that was edited into nonsense counts as none.
    pub async fn route(&self, name: &str) -> Result<Option<Route>> {
        let found = call(&self.name, &format!("read route {name}"), self.maps().get_opt(name)).await?;
        Ok(found.and_then(|map| {
            Route::from_config_map(&map)
                .inspect_err(|why| tracing::warn!(route = %name, %why, "the route can't be read and is written anew"))
                .ok()
        }))
    }

    /// Who last wrote the ConfigMap of a route, but for xregion, if it is there.
    pub async fn route_writer(&self, name: &str) -> Result<Option<String>> {
        let found = call(&self.name, &format!("read route {name}"), self.maps().get_opt(name)).await?;
        Ok(last_writer(&found.and_then(|map| map.metadata.managed_fields).unwrap_or_default()))
    }

    /// The routes of one hub.
    pub async fn routes(&self, hub: &HubId) -> Result<Vec<Route>> {
        let params = ListParams::default().labels(&format!("{KIND}={KIND_ROUTE},{HUB}={}", hub.short()));
        let list = call(&self.name, "list the routes", self.maps().list(&params)).await?;
        Ok(list.items.iter().filter_map(|map| Route::from_config_map(map).ok()).filter(|route| route.hub == *hub).collect())
    }

    /// Whether the region has routes by name, of any hub, but for one: what can't be read any more counts, too.
    pub(super) async fn has_routes_by_name(&self, but: Option<&str>) -> Result<bool> {
        let params = ListParams::default().labels(&format!("{KIND}={KIND_ROUTE}"));
        let list = call(&self.name, "list the routes", self.maps().list(&params)).await?;
        let is_by_name =
            |map: &ConfigMap| map.data.as_ref().and_then(|data| data.get("mode")).is_some_and(|mode| mode == Mode::Sni.as_str());
        let is_meant = |map: &&ConfigMap| but.is_none_or(|but| map.metadata.name.as_deref() != Some(but));
        Ok(list.items.iter().filter(is_meant).any(is_by_name))
    }

    /// Writes a route. Returns its UID.
    pub async fn put_route(&self, route: &Route) -> Result<String> {
        let name = route.name();
        let params = PatchParams { dry_run: self.dry_run, ..PatchParams::apply(MANAGER).force() };
        let (maps, map) = (self.maps(), Patch::Apply(route.to_config_map()));
        Ok(call(&self.name, &format!("write route {name}"), maps.patch(&name, &params, &map))
            .await?
            .metadata
            .uid
            .unwrap_or_default())
    }

    /// Removes a route. Returns whether there was one.
    pub async fn remove_route(&self, name: &str) -> Result<bool> {
        let what = format!("remove route {name}");
        call(&self.name, &what, gone_is_fine(self.maps().delete(name, &Default::default()))).await
    }

    /// Removes a route that was written, unless another run has written there since.
    pub async fn take_back_route(&self, written: &Route) -> Result<()> {
        let Some(there) = self.left_as(written).await? else { return Ok(()) };
        let preconditions = Preconditions { resource_version: there.resource_version, uid: there.uid };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let name = written.name();
        self.unless_changed(&format!("remove route {name}"), self.maps().delete(&name, &params)).await
    }

    /// Writes a route as it was before another was written there, unless another run has written there since.
    pub async fn put_back_route(&self, written: &Route, before: &Route) -> Result<()> {
        let Some(there) = self.left_as(written).await? else { return Ok(()) };
        let (name, mut map) = (before.name(), before.to_config_map());
        map.metadata.resource_version = there.resource_version;
        let (maps, params) = (self.maps(), PatchParams::apply(MANAGER).force());
        self.unless_changed(&format!("write route {name}"), maps.patch(&name, &params, &Patch::Apply(map))).await
    }

    /// What tells the ConfigMap of a route from later ones, if it still says what was written there.
    async fn left_as(&self, written: &Route) -> Result<Option<ObjectMeta>> {
        let name = written.name();
        let found = call(&self.name, &format!("read route {name}"), self.maps().get_opt(&name)).await?;
        let Some(map) = found else { return Ok(None) };
        if Route::from_config_map(&map).is_ok_and(|route| route.says(written)) {
            return Ok(Some(map.metadata));
        }
        tracing::info!(route = %name, region = %self.name, "it says something else than was written, and is left as it is");
        Ok(None)
    }

    /// A write's outcome; what somebody else has changed or removed meanwhile is left to him.
    async fn unless_changed<T>(&self, what: &str, write: impl Future<Output = kube::Result<T>>) -> Result<()> {
        match answer(&self.name, what, write).await? {
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(()),
            written => written.map(drop).map_err(|error| explain(&self.name, what, &error)),
        }
    }

    /// Whether there is a route of that name which listens on the port of that name.
    pub async fn listens(&self, name: &str, port_name: &str) -> Result<bool> {
        let Some(route) = self.route(name).await? else { return Ok(false) };
        Ok(route.mode() == Mode::Port && self.ports(port_name).await?.is_some_and(|ports| ports.listen == route.listen))
    }
}
