//! What the region's shared Service is like beside its ports: what its settings say, as a merge patch.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::region::{Entry, LoadBalancer, Region};

/// What the settings want of the Service.
pub fn wanted(settings: &Region) -> Value {
    let policy = settings.external_traffic_policy.as_str();
    let LoadBalancer { class, annotations, source_ranges } = &settings.load_balancer;
    match settings.entry {
        // Proxies on the nodes' network are reached past it; it keeps their ports.
        Entry::NodePort | Entry::HostNetwork => json!({"spec": {
            "type": "NodePort", "externalTrafficPolicy": policy, "loadBalancerClass": null, "loadBalancerSourceRanges": null,
        }}),
        Entry::LoadBalancer => {
            let ranges: Vec<String> = source_ranges.into_iter().map(ToString::to_string).collect();
            let ranges = if ranges.is_empty() { Value::Null } else { json!(ranges) };
            let mut patch = json!({
                "spec": {"type": "LoadBalancer", "externalTrafficPolicy": policy, "loadBalancerSourceRanges": ranges},
            });
            if !annotations.is_empty() {
                patch["metadata"]["annotations"] = json!(annotations);
            }
            // Not asked for, it is whoever sets one by himself who knows best; it can't be changed afterwards.
            if let Some(class) = class {
                patch["spec"]["loadBalancerClass"] = json!(class);
            }
            patch
        }
    }
}

/// Where a Service's load balancer is: addresses, and host names that lead to more.
pub fn load_balancer(service: &Value) -> (Vec<IpAddr>, Vec<String>) {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    let (mut addresses, mut names) = (Vec::new(), Vec::new());
    for one in ingress {
        match (one["ip"].as_str().and_then(|ip| ip.parse().ok()), one["hostname"].as_str()) {
            (Some(ip), _) => addresses.push(ip),
            (None, Some(name)) => names.push(name.to_owned()),
            (None, None) => {}
        }
    }
    (addresses, names)
}

/// Whether an object is as a merge patch would leave it.
pub fn holds(object: &Value, patch: &Value) -> bool {
    match patch {
        Value::Object(fields) => fields.iter().all(|(key, value)| holds(&object[key], value)),
        other => object == other,
    }
}

/// A merge patch with another one over it.
pub fn merged(mut patch: Value, other: &Value) -> Value {
    match (&mut patch, other) {
        (Value::Object(fields), Value::Object(more)) => {
            for (key, value) in more {
                let before = fields.remove(key).unwrap_or_default();
                fields.insert(key.clone(), merged(before, value));
            }
            patch
        }
        (_, other) => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(more: &str) -> Region {
        Region::parse(&format!(
            r#"{{"nodes":{{"addressType":"InternalIP"}},"nodePorts":{{"first":30000,"last":30085}},"upstreams":{{}},
                "timeouts":{{"connectSeconds":3,"idleSeconds":1,"drainSeconds":1}}{more}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn a_region_s_way_in_makes_its_service() {
        let node_port = json!({"spec": {"type": "NodePort", "externalTrafficPolicy": "Local", "loadBalancerClass": null, "loadBalancerSourceRanges": null}});
        let local = r#","externalTrafficPolicy":"Local""#;
        assert_eq!(wanted(&settings(local)), node_port);
        assert_eq!(wanted(&settings(&format!(r#"{local},"entry":"hostNetwork","loadBalancer":{{"class":"c"}}"#))), node_port);
        let plain = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "loadBalancerSourceRanges": null}});
        assert_eq!(wanted(&settings(r#","entry":"loadBalancer""#)), plain);
        let asked = r#","entry":"loadBalancer","loadBalancer":{"class":"c","annotations":{"a":"b"},"sourceRanges":["10.80.0.10"]}"#;
        let want = json!({
            "metadata": {"annotations": {"a": "b"}},
            "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "loadBalancerClass": "c", "loadBalancerSourceRanges": ["10.80.0.10/32"]},
        });
        assert_eq!(wanted(&settings(asked)), want);
    }

    #[test]
    fn a_load_balancer_has_addresses_and_names() {
        let service =
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "lb.example"}, {}, {"ip": "x"}]}}});
        assert_eq!(load_balancer(&service), (vec![[192, 0, 2, 1].into()], vec!["lb.example".to_owned()]));
        assert_eq!(load_balancer(&json!({"status": {}})), (vec![], vec![]));
    }

    #[test]
    fn a_service_is_as_a_patch_would_leave_it() {
        let service = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 1}], "externalTrafficPolicy": "Local"}});
        for (patch, want) in [
            (json!({}), true),
            (json!({"spec": {"externalTrafficPolicy": "Local"}}), true),
            (json!({"spec": {"externalTrafficPolicy": "Cluster"}}), false),
            (json!({"spec": {"loadBalancerClass": null, "type": "NodePort"}}), true),
            (json!({"metadata": {"annotations": {"a": "b"}}}), false),
            (json!({"spec": {"ports": [{"port": 1}]}}), true),
        ] {
            assert_eq!(holds(&service, &patch), want, "{patch}");
            assert!(holds(&merged(service.clone(), &patch), &patch), "{patch}");
        }
        let both = merged(json!({"spec": {"a": 1, "b": 2}}), &json!({"spec": {"b": 3}, "metadata": {}}));
        assert_eq!(both, json!({"spec": {"a": 1, "b": 3}, "metadata": {}}));
    }
}
