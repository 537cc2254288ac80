//! What a join would change, found out by going its way with every write to an API as a dry run.

use serde_json::{Value, json};

use super::{Join, Order, Shared};
use crate::error::Result;
use crate::hub::Hub;
use crate::hub::clusters::JoinedCluster;
use crate::hub::progress::Progress;
use crate::model::aliases::HostAliases;
use crate::model::entries::HUB_NAMESPACE;
use crate::model::membership::Membership;
use crate::model::names::{ApiHost, DnsName, NAMESPACE, Slot};
use crate::model::plan::{Change, Plan};
use crate::model::ports::Ports;
use crate::model::region::{SERVICE, SNI_PORT};
use crate::model::route::{Laid, Mode, Route};
use crate::rolling;
use crate::undo::Undo;

/// Says what a join would do. The way itself is not proven: there is no route to go yet.
pub async fn plan(hub: &Hub, order: &Order, progress: &Progress) -> Result<Plan> {
    let gateway = hub.gateway(order.gateway.as_deref()).await?.rehearsing();
    let mut plan = Plan::default();
    let mut change = rolling::Change { adopt: order.adopt, ..rolling::Change::default() };
    let mut joins = Vec::new();
    let (undo, shared) = (Undo::default(), Shared::read(hub, order, 1).await?);
    let tellers: Vec<_> = order.members.iter().map(|member| progress.of(&member.cluster, Some(&member.region))).collect();
    for (member, tell) in order.members.iter().zip(&tellers) {
        let mut join = Join::read(hub, order, member, &gateway, tell, &undo, &shared).await?;
        join.region = join.region.rehearsing();
        let laid = join.laid().await?;
        let (route, ports) = join.plan_route(&laid, &mut plan).await?;
        if let Some(alias) = join.alias_ahead(&route)? {
            change.wanted.push(join.wanted(&alias));
            change.enter(&member.region, &join.addresses, Some(ports.entered_by(join.region.settings.entry)));
        }
        joins.push((join, laid, route, ports));
    }

    change.keep_reached(&hub.joined_clusters().await?, &[]);
    let (led, services) = (hub.leads_to_services().await?, hub.entries().await?);
    let leading = change.leading(led.then_some(&services));
    if leading.is_none() {
        for (region, way) in &change.regions {
            let now = services.get(region).map(|entries| (entries.ports(), entries.nodes())).unwrap_or_default();
            let to = json!({"ports": &now.0 | &way.ports, "nodes": way.nodes});
            let from = if now.0.is_empty() { Value::Null } else { json!({"ports": now.0, "nodes": now.1}) };
            plan.add(Change::between("", "hub", format!("Services in {HUB_NAMESPACE}, to region {region}"), from, to));
        }
    }
    let now = gateway.aliases().await?;
    let then = change.applied_to(&now, &[], &leading.unwrap_or_else(|| change.leading_ahead(&services)));
    let mut to = names(&then);
    for wanted in change.wanted.iter().filter(|wanted| then.has(wanted) && then.leads_to(&wanted.host).is_empty()) {
        // Their addresses are known when they are made.
        to[wanted.host.as_str()] = json!(["those Services"]);
    }
    let object = format!("Deployment {}, hostAliases", gateway.name());
    if let Some(change) = Change::between("", "hub", object, names(&now), to) {
        // The API server has a say, too.
        gateway.change(|_| Ok(then.clone())).await?;
        plan.changes.push(change.with_note("rolls the gateway, without a failed request"));
    }
    for (join, laid, route, ports) in &joins {
        join.plan_cluster(route, *ports, &mut plan)?;
        join.plan_removal(laid, route.slot, &mut plan);
    }
    Ok(plan)
}

/// Which name leads where, by the gateway's host aliases.
pub fn names(aliases: &HostAliases) -> Value {
    let mut names = serde_json::Map::new();
    for entry in &aliases.entries {
        for name in entry["hostnames"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let ips = names.entry(name).or_insert_with(|| json!([]));
            ips.as_array_mut().into_iter().for_each(|ips| ips.push(entry["ip"].clone()));
        }
    }
    Value::Object(names)
}

fn data(route: &Route) -> Value {
    json!(route.to_config_map().data)
}

