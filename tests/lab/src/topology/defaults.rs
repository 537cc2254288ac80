//! The clusters and places every lab has.

use std::net::Ipv4Addr;

use super::{Bridge, Cluster, Link, Place, Region, Store};

/// The address the laptop, the hub and its pods all know the hub by.
#[must_use]
pub fn hub_address() -> Ipv4Addr {
    Bridge::Peer.address(10)
}

/// The namespace that reaches nothing but the hub's API server and the addon registry.
#[must_use]
pub fn laptop() -> Place {
    Place::new("laptop", &[Link::new(Bridge::Access, 50)])
}

/// Where the etcd of further business clusters runs.
#[must_use]
pub fn store() -> Place {
    Place::new("store", &[Link::new(Bridge::Store, 2)])
}

/// A region's resolver.
#[must_use]
pub fn resolver(region: Region) -> Place {
    Place::new(region.resolver_place(), &[Link::new(region.bridge(), 2)])
}

/// Places that belong to no cluster.
#[must_use]
pub fn bystanders() -> Vec<Place> {
    let mut places = vec![laptop(), store()];
    places.extend(Region::ALL.map(resolver));
    places
}

/// The clusters every lab has, the hub first.
#[must_use]
pub fn clusters() -> Vec<Cluster> {
    vec![
        hub(),
        proxy("proxy-east", Region::East, 2),
        proxy("proxy-west", Region::West, 1),
        // Like a managed cloud's: a host name with capitals, no port, a certificate for the lower-case name.
        business("business-a", Region::East, 31, 443, 73)
            .served_as("https://A1B2C3D4E5.gr7.ap-east-1.eks.example", &["a1b2c3d4e5.gr7.ap-east-1.eks.example"])
            .on_its_own_node(),
        // Like kubeadm's: an address, and its node's name in the certificate.
        business("business-b", Region::East, 32, 6443, 74)
            .served_as("https://10.80.1.32:6443", &["business-b-master", "10.80.1.32"]),
        business("business-c", Region::West, 31, 6443, 75)
            .served_as("https://business-c.idc.example:6443", &["business-c.idc.example"]),
    ]
}

fn hub() -> Cluster {
    hub_at("hub", &[Link::new(Bridge::Peer, 10), Link::new(Bridge::Access, 10)], 70, 100)
}

/// Another hub beside the first, for whoever starts one.
#[must_use]
pub fn second_hub() -> Cluster {
    hub_at("hub-2", &[Link::new(Bridge::Peer, 11)], 76, 106)
}

fn hub_at(name: &str, links: &[Link], pods: u8, services: u8) -> Cluster {
    let home = Place::new(name, links);
    let address = links[0].address;
    Cluster {
        name: name.to_owned(),
        region: None,
        home: home.clone(),
        address,
        port: 6443,
        server: format!("https://{address}:6443"),
        names: vec![address.to_string()],
        pods,
        services,
        nodes: Vec::new(),
        store: Store::Own,
    }
    .with_node(home, address)
}

/// A proxy cluster's own traffic (kubelets, pods of two nodes) goes over the region's bridge, so that a cut of the
/// peering leaves its nodes Ready and merely out of the hub's reach.
fn proxy(name: &str, region: Region, nodes: u8) -> Cluster {
    let (first, pods) = match region {
        Region::East => (21, 71),
        Region::West => (31, 72),
    };
    let place = |index: u8| {
        let host = first + index;
        Place::new(
            &format!("{name}-{}", index + 1),
            &[Link::new(Bridge::Peer, host), Link::new(region.bridge(), host - first + 21)],
        )
    };
    let peer = Bridge::Peer.address(first);
    let address = region.bridge().address(21);
    let cluster = Cluster {
        name: name.to_owned(),
        region: Some(region),
        home: place(0),
        address,
        port: 6443,
        server: format!("https://{peer}:6443"),
        names: vec![peer.to_string(), address.to_string()],
        pods,
        services: pods + 30,
        nodes: Vec::new(),
        store: Store::Own,
    };
    (0..nodes).fold(cluster, |cluster, index| cluster.with_node(place(index), Bridge::Peer.address(first + index)))
}

