//! One TLS handshake through a door, and what its failure means.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::Door;
use crate::error::{Failure, Kind, Result};
use crate::model::bounds::LetIn;
use crate::model::kubeconfig::Access;
use crate::model::names::{ApiHost, DnsName};
use crate::model::sources::listed;

/// How long one node may take to accept.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the handshake may take; the gateway's own client gives up then, too.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Shakes hands through `door`, checking the server's certificate against the kubeconfig's authority and `name`, and returns the
/// DNS names in that certificate, in its order and without those that no hosts file can hold.
pub async fn certificate_names(door: &Door, name: &ApiHost, access: &Access) -> Result<Vec<DnsName>> {
    let stream = dial(door).await?;
    let connected = Instant::now();
    let server_name = match name {
        ApiHost::Dns(name) => ServerName::try_from(name.to_string())
            .map_err(|error| Failure::new(Kind::Server, error.to_string(), "check the server in the kubeconfig"))?,
        ApiHost::Ip(ip) => ServerName::IpAddress((*ip).into()),
    };
    let connector = TlsConnector::from(Arc::new(client_config(access)?));
    match timeout(HANDSHAKE_TIMEOUT, connector.connect(server_name, stream)).await {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            Ok(certificate.map(dns_names).unwrap_or_default())
        }
        Ok(Err(error)) => Err(explain(door, name, access, &error, connected.elapsed())),
        Err(_) => Err(silent(access, &format!("no answer within {} s", HANDSHAKE_TIMEOUT.as_secs()))),
    }
}

async fn dial(door: &Door) -> Result<TcpStream> {
    let address = door.address();
    let start = Instant::now();
    loop {
        let why = match timeout(DIAL_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", DIAL_TIMEOUT.as_secs()),
        };
        if start.elapsed() > door.patience {
            return Err(Failure::new(
                Kind::NodeUnreachable,
                format!("{} of the region can't be reached from the hub at {address}: {why}", door.node),
                "open the region's ports for the hub (firewall, security group), or choose other nodes, another address type or another entry at its xregion-proxy",
            ));
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn client_config(access: &Access) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&access.ca).flatten());
    if roots.is_empty() {
        return Err(Failure::new(
            Kind::Insecure,
            "the kubeconfig's certificate authority can't be used to verify anything",
            "give the certificate authority of the API server as certificate-authority-data in the kubeconfig",
        ));
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

fn explain(door: &Door, name: &ApiHost, access: &Access, error: &std::io::Error, elapsed: Duration) -> Failure {
    let upstream = format!("{}:{}", access.host, access.port);
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Failure::new(
                Kind::WrongCa,
                format!("the certificate of {upstream} is not signed by the kubeconfig's certificate authority"),
                "get the cluster's kubeconfig anew; if it is right, something between the region and the cluster answers in its place",
            ),
            CertificateError::NotValidForName => wrong_name(&upstream, name, ""),
            CertificateError::NotValidForNameContext { presented, .. } => {
                let plain = |text: &String| text.trim_start_matches("DnsName(\"").trim_end_matches("\")").to_owned();
                wrong_name(&upstream, name, &format!(" but for {}", presented.iter().map(plain).collect::<Vec<_>>().join(", ")))
            }
            other => Failure::new(
                Kind::Certificate,
                format!("the certificate of {upstream} can't be accepted: {other}"),
                "renew it, and check the clocks on both sides",
            ),
        },
        Some(rustls::Error::InvalidMessage(_)) => Failure::new(
            Kind::Certificate,
            format!("{upstream} does not speak TLS"),
            "check host and port of the server in the kubeconfig",
        ),
        Some(other) => {
            Failure::new(Kind::Certificate, format!("no TLS connection to {upstream}: {other}"), "check that it is an API server")
        }
        None if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
            // nginx closes our connection when it gets none upstream: at once if it is refused, after its patience if nobody answers.
            if elapsed >= door.upstream_patience.mul_f32(0.8) {
                silent(access, "the region's proxies get no connection to it")
            } else if let Some(bounds) = told(&door.let_in) {
                // A proxy ends all of them alike.
                Failure::new(
                    Kind::UpstreamRefusing,
                    format!(
                        "{upstream} refuses connections from the region's proxies, or these refuse the hub: they let connections in {bounds}"
                    ),
                    "look in the proxies' log where the hub's connections come from and how they end: with status 403, widen sourceRanges of the cluster or of the region's xregion-proxy; with 503, raise maxConnections there; with 502, check that the API server runs, and on which port",
                )
            } else {
                Failure::new(
                    Kind::UpstreamRefusing,
                    format!("{upstream} refuses connections from the region's proxies"),
                    "check that the API server runs, and on which port",
                )
            }
        }
        None => silent(access, &error.to_string()),
    }
}

/// Which connections are let in, if not all.
fn told(LetIn { sources, connections }: &LetIn) -> Option<String> {
    let from = sources
        .as_ref()
        .map(|sources| if sources.is_empty() { "from nowhere".to_owned() } else { format!("only from {}", listed(sources)) });
    let at_once = connections.map(|most| format!("only {most} at once"));
    let told: Vec<_> = from.into_iter().chain(at_once).collect();
    (!told.is_empty()).then(|| told.join(", "))
}

