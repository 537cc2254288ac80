//! The lab is what it claims to be: without this, a join would prove nothing.

use std::net::SocketAddr;
use std::time::Duration;

use super::fixture::lab;

const BOUND: Duration = Duration::from_secs(2);

fn reaches(place: &str, address: &str) -> bool {
    lab().dial(place, address.parse::<SocketAddr>().unwrap(), BOUND).is_ok()
}

fn api(cluster: &str) -> String {
    let cluster = lab().cluster(cluster).unwrap();
    format!("{}:{}", cluster.address, cluster.port)
}

#[test]
fn the_hub_has_no_route_to_a_business_cluster_and_the_region_has() {
    for (business, proxies) in [
        ("business-a", &["proxy-east-1", "proxy-east-2"][..]),
        ("business-b", &["proxy-east-1", "proxy-east-2"]),
        ("business-c", &["proxy-west-1"]),
    ] {
        assert!(!reaches("hub", &api(business)), "the hub reaches {business}");
        for proxy in proxies {
            assert!(reaches(proxy, &api(business)), "{proxy} does not reach {business}");
        }
    }
    assert!(!reaches("proxy-west-1", &api("business-a")), "the regions reach each other's clusters");
}

#[test]
fn the_laptop_reaches_the_hubs_api_and_nothing_else() {
    assert!(reaches("laptop", &api("hub")));
    for other in ["proxy-east", "proxy-west", "business-a"] {
        assert!(!reaches("laptop", &api(other)), "the laptop reaches {other}");
    }
}
