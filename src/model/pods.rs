//! What a pod's status says.

use k8s_openapi::api::core::v1::Pod;

/// Whether a pod's condition `Ready` is true, and it is not ending.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}
