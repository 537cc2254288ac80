//! The kubeconfig a user brings, normalised to what a join needs, and the one that is written for `vela cluster join`.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kube::config::{AuthInfo, Cluster, Kubeconfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

use super::names::{ApiHost, DnsName};
use crate::error::{Failure, Kind, Result};

/// Port of an `https` server that names none.
const HTTPS: u16 = 443;

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

/// Credentials that KubeVela can keep.
#[derive(Clone)]
pub enum Credentials {
    /// A bearer token.
    Token(SecretString),
    /// A client certificate (PEM) and its key (PEM).
    Certificate(Vec<u8>, SecretString),
}

/// Only the address: what else is in here must not get into a log.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Access {
    /// Reads the context `context` of a kubeconfig, or its current or only one.
    ///
    /// # Errors
    /// The text is no kubeconfig, or one that could not be joined, or not securely.
    pub fn parse(bytes: &[u8], context: Option<&str>, read: ReadFile<'_>) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|_| not_a_kubeconfig("it is no UTF-8 text"))?;
        let config =
            Kubeconfig::from_yaml(text.trim_start_matches('\u{feff}')).map_err(|_| not_a_kubeconfig("it does not parse"))?;
        if config.clusters.is_empty() || config.contexts.is_empty() {
            return Err(not_a_kubeconfig("it lists no clusters or no contexts"));
        }
        let (cluster, user) = choose(&config, context)?;
        let (host, port) = server(cluster)?;
        let tls_server_name = cluster.tls_server_name.as_deref().filter(|name| !name.is_empty()).map(str::parse).transpose()?;
        Ok(Self { host, port, tls_server_name, ca: authority(cluster, read)?, credentials: credentials(user, read)? })
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

fn not_a_kubeconfig(why: &str) -> Failure {
    Failure::new(Kind::Kubeconfig, format!("this is no kubeconfig: {why}"), "give the file that kubectl uses for the cluster")
}

fn choose<'a>(config: &'a Kubeconfig, context: Option<&str>) -> Result<(&'a Cluster, &'a AuthInfo)> {
    let names = || config.contexts.iter().map(|context| context.name.as_str()).collect::<Vec<_>>().join(", ");
    let wanted = match (context, config.current_context.as_deref().filter(|name| !name.is_empty()), config.contexts.as_slice()) {
        (Some(asked), _, _) => asked,
        (None, Some(current), _) => current,
        (None, None, [only]) => &only.name,
        (None, None, _) => {
            return Err(Failure::new(
                Kind::Context,
                format!("the kubeconfig has several contexts ({}) and none is current", names()),
                "set current-context in it, or choose one with --context",
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
    let context = config
        .contexts
        .iter()
        .find(|context| context.name == wanted)
        .and_then(|named| named.context.as_ref())
        .ok_or_else(|| missing("context", wanted))?;
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
    Ok((cluster, user))
}

fn server(cluster: &Cluster) -> Result<(ApiHost, u16)> {
    let text = cluster.server.as_deref().unwrap_or_default();
    let wrong = |why: &str| {
        Failure::new(
            Kind::Server,
            format!("server {:?} {why}", without_user_info(text)),
            "give a kubeconfig whose server is https://HOST or https://HOST:PORT",
        )
    };
    if cluster.proxy_url.as_deref().is_some_and(|url| !url.is_empty()) {
        return Err(Failure::new(
            Kind::Server,
            "the kubeconfig has a proxy-url, which the region's proxies don't use",
            "remove it if the region reaches the API server directly",
        ));
    }
    let scheme = text.get(..8).filter(|scheme| scheme.eq_ignore_ascii_case("https://"));
    let rest = match scheme {
        Some(scheme) => &text[scheme.len()..],
        None if text.contains("://") => return Err(wrong("is not https")),
        None => text,
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err(wrong("has a path, which KubeVela can't keep"));
    }
    if rest.contains('@') {
        return Err(wrong("has user information in it"));
    }
    // The last colon starts a port, unless it is within the literal of an IPv6 address.
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') && (host.ends_with(']') || !host.contains(':')) => {
            (host, port.parse().ok().filter(|port| *port != 0).ok_or_else(|| wrong("has no TCP port after its host"))?)
        }
        _ => (rest, HTTPS),
    };
    Ok((host.parse().map_err(|_| wrong("names no host"))?, port))
}

fn without_user_info(server: &str) -> String {
    match server.rsplit_once('@') {
        Some((before, after)) => {
            let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
            format!("{scheme}...@{after}")
        }
        None => server.to_owned(),
    }
}

fn authority(cluster: &Cluster, read: ReadFile<'_>) -> Result<Vec<u8>> {
    let insecure = |cause: &str| {
        Failure::new(
            Kind::Insecure,
            cause,
            "give the certificate authority of the API server as certificate-authority-data in the kubeconfig",
        )
    };
    if cluster.insecure_skip_tls_verify == Some(true) {
        return Err(insecure("the kubeconfig skips the check of the server's certificate (insecure-skip-tls-verify)"));
    }
    let ca = inline_or_file(
        "certificate-authority",
        cluster.certificate_authority_data.as_deref(),
        cluster.certificate_authority.as_deref(),
        read,
    )?
    .ok_or_else(|| insecure("the kubeconfig has no certificate authority, so the server can't be verified"))?;
    match CertificateDer::pem_slice_iter(&ca).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(ca),
        _ => Err(insecure("the kubeconfig's certificate authority is no PEM certificate")),
    }
}

