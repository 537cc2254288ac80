//! Kubeconfigs as people and Kubernetes' own parts hold them: YAML, everything inline.

use anyhow::{Context, Result};
use k8s_openapi::ByteString;

use crate::pki::Pair;

/// What a kubeconfig says.
#[derive(Debug)]
pub struct Kubeconfig<'a> {
    /// The cluster's, the context's and the user's name.
    pub name: &'a str,
    /// `https://...`, exactly as it is to stand there.
    pub server: &'a str,
    /// The name the server's certificate is checked for, if not `server`'s.
    pub tls_server_name: Option<&'a str>,
    /// The CA's certificate in PEM form.
    pub authority: &'a str,
    /// The client's certificate and key.
    pub client: &'a Pair,
}

impl Kubeconfig<'_> {
    /// Its text. The namespace is there because `vela` takes none for the empty one.
    pub fn to_yaml(&self) -> Result<String> {
        let Self { name, server, tls_server_name, authority, client } = self;
        let checked_name = tls_server_name.map(|name| format!("    tls-server-name: {name}\n")).unwrap_or_default();
        Ok(format!(
            "apiVersion: v1
kind: Config
clusters:
- name: {name}
  cluster:
    certificate-authority-data: {authority}
    server: {server}
{checked_name}contexts:
- name: {name}
  context:
    cluster: {name}
    user: {name}
    namespace: default
current-context: {name}
users:
- name: {name}
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
",
            authority = base64(authority)?,
            certificate = base64(&client.certificate)?,
            key = base64(&client.key)?,
        ))
    }
}

/// Base64 as Kubernetes writes it.
pub fn base64(text: &str) -> Result<String> {
    match serde_json::to_value(ByteString(text.as_bytes().to_vec())) {
        Ok(serde_json::Value::String(encoded)) => Ok(encoded),
        other => other.map(|value| value.to_string()).context("can't encode base64"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kube::config::Kubeconfig as Parsed;

    use super::*;

    fn yaml(tls_server_name: Option<&str>) -> String {
        let client = Pair { certificate: "CERT".to_owned(), key: "KEY".to_owned() };
        let server = "https://A1B2.eks.example";
        Kubeconfig { name: "business-a", server, tls_server_name, authority: "CA", client: &client }.to_yaml().unwrap()
    }

    #[test]
    fn the_server_stands_there_as_handed_out() {
        let parsed = Parsed::from_yaml(&yaml(None)).unwrap();
        let cluster = parsed.clusters[0].cluster.clone().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://A1B2.eks.example"));
        assert_eq!(cluster.tls_server_name, None);
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("Q0E="));
        assert_eq!(parsed.current_context.as_deref(), Some("business-a"));
    }

    #[test]
    fn another_name_to_check_the_certificate_for_can_be_given() {
        let parsed = Parsed::from_yaml(&yaml(Some("kubernetes"))).unwrap();
        assert_eq!(parsed.clusters[0].cluster.clone().unwrap().tls_server_name.as_deref(), Some("kubernetes"));
    }
}
