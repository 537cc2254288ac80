use proptest::prelude::*;

use super::*;

fn region() -> ClusterName {
    "east".parse().unwrap()
}

fn ips(of: &[u8]) -> BTreeSet<IpAddr> {
    of.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect()
}

fn ports(of: &[u16]) -> BTreeSet<u16> {
    of.iter().copied().collect()
}

fn needs(of_ports: &[u16], nodes: &[u8]) -> Needs {
    Needs { ports: ports(of_ports), nodes: ips(nodes), led: Led::All, shards: 1 }
}

/// The hub's API, as far as it concerns Services: it carries writes out.
#[derive(Default)]
struct Api {
    services: BTreeMap<String, Value>,
    slices: BTreeMap<String, Value>,
    versions: u64,
}

impl Api {
    fn stamp(&mut self, mut object: Value, uid: &str) -> (String, Value) {
        self.versions += 1;
        object["metadata"]["resourceVersion"] = json!(self.versions.to_string());
        object["metadata"]["uid"] = json!(uid);
        (object["metadata"]["name"].as_str().unwrap().to_owned(), object)
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::CreateService(mut service) => {
                service["spec"]["clusterIP"] = json!(format!("10.96.0.{}", self.services.len() + 1));
                let (name, service) = self.stamp(service, "uid");
                assert!(self.services.insert(name, service).is_none());
            }
            Write::PatchService(name, patch) => {
                let mut service = self.services[&name].clone();
                assert_eq!(service["metadata"]["resourceVersion"], patch["metadata"]["resourceVersion"]);
                service["spec"]["ports"] = patch["spec"]["ports"].clone();
                let (name, service) = self.stamp(service, "uid");
                self.services.insert(name, service);
            }
            Write::CreateSlice(slice) => {
                let (name, slice) = self.stamp(slice, "uid");
                assert!(self.slices.insert(name, slice).is_none());
            }
            Write::ReplaceSlice(name, slice) => {
                assert_eq!(self.slices[&name]["metadata"]["resourceVersion"], slice["metadata"]["resourceVersion"]);
                let (named, slice) = self.stamp(slice, "uid");
                assert_eq!(named, name);
                self.slices.insert(name, slice);
            }
        }
    }

    fn entries(&self) -> Entries {
        let services: Vec<Service> =
            self.services.values().map(|service| serde_json::from_value(service.clone()).unwrap()).collect();
        let slices: Vec<EndpointSlice> = self.slices.values().map(|slice| serde_json::from_value(slice.clone()).unwrap()).collect();
        by_region(&services, &slices).into_values().next().unwrap_or_default()
    }

    /// Writes until nothing is left to write; says how many writes that took.
    fn provide(&mut self, region: &ClusterName, needs: &Needs) -> usize {
        let mut count = 0;
        for _ in 0..5 {
            let writes = self.entries().writes(region, needs);
            if writes.is_empty() {
                return count;
            }
            count += writes.len();
            writes.into_iter().for_each(|write| self.write(write));
        }
        panic!("it never ends");
    }
}

/// Services that have what is needed.
pub fn provided(region: &ClusterName, needs: &Needs) -> Entries {
    let mut api = Api::default();
    api.provide(region, needs);
    api.entries()
}

#[test]
fn names_lead_to_both_services_once_every_port_is_led_to_nodes() {
    let (region, mut api) = (region(), Api::default());
    assert_eq!(Entries::default().leads(&ports(&[30000]), &ips(&[1])), None);
    assert_eq!(api.provide(&region, &needs(&[30000], &[1, 2])), 4, "two Services, an EndpointSlice each");
    let entries = api.entries();
    let leads = entries.leads(&ports(&[30000]), &ips(&[1, 2])).unwrap();
    assert_eq!(leads.groups, [BTreeSet::from([[10, 96, 0, 1].into(), [10, 96, 0, 2].into()])]);
    assert_eq!(leads.nodes, ips(&[1, 2]), "where names made by hand may lead");
    assert_eq!(entries.leads(&ports(&[30000, 30001]), &ips(&[1, 2])), None);
    let each: Vec<_> = entries.0.values().map(Entry::nodes).collect();
    assert_eq!(each, [ips(&[1]), ips(&[2])]);

    assert_eq!(api.provide(&region, &needs(&[30001], &[1, 2])), 4);
    assert_eq!(api.provide(&region, &needs(&[30000, 30001], &[1, 2])), 0, "unchanged means no write");
    // Far away in number: an EndpointSlice of its own.
    assert_eq!(api.provide(&region, &needs(&[30100], &[1, 2])), 4);
    assert_eq!(api.slices.len(), 4);
    assert!(api.entries().leads(&ports(&[30000, 30001, 30100]), &ips(&[])).is_some());
    let doors = api.entries().doors(&ports(&[30000, 30001, 30100]));
    let doors: Vec<_> = doors.iter().map(|sides| sides.iter().map(|door| door.ports.as_slice()).collect::<Vec<_>>()).collect();
    assert_eq!(doors, [vec![&[30000, 30001][..]; 2], vec![&[30100][..]; 2]], "both sides of each range, by any of its ports");
    assert_eq!(api.entries().doors(&ports(&[30001, 8000])).len(), 1, "and none for what nobody asks about");
}

#[test]
fn a_node_that_goes_is_led_to_no_more_and_no_other_moves() {
    let (region, mut api) = (region(), Api::default());
    api.provide(&region, &needs(&[30000, 30100], &[1, 2]));
    let nodes = |api: &Api| api.entries().0.values().map(Entry::nodes).collect::<Vec<_>>();
    assert_eq!(api.provide(&region, &needs(&[], &[2])), 2, "the EndpointSlices of one side");
    assert_eq!(nodes(&api), [ips(&[2]), ips(&[2])]);
    api.provide(&region, &needs(&[], &[1, 2]));
    assert_eq!(nodes(&api), [ips(&[2]), ips(&[1])]);
    assert_eq!(api.provide(&region, &Needs::default()), 0, "who knows no nodes changes none");
}