fn credentials(user: &AuthInfo, read: ReadFile<'_>) -> Result<Credentials> {
    let unusable = |cause: &str| {
        Failure::new(
            Kind::Credentials,
            cause,
            "give a kubeconfig with the token of a ServiceAccount, or with a client certificate and its key",
        )
    };
    if user.impersonate.is_some() || user.impersonate_groups.is_some() || user.impersonate_uid.is_some() {
        return Err(unusable("the kubeconfig's user impersonates another, which KubeVela can't keep"));
    }
    // Where there are several, KubeVela keeps the token: so that is what must be proven.
    if let Some(token) = user.token.as_ref().filter(|token| !token.expose_secret().is_empty()) {
        return token_of(token.expose_secret(), unusable);
    }
    if let Some(path) = &user.token_file {
        let token = read_file("tokenFile", path, read)?;
        let token = std::str::from_utf8(&token).map_err(|_| unusable("the kubeconfig's token file holds no token"))?;
        return token_of(token.trim(), unusable);
    }
    let certificate =
        inline_or_file("client-certificate", user.client_certificate_data.as_deref(), user.client_certificate.as_deref(), read)?;
    let key_data = user.client_key_data.as_ref().map(|data| data.expose_secret());
    let key = inline_or_file("client-key", key_data, user.client_key.as_deref(), read)?;
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            if CertificateDer::from_pem_slice(&certificate).is_err() {
                return Err(unusable("the kubeconfig's client certificate is no PEM certificate"));
            }
            if PrivateKeyDer::from_pem_slice(&key).is_err() {
                return Err(unusable("the kubeconfig's client key is no PEM private key"));
            }
            let key = String::from_utf8(key).map_err(|_| unusable("the kubeconfig's client key is no PEM private key"))?;
            Ok(Credentials::Certificate(certificate, key.into()))
        }
        (Some(_), None) => Err(unusable("the kubeconfig has a client certificate but no key to it")),
        (None, Some(_)) => Err(unusable("the kubeconfig has a client key but no certificate to it")),
        (None, None) if user.exec.is_some() => Err(unusable(
            "the kubeconfig gets its credentials from a command (exec), and what it prints expires within minutes or hours",
        )),
        (None, None) if user.auth_provider.is_some() => {
            Err(unusable("the kubeconfig gets its credentials from an auth provider, which KubeVela doesn't have"))
        }
        (None, None) if user.username.is_some() => {
            Err(unusable("the kubeconfig has a user name and password, which API servers no longer accept"))
        }
        (None, None) => Err(unusable("the kubeconfig's user has no credentials")),
    }
}

