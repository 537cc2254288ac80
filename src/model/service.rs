//! What the region's shared Service is like beside its ports: what its settings say, as a merge patch.

use serde_json::{Value, json};

use super::region::Region;

/// What the settings want of the Service.
pub fn wanted(settings: &Region) -> Value {
    json!({"spec": {"externalTrafficPolicy": settings.external_traffic_policy.as_str()}})
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
