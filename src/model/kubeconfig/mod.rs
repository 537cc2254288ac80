//! The kubeconfig a user brings, normalised to what a join needs, and the one that is written for `vela cluster join`.

mod credentials;
mod server;
#[cfg(test)]
mod tests;
mod text;

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use kube::config::{AuthInfo, Cluster, Kubeconfig};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

pub use credentials::Credentials;
pub use server::Server;
pub use text::{MAX_SIZE, document, merged};

use super::names::{ApiHost, DnsName};
use crate::error::{Failure, Kind, Result};

/// Reads a file that a kubeconfig refers to. From a Secret there are no files to read, and it says so.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> std::io::Result<Vec<u8>>;

/// How to reach an API server and prove that it is the right one.
#[derive(Clone)]
pub struct Access {
    /// Where it is.
    pub host: ApiHost,
    /// On which TCP port.
    pub port: u16,
    /// The name its certificate must have, where the kubeconfig names another than the host (`tls-server-name`).
    pub tls_server_name: Option<DnsName>,
    /// The authorities that may have signed its certificate, as PEM.
    pub ca: Vec<u8>,
    /// Who the hub is there.
    pub credentials: Credentials,
}

/// Only the address: what else is in here must not get into a log.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Access {
    /// Reads the context `context` of a kubeconfig's text, or its current or only one.
    ///
    /// # Errors
    /// The text is no kubeconfig, or one that could not be joined, or not securely, or no longer at `now`.
    pub fn parse(bytes: &[u8], context: Option<&str>, read: ReadFile<'_>, now: Timestamp) -> Result<Self> {
        Self::of(&document(bytes, Path::new(""))?, context, read, now)
    }

    /// The same of a kubeconfig that was read already.
    pub fn of(config: &Kubeconfig, context: Option<&str>, read: ReadFile<'_>, now: Timestamp) -> Result<Self> {
        let chosen = Chosen::of(config, context)?;
        let server = Server::of(chosen.cluster, read)?;
        Ok(Self::new(server, Credentials::of(chosen.user, read, now)?))
    }

    /// An access to a server.
    pub fn new(server: Server, credentials: Credentials) -> Self {
        let Server { host, port, tls_server_name, ca } = server;
        Self { host, port, tls_server_name, ca, credentials }
    }

    /// The name that the server's certificate is checked for.
    pub fn certificate_name(&self) -> ApiHost {
        self.tls_server_name.clone().map_or_else(|| self.host.clone(), ApiHost::Dns)
    }

    /// A kubeconfig for the same server by another address, self-contained, as JSON (which is YAML).
    pub fn to_kubeconfig(&self, name: &str, server: &str) -> SecretString {
        let base64 = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
        let user = match &self.credentials {
            Credentials::Token(token) => json!({"token": token.expose_secret()}),
            Credentials::Certificate(certificate, key) => json!({
                "client-certificate-data": base64(certificate),
                "client-key-data": base64(key.expose_secret().as_bytes()),
            }),
        };
        let mut cluster = json!({"server": server, "certificate-authority-data": base64(&self.ca)});
        if let Some(name) = &self.tls_server_name {
            cluster["tls-server-name"] = json!(name.as_str());
        }
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        })
        .to_string()
        .into()
    }

    /// The kubeconfig as it was meant, self-contained: what a Job on the hub is given.
    pub fn flattened(&self, name: &str) -> SecretString {
        self.to_kubeconfig(name, &format!("https://{}", authority_part(&self.host.to_string(), self.port)))
    }
}

/// `host:port`, with an IPv6 literal in brackets.
pub fn authority_part(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A context of a kubeconfig, with what it refers to.
pub struct Chosen<'a> {
    /// Its name.
    pub context: &'a str,
    /// The cluster.
    pub cluster: &'a Cluster,
    /// The user.
    pub user: &'a AuthInfo,
}

impl<'a> Chosen<'a> {
    /// The context `context`, or the current or only one.
    pub fn of(config: &'a Kubeconfig, context: Option<&str>) -> Result<Self> {
        if config.clusters.is_empty() || config.contexts.is_empty() {
            return Err(text::not_a_kubeconfig("it lists no clusters or no contexts"));
        }
        let names = || config.contexts.iter().map(|context| context.name.as_str()).collect::<Vec<_>>().join(", ");
        let wanted = match (context, config.current_context.as_deref(), config.contexts.as_slice()) {
            (Some(asked), _, _) => asked,
            (None, Some(current), _) => current,
            (None, None, [only]) => &only.name,
            (None, None, _) => {
                return Err(Failure::new(
                    Kind::Context,
                    format!("the kubeconfig has several contexts ({}) and none is current", names()),
                    "set current-context in it, or choose one with context (--context)",
                ));
            }
        };
        let missing = |what: &str, name: &str| {
            Failure::new(
                Kind::Kubeconfig,
                format!("the kubeconfig has no {what} {name:?}"),
                format!("its contexts are: {}; check which of them works with kubectl", names()),
            )
        };
        let named = config.contexts.iter().find(|context| context.name == wanted);
        let (named, context) =
            named.and_then(|named| Some((named, named.context.as_ref()?))).ok_or_else(|| missing("context", wanted))?;
        let cluster = config
            .clusters
            .iter()
            .find(|cluster| cluster.name == context.cluster)
            .and_then(|named| named.cluster.as_ref())
            .ok_or_else(|| missing("cluster", &context.cluster))?;
        let user = context.user.as_deref().unwrap_or_default();
        let user = config
            .auth_infos
            .iter()
            .find(|info| info.name == user)
            .and_then(|named| named.auth_info.as_ref())
            .ok_or_else(|| missing("user", user))?;
        Ok(Self { context: &named.name, cluster, user })
    }
}

fn inline_or_file(field: &str, inline: Option<&str>, path: Option<&str>, read: ReadFile<'_>) -> Result<Option<Vec<u8>>> {
    match (inline.filter(|data| !data.is_empty()), path.filter(|path| !path.is_empty())) {
        (Some(data), _) => {
            let compact: String = data.split_ascii_whitespace().collect();
            let bytes = BASE64_STANDARD.decode(compact).map_err(|_| {
                Failure::new(
                    Kind::Kubeconfig,
                    format!("{field}-data in the kubeconfig is no base64"),
                    "copy the kubeconfig again, whole",
                )
            })?;
            Ok(Some(bytes))
        }
        (None, Some(path)) => read_file(field, path, read).map(Some),
        (None, None) => Ok(None),
    }
}

fn read_file(field: &str, path: &str, read: ReadFile<'_>) -> Result<Vec<u8>> {
    read(Path::new(path)).map_err(|error| {
        Failure::new(
            Kind::Kubeconfig,
            format!("the kubeconfig's {field} is in the file {path:?}, which can't be read: {error}"),
            "inline it: kubectl config view --raw --flatten --minify",
        )
    })
}