#[test]
fn nodes_that_one_run_has_seen_are_those_of_its_ports_only() {
    let (region, mut api) = (region(), Api::default());
    api.provide(&region, &needs(&[30000], &[1, 2]));
    // The hub enters the region by something else now, at 10.0.0.9, and a cluster is joined by that.
    let joined = |port| Needs { led: Led::Of(ports(&[port])), ..needs(&[port], &[9]) };
    api.provide(&region, &joined(8000));
    let behind = |api: &Api, port| api.entries().nodes_behind(&ports(&[port]));
    assert_eq!((behind(&api, 30000), behind(&api, 8000)), (ips(&[1, 2]), ips(&[9])));
    // Not even where a shard is new.
    api.provide(&region, &Needs { shards: 2, ..joined(8000) });
    assert_eq!((behind(&api, 30000), behind(&api, 8000)), (ips(&[1, 2]), ips(&[9])));
    assert_eq!(api.provide(&region, &Needs::default()), 0, "what is mixed stays so");
}

#[test]
fn nodes_of_the_records_replace_those_of_the_probes_only_where_none_is_left() {
    let (region, mut api) = (region(), Api::default());
    api.provide(&region, &needs(&[30000], &[1]));
    let mended = |nodes| Needs { led: Led::Lost(ports(&[30000, 30100])), ..needs(&[30000, 30100], nodes) };
    api.provide(&region, &mended(&[1, 2]));
    assert_eq!(api.entries().nodes_behind(&ports(&[30000])), ips(&[1]), "2 may be ready and not answer");
    assert_eq!(api.entries().nodes_behind(&ports(&[30100])), ips(&[1, 2]), "it led nowhere");
    assert_eq!(api.entries().nodes_everywhere(), ips(&[1]), "2 has only a part of the ports");
    api.provide(&region, &mended(&[3]));
    assert_eq!((api.entries().nodes(), api.entries().nodes_everywhere()), (ips(&[3]), ips(&[3])));
    // Another run's join by another way in takes none along of those that were joined before.
    api.provide(&region, &Needs { led: Led::Lost(ports(&[8000])), ..needs(&[8000], &[9]) });
    assert_eq!(api.entries().nodes_behind(&ports(&[30000, 30100])), ips(&[3]));
}

#[test]
fn further_shards_begin_with_the_other_side() {
    let (region, mut api) = (region(), Api::default());
    api.provide(&region, &needs(&[30000], &[1, 2]));
    api.provide(&region, &Needs { shards: 2, ..needs(&[], &[1, 2]) });
    let entries = api.entries();
    assert_eq!(entries.shards(), 2);
    assert_eq!(entries.0.values().map(Entry::nodes).collect::<Vec<_>>(), [ips(&[1]), ips(&[2]), ips(&[2]), ips(&[1])]);
    assert_eq!(entries.leads(&ports(&[30000]), &ips(&[])).unwrap().groups.len(), 2, "every port is in every shard");
}

#[test]
fn a_port_goes_and_a_service_goes_with_its_last() {
    let (region, mut api) = (region(), Api::default());
    api.provide(&region, &needs(&[30000, 30001], &[1]));
    assert_eq!(api.entries().without(&region, 30009), vec![]);
    for (name, _, patch) in api.entries().without(&region, 30000) {
        api.write(Write::PatchService(name, patch.unwrap()));
    }
    api.provide(&region, &Needs::default());
    let left: Vec<_> = api.entries().0.values().map(|entry| (entry.ports.clone(), entry.slices[&300].ports.clone())).collect();
    assert_eq!(left, vec![(ports(&[30001]), ports(&[30001])); 2]);
    assert!(api.entries().without(&region, 30001).iter().all(|(_, _, patch)| patch.is_none()));
}

#[test]
fn what_somebody_else_made_is_left_out() {
    let (region, mut api) = (region(), Api::default());
    api.provide(&region, &needs(&[30000], &[1]));
    let name = api.services.keys().next().unwrap().clone();
    api.services.get_mut(&name).unwrap()["metadata"]["labels"][REGION] = json!("west");
    assert_eq!(api.entries().0.len(), 1, "its name belongs to another region than its label says");
}

#[test]
fn an_address_family_that_the_service_has_not_is_passed_over() {
    let (region, mut api) = (region(), Api::default());
    let mut mixed = needs(&[30000], &[1]);
    mixed.nodes.insert("fd00::1".parse().unwrap());
    api.provide(&region, &mixed);
    assert_eq!(api.entries().nodes(), ips(&[1]));
}

proptest! {
    #[test]
    fn nodes_are_shared_evenly_and_stay_where_they_are(
        before in prop::collection::btree_set(1u8..9, 0..7),
        after in prop::collection::btree_set(1u8..9, 1..7),
        first in 0usize..2,
    ) {
        let set = |of: &BTreeSet<u8>| ips(&of.iter().copied().collect::<Vec<_>>());
        let (empty, after) = (BTreeSet::new(), set(&after));
        let now = share([&empty, &empty], &set(&before), first);
        let then = share([&now[0], &now[1]], &after, first);
        prop_assert_eq!(&(&then[0] | &then[1]), &after);
        prop_assert!(then[0].len().abs_diff(then[1].len()) <= 1);
        prop_assert_eq!(then[0].is_disjoint(&then[1]), after.len() > 1);
        prop_assert_eq!(&share([&then[0], &then[1]], &after, first), &then, "it is at rest");
    }
}