fn token_of(token: &str, unusable: impl Fn(&str) -> Failure) -> Result<Credentials> {
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(unusable("the kubeconfig's token is empty, or has characters no token has"));
    }
    Ok(Credentials::Token(token.to_owned().into()))
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn pem() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["x.example".into()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn config() -> Value {
        let (ca, key) = pem();
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {
                "server": "https://API.example:6443", "certificate-authority-data": BASE64_STANDARD.encode(&ca),
            }}],
            "users": [
                {"name": "u", "user": {"token": "t0ken"}},
                {"name": "cert", "user": {
                    "client-certificate-data": BASE64_STANDARD.encode(&ca), "client-key-data": BASE64_STANDARD.encode(key),
                }},
            ],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}, {"name": "d", "context": {"cluster": "k", "user": "cert"}}],
        })
    }

    fn no_files(_: &Path) -> std::io::Result<Vec<u8>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn parse(config: &Value) -> Result<Access> {
        Access::parse(config.to_string().as_bytes(), None, &no_files)
    }

    #[test]
    fn servers() {
        for (server, host, port) in [
            ("https://A1B2C3D4E5.gr7.ap-east-1.eks.example", "a1b2c3d4e5.gr7.ap-east-1.eks.example", 443),
            ("https://api.example:6443", "api.example", 6443),
            ("HTTPS://api.example:6443/", "api.example", 6443),
            ("api.example", "api.example", 443),
            ("https://10.80.1.32:6443", "10.80.1.32", 6443),
            ("https://10.80.1.32", "10.80.1.32", 443),
            ("https://[2001:db8::1]:6443", "2001:db8::1", 6443),
            ("https://[2001:db8::1]", "2001:db8::1", 443),
        ] {
            let mut config = config();
            config["clusters"][0]["cluster"]["server"] = json!(server);
            let access = parse(&config).unwrap();
            assert_eq!((access.host.to_string().as_str(), access.port), (host, port), "{server}");
        }
        for (server, want) in [
            ("", "names no host"),
            ("http://api.example", "not https"),
            ("https://api.example/k8s/clusters/c-1", "path"),
            ("https://api.example?x", "path"),
            ("https://me:hunter2@api.example", "user information"),
            ("https://api.example:0", "port"),
            ("https://api.example:70000", "port"),
            ("https://api.example:6443;", "port"),
            ("https://api.example; }", "names no host"),
            ("https://*.example", "names no host"),
        ] {
            let mut config = config();
            config["clusters"][0]["cluster"]["server"] = json!(server);
            let failure = parse(&config).unwrap_err();
            assert_eq!(failure.kind, Kind::Server, "{server}");
            assert!(failure.cause().contains(want), "{server}: {failure}");
            assert!(!failure.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn what_is_refused_and_why() {
        let edit = |pointer: &str, value: Value| {
            let mut config = config();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[key] = value;
            config
        };
        let user = |user: Value| edit("/users/0/user", user);
        let (certificate, _) = pem();
        for (config, kind, want) in [
            (json!("hello"), Kind::Kubeconfig, "does not parse"),
            (json!({"kind": "Config"}), Kind::Kubeconfig, "no clusters"),
            (edit("/current-context", json!("")), Kind::Context, "several contexts (c, d)"),
            (edit("/current-context", json!("x")), Kind::Kubeconfig, "no context 'x'"),
            (edit("/contexts/0/context/cluster", json!("x")), Kind::Kubeconfig, "no cluster 'x'"),
            (edit("/contexts/0/context/user", json!("x")), Kind::Kubeconfig, "no user 'x'"),
            (edit("/clusters/0/cluster/insecure-skip-tls-verify", json!(true)), Kind::Insecure, "insecure-skip-tls-verify"),
            (edit("/clusters/0/cluster/certificate-authority-data", Value::Null), Kind::Insecure, "no certificate authority"),
            (edit("/clusters/0/cluster/certificate-authority-data", json!("aGVsbG8=")), Kind::Insecure, "no PEM certificate"),
            (edit("/clusters/0/cluster/certificate-authority-data", json!("%")), Kind::Kubeconfig, "no base64"),
            (edit("/clusters/0/cluster/proxy-url", json!("http://p")), Kind::Server, "proxy-url"),
            (user(json!({})), Kind::Credentials, "no credentials"),
            (user(json!({"token": ""})), Kind::Credentials, "no credentials"),
            (user(json!({"token": "a b"})), Kind::Credentials, "characters no token has"),
            (user(json!({"username": "a", "password": "hunter2"})), Kind::Credentials, "password"),
            (user(json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "aws"}})), Kind::Credentials, "exec"),
            (user(json!({"auth-provider": {"name": "gcp", "config": {}}})), Kind::Credentials, "auth provider"),
            (user(json!({"token": "t", "as": "admin"})), Kind::Credentials, "impersonates"),
            (user(json!({"client-certificate-data": BASE64_STANDARD.encode(certificate)})), Kind::Credentials, "no key"),
            (user(json!({"tokenFile": "/var/run/token"})), Kind::Kubeconfig, "can't be read"),
        ] {
            let failure = parse(&config).unwrap_err();
            assert_eq!(failure.kind, kind, "{failure}");
            assert!(failure.cause().contains(want), "{want}: {failure}");
            assert!(!failure.to_string().contains("hunter2"));
        }
        assert_eq!(Access::parse(&[0xff, 0xfe], None, &no_files).unwrap_err().kind, Kind::Kubeconfig);
    }

    #[test]
    fn contexts_and_files() {
        let mut config = config();
        config["users"][0]["user"] = json!({"tokenFile": "token"});
        let read = |path: &Path| -> std::io::Result<Vec<u8>> {
            assert_eq!(path, Path::new("token"));
            Ok(b"from-file\n".to_vec())
        };
        let access = Access::parse(config.to_string().as_bytes(), None, &read).unwrap();
        assert!(matches!(access.credentials, Credentials::Token(token) if token.expose_secret() == "from-file"));
        let access = Access::parse(config.to_string().as_bytes(), Some("d"), &read).unwrap();
        assert!(matches!(access.credentials, Credentials::Certificate(..)));
    }

    #[test]
    fn what_is_written_reads_back_and_debug_shows_no_secret() {
        for context in ["c", "d"] {
            let access = Access::parse(config().to_string().as_bytes(), Some(context), &no_files).unwrap();
            let written = access.flattened("k");
            let again = Access::parse(written.expose_secret().as_bytes(), None, &no_files).unwrap();
            assert_eq!(again.flattened("k").expose_secret(), written.expose_secret());
            assert!(!format!("{access:?}").contains("t0ken"));
        }
    }
}