impl Join<'_> {
    fn place(&self) -> String {
        format!("region {}", self.region.name)
    }

    fn change(&self, place: &str, object: String, from: Value, to: Value) -> Option<Change> {
        Change::between(self.member.cluster.as_str(), place, object, from, to)
    }

    async fn plan_route(&mut self, laid: &[Laid; 2], plan: &mut Plan) -> Result<(Route, Ports)> {
        let (serving, other) = self.slots(laid).await?;
        let slot = self.kept(laid, serving).unwrap_or(other);
        let current = &laid[slot as usize];
        let mut route = self.route(slot, current.route.as_ref());
        let preferred = self.moves_from().map(|old| old.node_port).filter(|_| current.ports.is_none());
        let (before, ports) = match route.mode() {
            Mode::Port => (current.ports, self.take_ports(&route, preferred).await?),
            Mode::Sni => (self.region.ports(SNI_PORT).await?, self.region.take_own_ports(None).await?.0),
        };
        route.listen = ports.listen;
        self.region.put_route(&route).await?;
        let from = current.route.as_ref().map_or(Value::Null, data);
        plan.add(self.change(&self.place(), format!("ConfigMap {NAMESPACE}/{}", route.name()), from, data(&route)));
        let of = |ports: Ports| json!({"port": ports.listen, "nodePort": ports.node});
        let from = before.map_or(Value::Null, of);
        plan.add(self.change(&self.place(), format!("Service {NAMESPACE}/{SERVICE}, port {}", route.port_name()), from, of(ports)));
        Ok((route, ports))
    }

    /// The alias, where it can be known before the certificate was seen.
    fn alias_ahead(&self, route: &Route) -> Result<Option<DnsName>> {
        match self.access.certificate_name() {
            ApiHost::Dns(name) => self.choose_alias(&[name]).map(Some),
            ApiHost::Ip(_) => Ok(route.alias.clone()),
        }
    }

    fn plan_cluster(&self, route: &Route, ports: Ports, plan: &mut Plan) -> Result<()> {
        let (name, port) = (&self.member.cluster, ports.entered_by(self.region.settings.entry));
        let object = format!("Secret {NAMESPACE}/{name} (vela cluster join)");
        let endpoint = |cluster: &JoinedCluster| json!({"endpoint": cluster.endpoint()});
        let from = self.before.as_ref().map_or(Value::Null, endpoint);
        let Some(alias) = self.alias_ahead(route)? else {
            let to = json!({"endpoint": format!("https://(a name of its certificate):{port}")});
            plan.add(
                self.change("hub", object, from, to)
                    .map(|change| change.with_note("and an alias of that name, which rolls the gateway")),
            );
            return Ok(());
        };
        let membership = Membership {
            region: self.member.region.clone(),
            upstream: route.host.clone(),
            upstream_port: route.port,
            bounds: route.bounds.clone(),
            alias,
            node_port: port,
            mode: route.mode(),
            identity: String::new(),
            expires: None,
            renews: None,
            source: None,
        };
        let to = json!({"endpoint": membership.endpoint()});
        match self.change("hub", object.clone(), from.clone(), to.clone()) {
            Some(change) => plan.changes.push(change),
            None if self.before.as_ref().is_some_and(|before| self.is_current(before, &membership)) => {}
            // Credentials, authority or labels: not shown, as they may be secret.
            None => plan.add(self.change("hub", object, from, json!({"credentials, authority or labels": "new"}))),
        }
        Ok(())
    }

    fn plan_removal(&self, laid: &[Laid; 2], kept: Slot, plan: &mut Plan) {
        for (slot, laid) in Slot::ALL.into_iter().zip(laid).filter(|(slot, _)| *slot != kept) {
            let name = self.hub.id.route_name(&self.member.cluster, slot);
            if laid.route.is_some() || laid.ports.is_some() {
                plan.add(self.change(&self.place(), format!("ConfigMap {NAMESPACE}/{name}, and its port"), json!({}), Value::Null));
            }
        }
        if let Some(old) = self.moves_from() {
            let place = format!("region {}", old.region);
            let object =
                format!("ConfigMap {NAMESPACE}/{}, and its port", self.hub.id.route_name(&self.member.cluster, Slot::First));
            plan.add(self.change(&place, object, json!({}), Value::Null));
        }
    }
}
