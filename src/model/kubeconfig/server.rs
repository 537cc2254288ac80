//! Where the API server is, and by whom its certificate may be signed.

use std::net::Ipv6Addr;

use kube::config::Cluster;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::{ReadFile, inline_or_file};
use crate::error::{Failure, Kind, Result};
use crate::model::names::{ApiHost, DnsName};

/// Port of an `https` server that names none.
const HTTPS: u16 = 443;

/// An API server as a kubeconfig names it.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it is.
    pub host: ApiHost,
    /// On which TCP port.
    pub port: u16,
    /// The name its certificate must have, where it is another than the host (`tls-server-name`).
    pub tls_server_name: Option<DnsName>,
    /// The authorities that may have signed its certificate, as PEM.
    pub ca: Vec<u8>,
}

impl Server {
    /// Reads a kubeconfig's cluster.
    ///
    /// # Errors
    /// It could not be joined, or not securely.
    pub fn of(cluster: &Cluster, read: ReadFile<'_>) -> Result<Self> {
        if cluster.proxy_url.as_deref().is_some_and(|url| !url.is_empty()) {
            return Err(Failure::new(
                Kind::Server,
                "the kubeconfig has a proxy-url, which the region's proxies don't use",
                "remove it if the region reaches the API server directly",
            ));
        }
        let (host, port) = address(cluster.server.as_deref().unwrap_or_default())?;
        let tls_server_name = cluster.tls_server_name.as_deref().filter(|name| !name.is_empty()).map(str::parse).transpose()?;
        Ok(Self { host, port, tls_server_name, ca: authority(cluster, read)? })
    }
}

fn address(text: &str) -> Result<(ApiHost, u16)> {
    let refused = |why: &str, hint: &str| Failure::new(Kind::Server, format!("server {:?} {why}", presentable(text)), hint);
    let wrong = |why: &str| refused(why, "give a kubeconfig whose server is https://HOST or https://HOST:PORT");
    let scheme = text.get(..8).filter(|scheme| scheme.eq_ignore_ascii_case("https://"));
    let rest = match scheme {
        Some(scheme) => &text[scheme.len()..],
        None if text.contains("://") => return Err(wrong("is not https")),
        None => text,
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#']) {
        return Err(refused(
            "has a path, which KubeVela can't keep",
            "give a context that leads to the API server itself (Rancher: enable the cluster's authorized cluster endpoint)",
        ));
    }
    if rest.contains('@') {
        return Err(wrong("has user information in it"));
    }
    // A port follows the last colon, unless that is within the literal of an IPv6 address.
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            let port = port.parse().ok().filter(|port| digits && *port != 0);
            (host, port.ok_or_else(|| wrong("has no TCP port after its host"))?)
        }
        _ => (rest, HTTPS),
    };
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host = match bracketed {
        Some(literal) => literal.parse::<Ipv6Addr>().ok().map(|ip| ApiHost::Ip(ip.into())),
        // The end of the address can't be told from a port.
        None if host.contains(':') => return Err(wrong("has an IPv6 address without brackets")),
        None => host.parse().ok(),
    };
    let host = host.ok_or_else(|| wrong("names no host"))?;
    if is_this_machine(&host) {
        return Err(refused(
            "is this machine itself, wherever that is",
            "write the address there at which the region reaches the API server (kind: kind get kubeconfig --internal)",
        ));
    }
    Ok((host, port))
}

/// What k3s and kind write, for use on the machine that they run on.
fn is_this_machine(host: &ApiHost) -> bool {
    match host {
        ApiHost::Ip(ip) => ip.to_canonical().is_loopback() || ip.to_canonical().is_unspecified(),
        ApiHost::Dns(name) => name.as_str() == "localhost" || name.as_str().ends_with(".localhost"),
    }
}

/// A server as an error may show it: passwords stand before an `@`, and tokens after a `?`.
fn presentable(server: &str) -> String {
    let server = server.split(['?', '#']).next().unwrap_or_default();
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