/// A business cluster without a node, at host `host` of its region, served by its address.
#[must_use]
pub fn business(name: &str, region: Region, host: u8, port: u16, pods: u8) -> Cluster {
    let link = Link::new(region.bridge(), host);
    Cluster {
        name: name.to_owned(),
        region: Some(region),
        home: Place::new(name, &[link]),
        address: link.address,
        port,
        server: format!("https://{}:{port}", link.address),
        names: Vec::new(),
        pods,
        services: pods + 30,
        nodes: Vec::new(),
        store: Store::Own,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashSet;

    use super::*;
    use crate::topology::Role;

    fn places() -> Vec<Place> {
        let mut all: Vec<Place> =
            clusters().iter().flat_map(|cluster| cluster.places().into_iter().cloned().collect::<Vec<_>>()).collect();
        all.extend(bystanders());
        all.extend(second_hub().places().into_iter().cloned());
        all
    }

    #[test]
    fn no_address_and_no_place_occurs_twice() {
        let links: Vec<Link> = places().iter().flat_map(|place| place.links.clone()).collect();
        assert_eq!(links.iter().map(|link| link.address).collect::<HashSet<_>>().len(), links.len());
        assert_eq!(links.iter().map(Link::port).collect::<HashSet<_>>().len(), links.len());
        assert_eq!(places().iter().map(|place| place.name.clone()).collect::<HashSet<_>>().len(), places().len());
    }

    #[test]
    fn the_hub_shares_no_bridge_with_a_business_cluster() {
        let all = clusters();
        let hub: HashSet<Bridge> = all[0].home.links.iter().map(|link| link.bridge).collect();
        for cluster in all.iter().filter(|cluster| cluster.role() == Role::Business) {
            assert!(cluster.home.links.iter().all(|link| !hub.contains(&link.bridge)), "{}", cluster.name);
        }
    }

    #[test]
    fn the_laptop_shares_a_bridge_with_the_hub_alone() {
        let with_access = |place: &Place| place.address_on(Bridge::Access).is_some();
        let names: Vec<String> = places().into_iter().filter(with_access).map(|place| place.name).collect();
        assert_eq!(names, ["hub", "laptop"]);
        assert_eq!(laptop().links.len(), 1);
    }

    #[test]
    fn proxy_east_has_two_nodes_with_networks_of_their_own() {
        let east = clusters().into_iter().find(|cluster| cluster.name == "proxy-east").unwrap();
        let nodes: Vec<_> = east.nodes.iter().map(|n| (n.place.name.as_str(), n.internal_ip.to_string(), n.pod_cidr())).collect();
        assert_eq!(
            nodes,
            [
                ("proxy-east-1", "10.80.0.21".to_owned(), "10.71.1.0/24".to_owned()),
                ("proxy-east-2", "10.80.0.22".to_owned(), "10.71.2.0/24".to_owned()),
            ]
        );
        assert_eq!(east.home, east.nodes[0].place);
    }

    #[test]
    fn no_two_clusters_share_a_network() {
        let all: Vec<Cluster> = clusters().into_iter().chain([second_hub()]).collect();
        let networks: HashSet<u8> = all.iter().flat_map(|cluster| [cluster.pods, cluster.services]).collect();
        assert_eq!(networks.len(), 2 * all.len());
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        for place in places() {
            assert!(place.links.iter().all(|link| link.port().len() <= 15 && link.bridge.name().len() <= 15));
        }
    }

    #[test]
    fn a_users_server_is_kept_as_handed_out_and_its_host_is_lower_case() {
        let named = |name: &str| clusters().into_iter().find(|cluster| cluster.name == name).unwrap();
        assert_eq!(named("business-a").server, "https://A1B2C3D4E5.gr7.ap-east-1.eks.example");
        assert_eq!(named("business-a").host().unwrap(), "a1b2c3d4e5.gr7.ap-east-1.eks.example");
        assert_eq!(named("business-b").host(), None);
        assert_eq!(named("business-c").host().unwrap(), "business-c.idc.example");
    }
}
