//! nginx's record of each session that ended: counted, and passed on as this proxy's access log, one JSON object a line on standard output.

use std::io::Write as _;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::ChildStdout;

use super::metrics::Metrics;

/// How many lines wait for whoever reads this proxy's log.
const WAITING: usize = 1024;

/// Follows the records to their end. They must be read in any case, as nginx waits for whoever does: a log that nobody reads loses lines.
pub(super) async fn follow(records: ChildStdout, metrics: Metrics) {
    let log = access_log();
    let mut lines = BufReader::new(records).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        match serde_json::from_slice(&line) {
            Ok(session) => metrics.ended(&session),
            Err(error) => tracing::warn!(%error, "a record of nginx's can't be read"),
        }
        if let Err(TrySendError::Full(_)) = log.try_send(line) {
            metrics.line_lost();
        }
    }
}

/// Standard output, written to by a thread of its own: it may block.
fn access_log() -> SyncSender<Vec<u8>> {
    let (sender, lines) = sync_channel(WAITING);
    std::thread::spawn(move || write(&lines));
    sender
}

fn write(lines: &Receiver<Vec<u8>>) {
    for line in lines {
        // Nobody to tell: this is where it would be said.
        let _ = std::io::stdout().write_all(&[&line[..], b"\n"].concat());
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{Instant, sleep};

    use super::super::nginx::{Nginx, inspect};
    use super::super::plan::Plan;
    use super::*;
    use crate::model::bounds::Bounds;
    use crate::model::names::{HubId, Slot};
    use crate::model::nginx::{Limits, Served};
    use crate::model::region::Timeouts;
    use crate::model::route::Route;

    const LIMITS: Limits =
        Limits { timeouts: Timeouts { connect_seconds: 1, idle_seconds: 60, drain_seconds: 60 }, bounds: Bounds::NONE };
    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    async fn free_port() -> u16 {
        TcpListener::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap().port()
    }

    fn served(cluster: &str, listen: u16, port: u16) -> Served {
        let (hub, cluster, host) = (HubId::new("hub"), cluster.parse().unwrap(), "api.example".parse().unwrap());
        let route = Route {
            slot: Slot::First,
            hub,
            cluster,
            host,
            port,
            listen,
            bounds: Bounds::NONE,
            server_name: None,
            alias: None,
            proven_at: None,
            uid: String::new(),
        };
        Served { route, addresses: vec![LOCAL] }
    }

    /// The first words of a TLS client that asks for this name.
    fn client_hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let mut words = Vec::new();
        let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
        rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut words).unwrap();
        words
    }

    #[tokio::test]
    async fn what_shares_a_port_is_counted_by_its_name_beside_what_leads_to_the_same_cluster_by_a_port() {
        let directory = tempfile::tempdir().unwrap();
        let (listen, upstream) = (free_port().await, thrice().await.port());
        let mut named = served("named", listen, upstream);
        named.route.server_name = Some("api.example".parse().unwrap());
        let serving = [("named".into(), named), ("ported".into(), served("ported", listen, upstream))].into();
        let plan = Plan { served: serving, ..Plan::default() };
        let nginx = Path::new("/usr/sbin/nginx");
        let host = inspect(nginx, directory.path(), free_port().await).await.unwrap();
        let by_name = host.sni_listen;
        let files = host.render(LIMITS, plan.served.values());
        let mut nginx = Nginx::start(nginx, host, files).await.unwrap();
        let metrics = Metrics::new();
        metrics.serving(&plan.served, 0);
        tokio::spawn(follow(nginx.take_access_log().unwrap(), metrics.clone()));

        let mut ported = TcpStream::connect((LOCAL, listen)).await.unwrap();
        talk(&mut ported, 100).await;
        let hello = client_hello("api.example");
        let mut open = TcpStream::connect((LOCAL, by_name)).await.unwrap();
        open.write_all(&hello).await.unwrap();
        open.read_exact(&mut vec![0; 3 * hello.len()]).await.unwrap();
        // Nobody's, and so in nobody's record.
        let mut stranger = TcpStream::connect((LOCAL, by_name)).await.unwrap();
        stranger.write_all(&client_hello("other.example")).await.unwrap();
        let _ = stranger.read(&mut [0]).await;

        let length = hello.len() as u64;
        let settled = async |want: [(&str, [u64; 5]); 2]| {
            let (hub, start) = (HubId::new("hub"), Instant::now());
            let sums = || metrics.traffic().of_hub(&hub).map(|(name, sum)| (name.to_string(), sum.into())).collect::<Vec<_>>();
            let want = want.map(|(name, sum)| (name.to_owned(), sum));
            while sums() != want {
                assert!(start.elapsed() < Duration::from_secs(5), "{:?} is not {want:?}", sums());
                sleep(Duration::from_millis(20)).await;
            }
        };
        settled([("named", [0, 0, 1, length, 3 * length]), ("ported", [0, 0, 1, 100, 300])]).await;
        drop((open, ported));
        settled([("named", [1, 0, 0, length, 3 * length]), ("ported", [1, 0, 0, 100, 300])]).await;
        nginx.stop(Duration::ZERO).await;
    }

    /// An upstream that answers three bytes for each that it gets.
    async fn thrice() -> SocketAddr {
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut bytes = [0; 1000];
                    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                        stream.write_all(&[0; 3000][..3 * read]).await.unwrap();
                    }
                });
            }
        });
        address
    }

    async fn talk(stream: &mut TcpStream, length: usize) {
        stream.write_all(&vec![1; length]).await.unwrap();
        stream.read_exact(&mut vec![0; 3 * length]).await.unwrap();
    }

    #[tokio::test]
    async fn every_byte_is_counted_once_whether_its_session_ended_or_is_open() {
        let directory = tempfile::tempdir().unwrap();
        let (busy, dead) = (free_port().await, free_port().await);
        let plan = Plan {
            served: [
                ("busy".into(), served("busy", busy, thrice().await.port())),
                ("dead".into(), served("dead", dead, free_port().await)),
            ]
            .into(),
            ..Plan::default()
        };
        let nginx = Path::new("/usr/sbin/nginx");
        let host = inspect(nginx, directory.path(), free_port().await).await.unwrap();
        let files = host.render(LIMITS, plan.served.values());
        let mut nginx = Nginx::start(nginx, host, files).await.unwrap();
        let metrics = Metrics::new();
        metrics.set_nginx(nginx.id());
        metrics.serving(&plan.served, 0);
        tokio::spawn(follow(nginx.take_access_log().unwrap(), metrics.clone()));

        for length in [100, 2000] {
            let mut stream = TcpStream::connect((LOCAL, busy)).await.unwrap();
            talk(&mut stream, length).await;
        }
        let mut open = TcpStream::connect((LOCAL, busy)).await.unwrap();
        talk(&mut open, 50).await;
        drop(TcpStream::connect((LOCAL, dead)).await.unwrap().read(&mut [0]).await);

        let hub = HubId::new("hub");
        let sums = |metrics: &Metrics| {
            metrics.traffic().of_hub(&hub).map(|(name, sum)| (name.to_string(), <[u64; 5]>::from(sum))).collect::<Vec<_>>()
        };
        let settled = async |want: [(&str, [u64; 5]); 2]| {
            let start = Instant::now();
            let want = want.map(|(name, sum)| (name.to_owned(), sum));
            while sums(&metrics) != want {
                assert!(start.elapsed() < Duration::from_secs(5), "{:?} is not {want:?}", sums(&metrics));
                sleep(Duration::from_millis(20)).await;
            }
        };
        settled([("busy", [2, 0, 1, 2150, 6450]), ("dead", [1, 1, 0, 0, 0])]).await;
        let text = metrics.text();
        let of = format!("cluster=\"busy\",hub=\"{}\"", hub.short());
        for line in [
            format!("xregion_sessions_total{{{of},status=\"200\"}} 2"),
            format!("xregion_session_bytes_total{{{of},direction=\"to_cluster\"}} 2100"),
            format!("xregion_carried_bytes_total{{{of},direction=\"to_cluster\"}} 2150"),
            format!("xregion_open_sessions{{{of}}} 1"),
            format!("xregion_open_bytes{{{of},direction=\"from_cluster\"}} 150"),
            format!("xregion_sessions_total{{cluster=\"dead\",hub=\"{}\",status=\"502\"}} 1", hub.short()),
            format!("xregion_session_duration_seconds_count{{{of}}} 2"),
            format!("xregion_sessions_total{{{of},status=\"502\"}} 0"),
            "xregion_reloads_total{outcome=\"rejected\"} 0".to_owned(),
            "xregion_routes{state=\"served\"} 2".to_owned(),
            "xregion_draining_workers 0".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }

        // A change leaves the old worker with what is open, which is counted on.
        let files = nginx.host().render(LIMITS, []);
        nginx.apply(files).await;
        talk(&mut open, 50).await;
        let start = Instant::now();
        while !metrics.text().contains("xregion_draining_workers 1\n") {
            assert!(start.elapsed() < Duration::from_secs(5), "{}", metrics.text());
        }
        settled([("busy", [2, 0, 1, 2200, 6600]), ("dead", [1, 1, 0, 0, 0])]).await;
        let carried = |metrics: &Metrics| {
            let (text, name) = (metrics.text(), format!("xregion_carried_bytes_total{{{of},direction=\"from_cluster\"}} "));
            text.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap()
        };
        assert_eq!(carried(&metrics), 6600);
        drop(open);
        // Neither the kernel nor the access log has the session for a moment; no counter may go back for that.
        while sums(&metrics)[0].1 != [3, 0, 0, 2200, 6600] {
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", sums(&metrics));
            assert!(carried(&metrics) >= 6600);
            sleep(Duration::from_millis(1)).await;
        }
        assert!(carried(&metrics) >= 6600);
        while !metrics.text().contains("xregion_draining_workers 0\n") {
            assert!(start.elapsed() < Duration::from_secs(5), "{}", metrics.text());
        }
        nginx.stop(Duration::ZERO).await;
    }
}