fn wrong_name(upstream: &str, name: &ApiHost, but: &str) -> Failure {
    Failure::new(
        Kind::WrongName,
        format!("the certificate of {upstream} is not for {name}{but}"),
        "use the server name from the cluster's own kubeconfig, or set tls-server-name there to a name the certificate has",
    )
}

fn silent(access: &Access, why: &str) -> Failure {
    Failure::new(
        Kind::UpstreamSilent,
        format!("{}:{} does not answer the region's proxies: {why}", access.host, access.port),
        "check the way from the region to the API server: routes, firewalls, security groups",
    )
}

fn dns_names(certificate: &CertificateDer<'_>) -> Vec<DnsName> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => name.parse().ok(),
        _ => None,
    };
    names.value.general_names.iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::model::kubeconfig::Credentials;

    struct Authority {
        certificate: rcgen::Certificate,
        issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    }

    fn authority() -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Authority { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    fn access(host: &str, authority: &Authority) -> Access {
        Access {
            host: host.parse().unwrap(),
            port: 6443,
            tls_server_name: None,
            ca: authority.certificate.pem().into_bytes(),
            credentials: Credentials::Token("t".to_owned().into()),
        }
    }

    fn door(listener: &TcpListener) -> Door {
        let address = listener.local_addr().unwrap();
        Door {
            node: "n".into(),
            ip: address.ip(),
            port: address.port(),
            patience: Duration::from_secs(10),
            upstream_patience: Duration::from_millis(500),
            let_in: LetIn { sources: None, connections: None },
        }
    }

    /// A server that accepts one connection and gives it to `serve`.
    async fn serve<F: Future<Output = ()> + Send>(serve: impl FnOnce(TcpStream) -> F + Send + 'static) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = door(&listener);
        tokio::spawn(async move { serve(listener.accept().await.unwrap().0).await });
        door
    }

    async fn tls_server(authority: &Authority, names: &[&str], expired: bool) -> Door {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        if expired {
            params.not_after = (std::time::SystemTime::now() - Duration::from_secs(24 * 3600)).into();
        }
        let certificate = params.signed_by(&key, &authority.issuer).unwrap();
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        serve(|stream| async move {
            let _ = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
        })
        .await
    }

    #[tokio::test]
    async fn the_names_in_the_certificate_are_those_a_hosts_file_can_hold() {
        let ca = authority();
        let names = ["kubernetes", "*.wild.example", "127.0.0.1", "node-1"];
        let door = tls_server(&ca, &names, false).await;
        let found = certificate_names(&door, &"127.0.0.1".parse().unwrap(), &access("127.0.0.1", &ca)).await.unwrap();
        assert_eq!(found.iter().map(DnsName::as_str).collect::<Vec<_>>(), ["kubernetes", "node-1"]);
    }

    #[tokio::test]
    async fn a_wrong_certificate_is_told_by_what_is_wrong() {
        let (ours, theirs) = (authority(), authority());
        let kind = async |signer: &Authority, names: &[&str]| {
            let door = tls_server(signer, names, false).await;
            certificate_names(&door, &"x.example".parse().unwrap(), &access("x.example", &ours)).await.unwrap_err()
        };
        assert_eq!(kind(&theirs, &["x.example"]).await.kind, Kind::WrongCa);
        let wrong_name = kind(&ours, &["y.example"]).await;
        assert_eq!(wrong_name.kind, Kind::WrongName);
        assert!(wrong_name.cause().ends_with("is not for x.example but for y.example"), "{wrong_name}");
        let door = tls_server(&ours, &["x.example"], true).await;
        let expired = certificate_names(&door, &"x.example".parse().unwrap(), &access("x.example", &ours)).await.unwrap_err();
        assert_eq!(expired.kind, Kind::Certificate, "{expired}");
    }

    #[tokio::test]
    async fn an_ended_connection_is_told_by_when_it_ended() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = authority();
        let kind = async |door: Door| {
            certificate_names(&door, &"x.example".parse().unwrap(), &access("x.example", &ca)).await.unwrap_err().kind
        };
        assert_eq!(kind(serve(|stream| async move { drop(stream) }).await).await, Kind::UpstreamRefusing);
        let slow = serve(|stream| async move {
            sleep(Duration::from_millis(500)).await;
            drop(stream);
        });
        assert_eq!(kind(slow.await).await, Kind::UpstreamSilent);
        for (sources, connections, want) in [
            (Some("10.0.0.0/8"), 0, "only from 10.0.0.0/8"),
            (None, 20, "only 20 at once"),
            (Some("10.0.0.0/8"), 20, "only from 10.0.0.0/8, only 20 at once"),
        ] {
            let mut bounded = serve(|stream| async move { drop(stream) }).await;
            let sources = sources.map(|range| [range.parse().unwrap()].into());
            bounded.let_in = LetIn { sources, connections: NonZeroU16::new(connections) };
            let failure = certificate_names(&bounded, &"x.example".parse().unwrap(), &access("x.example", &ca)).await.unwrap_err();
            assert_eq!(failure.kind, Kind::UpstreamRefusing);
            assert!(failure.cause().ends_with(&format!("or these refuse the hub: they let connections in {want}")), "{failure}");
        }
        let plain = serve(|mut stream| async move {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        });
        assert_eq!(kind(plain.await).await, Kind::Certificate);
    }
}
