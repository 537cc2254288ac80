//! The agent with a real nginx: what it does to connections, and what it tells a cluster's API (which is played here).

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[path = "agent/cluster.rs"]
mod cluster;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::slice::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::ResolverConfig;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use xregion::agent::nginx::{Nginx, Outcome, inspect};
use xregion::agent::workers::{MOST, draining};
use xregion::agent::{AgentArgs, serve};
use xregion::model::bounds::Bounds;
use xregion::model::names::{HubId, Slot};
use xregion::model::nginx::{Limits, Served};
use xregion::model::region::{SNI_LISTEN, Timeouts};
use xregion::model::report::Reason;
use xregion::model::route::Route;

use self::cluster::{Cluster, config_map, settings};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LIMITS: Limits =
    Limits { timeouts: Timeouts { connect_seconds: 1, idle_seconds: 60, drain_seconds: 60 }, bounds: Bounds::NONE };

/// With at most so many connections for each route.
fn most(connections: u16) -> Limits {
    Limits { bounds: Bounds { connections: NonZeroU16::new(connections), ..Bounds::NONE }, ..LIMITS }
}

fn nginx_path() -> PathBuf {
    let path = PathBuf::from("/usr/sbin/nginx");
    assert!(path.exists(), "these tests run the real nginx; install it with: apt-get install nginx libnginx-mod-stream");
    path
}

/// A port nobody listens on, of those a route may have.
async fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind((LOCAL, 0)).await.unwrap().local_addr().unwrap().port();
        if port >= 8000 {
            return port;
        }
    }
}

/// An upstream that sends back what it gets.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await
            });
        }
    });
    address
}

fn route(cluster: &str, host: &str, port: u16, listen: u16) -> Route {
    let (hub, cluster, host) = (HubId::new("hub-uid"), cluster.parse().unwrap(), host.parse().unwrap());
    Route {
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
    }
}

/// A route that is told from others by this name.
fn named(cluster: &str, name: &str, port: u16) -> Served {
    let mut named = served(cluster, SNI_LISTEN, port, &["127.0.0.1"]);
    named.route.server_name = Some(name.parse().unwrap());
    named
}

/// Asks a port for a TLS name, and expects back what it sent.
async fn answers_to(port: u16, name: &str) {
    let hello = client_hello(name);
    let mut stream = TcpStream::connect((LOCAL, port)).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    let mut answer = vec![0; hello.len()];
    timeout(Duration::from_secs(5), stream.read_exact(&mut answer))
        .await
        .expect("an answer")
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(answer, hello, "{name}");
}

fn served(cluster: &str, listen: u16, port: u16, addresses: &[&str]) -> Served {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    Served { route: route(cluster, "api.example", port, listen), addresses }
}

/// Sends a word through a connection and expects it back.
async fn echoes(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"word").await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"word");
    Ok(())
}

async fn dial(port: u16) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect((LOCAL, port)).await?;
    echoes(&mut stream).await?;
    Ok(stream)
}

/// Sends something to a port, and waits for the other side's end of the connection; it must not say anything.
async fn is_closed(port: u16, words: &[u8]) {
    let mut stream = TcpStream::connect((LOCAL, port)).await.unwrap();
    stream.write_all(words).await.unwrap();
    let end = timeout(Duration::from_secs(10), stream.read(&mut [0])).await.expect("it stays open");
    assert!(!matches!(end, Ok(1..)), "somebody answered");
}

/// The first words of a TLS client that asks for this name.
fn client_hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut words = Vec::new();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut words).unwrap();
    words
}

async fn start(directory: &Path, served: &[Served]) -> Nginx {
    let host = inspect(&nginx_path(), directory, free_port().await).await.unwrap();
    let files = host.render(LIMITS, served);
    Nginx::start(&nginx_path(), host, files).await.unwrap()
}

async fn apply(nginx: &mut Nginx, served: &[Served]) -> Outcome {
    let files = nginx.host().render(LIMITS, served);
    nginx.apply(files).await
}

/// The nginx processes that run for `directory`: a master's command line names it, and its workers end before it does.
fn processes(directory: &Path) -> usize {
    let lines = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(directory.to_str().unwrap())).count()
}

#[tokio::test]
async fn a_route_carries_no_more_connections_at_once_than_may_be() {
    let directory = TempDir::new().unwrap();
    let upstream = echo().await;
    let (one, other) = (free_port().await, free_port().await);
    let routes = [served("one", one, upstream.port(), &["127.0.0.1"]), served("other", other, upstream.port(), &["127.0.0.1"])];
    let mut nginx = start(directory.path(), &routes).await;
    let files = nginx.host().render(most(2), &routes);
    assert_eq!(nginx.apply(files).await, Outcome::Reloaded { generation: 2 });

    let first = dial(one).await.unwrap();
    let _second = dial(one).await.unwrap();
    assert!(dial(one).await.is_err(), "two at once");
    let _elsewhere = dial(other).await.expect("another route has a count of its own");
    drop(first);
    let again = timeout(Duration::from_secs(5), async {
        while dial(one).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    again.await.expect("what ended makes room");
    nginx.stop(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_route_s_own_limit_holds_within_its_region_s_and_touches_no_other_route() {
    let directory = TempDir::new().unwrap();
    let upstream = echo().await;
    let (few, more) = (free_port().await, free_port().await);
    let of = |name: &str, listen: u16, most: u16| {
        let mut served = served(name, listen, upstream.port(), &["127.0.0.1"]);
        served.route.bounds.connections = NonZeroU16::new(most);
        served
    };
    // As many as a port lets in at once, of more than either route of this test does.
    let lets_in = async |port: u16| {
        let mut open = Vec::new();
        for _ in 0..6 {
            open.extend(dial(port).await.ok());
        }
        open
    };
    let mut nginx = start(directory.path(), &[of("few", few, 2), of("more", more, 4)]).await;
    let (mut of_few, of_more) = (lets_in(few).await, lets_in(more).await);
    assert_eq!((of_few.len(), of_more.len()), (2, 4));
    for stream in &mut of_few {
        echoes(stream).await.expect("what is over the limit ends, and nothing else");
    }

    // What is open counts on, and is not cut.
    let routes = [of("few", few, 3), of("more", more, 4)];
    assert_eq!(apply(&mut nginx, &routes).await, Outcome::Reloaded { generation: 2 });
    of_few.extend(lets_in(few).await);
    assert_eq!((of_few.len(), lets_in(more).await.len()), (3, 0), "a raised limit makes room at once, for its own route");
    let files = nginx.host().render(most(1), &routes);
    assert_eq!(nginx.apply(files).await, Outcome::Reloaded { generation: 3 });
    drop(of_more);
    let again = timeout(Duration::from_secs(5), async {
        loop {
            let open = lets_in(more).await;
            if !open.is_empty() {
                return open;
            }
        }
    });
    assert_eq!(again.await.expect("what ended makes room").len(), 1, "a route carries no more than its region lets it");
    for stream in &mut of_few {
        echoes(stream).await.expect("what is open stays open");
    }
    nginx.stop(Duration::ZERO).await;
}

/// A connection from one of this machine's addresses, on which a word came back.
async fn dial_from(source: [u8; 4], port: u16) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    let mut stream = socket.connect((LOCAL, port).into()).await?;
    echoes(&mut stream).await?;
    Ok(stream)
}

#[tokio::test]
async fn only_who_is_let_in_by_region_and_route_gets_through() {
    let directory = TempDir::new().unwrap();
    let upstream = echo().await;
    let (wide, narrow, nobody) = (free_port().await, free_port().await, free_port().await);
    let of = |name: &str, listen: u16, ranges: Option<&str>| {
        let mut served = served(name, listen, upstream.port(), &["127.0.0.1"]);
        served.route.bounds.sources = ranges.map(|ranges| ranges.parse().unwrap()).unwrap_or_default();
        served
    };
    let routes = [of("wide", wide, None), of("narrow", narrow, Some("127.0.0.2")), of("nobody", nobody, Some("192.0.2.0/24"))];
    let (hub, neighbour, stranger) = ([127, 0, 0, 2], [127, 0, 0, 3], [127, 0, 1, 1]);
    let mut nginx = start(directory.path(), &routes).await;
    let lets_in = async |port: u16| {
        let mut let_in = Vec::new();
        for source in [hub, neighbour, stranger] {
            let_in.push(dial_from(source, port).await.is_ok());
        }
        let_in
    };
    assert_eq!(lets_in(wide).await, [true, true, true]);
    assert_eq!(lets_in(narrow).await, [true, false, false]);
    assert_eq!(lets_in(nobody).await, [false, false, false]);

    let mut open = dial_from(stranger, wide).await.unwrap();
    let limits = || Limits { bounds: Bounds { sources: "127.0.0.0/24".parse().unwrap(), ..Bounds::NONE }, ..LIMITS };
    let files = nginx.host().render(limits(), &routes);
    assert_eq!(nginx.apply(files).await, Outcome::Reloaded { generation: 2 });
    assert_eq!(lets_in(wide).await, [true, true, false], "the region's ranges hold for every route");
    assert_eq!(lets_in(narrow).await, [true, false, false]);
    echoes(&mut open).await.expect("what is open stays open");
    let files = nginx.host().render(limits(), &[of("narrow", narrow, Some("127.0.1.1"))]);
    assert_eq!(nginx.apply(files).await, Outcome::Reloaded { generation: 3 });
    assert_eq!(lets_in(narrow).await, [false, false, false], "a route opens nothing that its region doesn't");
    nginx.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn the_region_s_own_port_is_open_from_the_start_and_leads_nowhere() {
    let directory = TempDir::new().unwrap();
    let mut nginx = start(directory.path(), &[]).await;
    let port = nginx.host().sni_listen;
    let words =
        [client_hello("api.example"), client_hello("192.0.2.1"), client_hello("localhost"), b"GET / HTTP/1.1\r\n\r\n".to_vec()];
    for words in words {
        is_closed(port, &words).await;
    }
    // Who says nothing is heard out for a while.
    is_closed(port, b"").await;
    // A proxy that ends closes it first, and by that the hub knows.
    assert!(matches!(nginx.close_own_port().await, Outcome::Reloaded { .. }));
    TcpStream::connect((LOCAL, port)).await.expect_err("it is closed");
    nginx.stop(Duration::ZERO).await;
}

/// An upstream that must not be reached.
async fn trap() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
    let (address, reached) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = reached.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (address, reached)
}

#[tokio::test]
async fn names_are_told_apart_on_one_port_and_whoever_asks_for_no_name_of_a_cluster_reaches_none() {
    let directory = TempDir::new().unwrap();
    let (upstream, (forbidden, reached)) = (echo().await, trap().await);
    // Names that mean something to nginx, or begin like what does, where the name of a cluster stands.
    let names = ["api.example", "default", "include", "hostnames", "volatile", "n", "t.example", "r"];
    let mut routes: Vec<_> = names.iter().enumerate().map(|(i, name)| named(&format!("c{i}"), name, upstream.port())).collect();
    // A cluster whose name makes nginx's `if` take it for false.
    routes.push(named("0", "zero.example", upstream.port()));
    let port_mode = free_port().await;
    routes.push(served("ported", port_mode, forbidden.port(), &["127.0.0.1"]));
    let mut nginx = start(directory.path(), &routes).await;
    let port = nginx.host().sni_listen;
    for name in names.into_iter().chain(["zero.example", "API.example"]) {
        answers_to(port, name).await;
    }
    let label = format!("ported-{}", HubId::new("hub-uid").short());
    let address = forbidden.to_string();
    for name in ["other.example", "a.api.example", "example", "ported", &label, "localhost", "127.0.0.1", "ap.example"] {
        is_closed(port, &client_hello(name)).await;
    }
    for words in [address.as_bytes(), b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n", b"\x16\x03\x01\xff\xff"] {
        is_closed(port, words).await;
    }
    assert_eq!(reached.load(Ordering::SeqCst), 0, "a cluster was reached by a name that is not its own");

    // Routes by name come and go like others, and what is open stays.
    let hello = client_hello("api.example");
    let mut open = TcpStream::connect((LOCAL, port)).await.unwrap();
    open.write_all(&hello).await.unwrap();
    open.read_exact(&mut vec![0; hello.len()]).await.unwrap();
    assert!(matches!(apply(&mut nginx, &routes[1..]).await, Outcome::Reloaded { .. }));
    is_closed(port, &hello).await;
    echoes(&mut open).await.expect("a connection outlives its route");
    nginx.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_thousand_long_names_fit() {
    let directory = TempDir::new().unwrap();
    let upstream = echo().await;
    let label = "x".repeat(63);
    let name = |i: usize| format!("{i:057}.{label}.{label}.{label}");
    let routes: Vec<_> = (0..1000).map(|i| named(&format!("{i:063}"), &name(i), upstream.port())).collect();
    assert!((249..=253).contains(&name(0).len()), "{}", name(0).len());
    let nginx = start(directory.path(), &routes).await;
    for i in [0, 499, 999] {
        answers_to(nginx.host().sni_listen, &name(i)).await;
    }
    nginx.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn routes_come_change_and_go_while_connections_stay() {
    let directory = TempDir::new().unwrap();
    let upstream = echo().await;
    let (good, late, bad) = (free_port().await, free_port().await, free_port().await);
    let one = served("one", good, upstream.port(), &["127.0.0.1"]);
    let mut nginx = start(directory.path(), &[]).await;
    assert!(dial(good).await.is_err(), "nothing is served yet");

    let start = Instant::now();
    assert_eq!(apply(&mut nginx, from_ref(&one)).await, Outcome::Reloaded { generation: 2 });
    assert!(start.elapsed() < Duration::from_secs(1), "a reload took {:?}", start.elapsed());
    let mut open = dial(good).await.unwrap();
    assert_eq!(apply(&mut nginx, from_ref(&one)).await, Outcome::Unchanged);

    // Nobody listens at this upstream, nor at the first address of the next: both are their own trouble.
    let dead = served("dead", bad, free_port().await, &["127.0.0.1"]);
    let second = served("second", late, upstream.port(), &["127.0.0.9", "127.0.0.1"]);
    assert_eq!(apply(&mut nginx, &[one.clone(), dead, second]).await, Outcome::Reloaded { generation: 3 });
    assert!(dial(bad).await.is_err());
    for _ in 0..4 {
        dial(good).await.unwrap();
        dial(late).await.unwrap();
    }

    assert_eq!(apply(&mut nginx, &[]).await, Outcome::Reloaded { generation: 4 });
    assert!(dial(good).await.is_err(), "the route is gone");
    echoes(&mut open).await.expect("a connection outlives its route");

    let kept = directory.path().join("generations").read_dir().unwrap().count();
    assert_eq!(kept, 2, "generations are forgotten");
    let stop = tokio::spawn(nginx.stop(Duration::from_secs(10)));
    sleep(Duration::from_millis(300)).await;
    echoes(&mut open).await.expect("a connection has time to end");
    drop(open);
    timeout(Duration::from_secs(5), stop).await.expect("nginx ends with its last connection").unwrap();
    assert_eq!(processes(directory.path()), 0, "a process was left behind");
}

/// Waits until so many of nginx's workers are of earlier configurations.
async fn until_draining(nginx: &Nginx, want: usize) {
    let (start, master) = (Instant::now(), nginx.id().unwrap());
    while draining(master).len() != want {
        assert!(start.elapsed() < Duration::from_secs(10), "not {want} old workers: {:?}", draining(master));
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_is_open_at_a_change_is_cut_when_its_time_is_over_and_leaves_no_worker_behind() {
    let directory = TempDir::new().unwrap();
    let (upstream, port) = (echo().await, free_port().await);
    let one = served("one", port, upstream.port(), &["127.0.0.1"]);
    let timeouts = Timeouts { drain_seconds: 2, ..LIMITS.timeouts };
    let mut nginx = start(directory.path(), &[]).await;
    let files = nginx.host().render(Limits { timeouts, ..LIMITS }, [&one]);
    assert_eq!(nginx.apply(files).await, Outcome::Reloaded { generation: 2 });
    let mut open = dial(port).await.unwrap();

    // What is open keeps the bound that it came in under.
    let start = Instant::now();
    assert_eq!(apply(&mut nginx, &[]).await, Outcome::Reloaded { generation: 3 });
    echoes(&mut open).await.expect("what is open outlives the change");
    until_draining(&nginx, 1).await;
    let cut = timeout(Duration::from_secs(10), async {
        while echoes(&mut open).await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    cut.await.expect("it is cut at last");
    assert!(start.elapsed() >= Duration::from_secs(timeouts.drain_seconds.into()), "it was cut after {:?}", start.elapsed());
    until_draining(&nginx, 0).await;
    nginx.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn of_too_many_old_workers_the_oldest_ends_and_what_the_others_carry_stays() {
    let directory = TempDir::new().unwrap();
    let (upstream, port) = (echo().await, free_port().await);
    let one = served("one", port, upstream.port(), &["127.0.0.1"]);
    let two = served("two", free_port().await, upstream.port(), &["127.0.0.1"]);
    let mut nginx = start(directory.path(), from_ref(&one)).await;
    // Each change leaves one worker that carries something, and room is kept for the two that the next may leave.
    let mut open = Vec::new();
    let last = u64::try_from(MOST).unwrap() + 1;
    for generation in 2..=last {
        open.push(dial(port).await.unwrap());
        let routes = if generation % 2 == 0 { vec![one.clone(), two.clone()] } else { vec![one.clone()] };
        assert_eq!(apply(&mut nginx, &routes).await, Outcome::Reloaded { generation });
    }
    until_draining(&nginx, MOST - 1).await;
    echoes(&mut open.remove(0)).await.expect_err("the oldest ends");
    for stream in &mut open {
        echoes(stream).await.expect("the others carry on");
    }
    // Nobody took the place of the one that ended, and nginx goes on.
    let mut new = dial(port).await.unwrap();
    assert_eq!(apply(&mut nginx, &[]).await, Outcome::Reloaded { generation: last + 1 });
    until_draining(&nginx, MOST - 1).await;
    echoes(&mut new).await.expect("what came last carries on");
    nginx.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn what_nginx_refuses_leaves_the_last_good_configuration() {
    let directory = TempDir::new().unwrap();
    let upstream = echo().await;
    let (good, taken) = (free_port().await, free_port().await);
    let one = served("one", good, upstream.port(), &["127.0.0.1"]);
    let mut nginx = start(directory.path(), from_ref(&one)).await;
    let mut open = dial(good).await.unwrap();

    let mut broken = nginx.host().render(LIMITS, [&one]);
    broken.insert("routes/broken.conf".into(), "nonsense;\n".into());
    let Outcome::Rejected { message } = nginx.apply(broken).await else { panic!("nginx took nonsense") };
    assert!(message.contains("unknown directive \"nonsense\""), "{message}");

    // `nginx -t` does not see that somebody else has the port; the reload does.
    let holder = TcpListener::bind(("0.0.0.0", taken)).await.unwrap();
    let two = served("two", taken, upstream.port(), &["127.0.0.1"]);
    let Outcome::Rejected { message } = apply(&mut nginx, &[one.clone(), two.clone()]).await else { panic!("the port was taken") };
    assert!(message.contains("Address already in use") || message.contains("could not bind"), "{message}");
    dial(good).await.unwrap();

    drop(holder);
    assert!(matches!(apply(&mut nginx, &[one, two]).await, Outcome::Reloaded { .. }));
    dial(taken).await.unwrap();
    echoes(&mut open).await.unwrap();
    nginx.stop(Duration::ZERO).await;
    assert_eq!(processes(directory.path()), 0, "a process was left behind");
}

#[tokio::test]
async fn an_nginx_that_cant_be_used_is_told_in_a_sentence() {
    let directory = TempDir::new().unwrap();
    let error = inspect(Path::new("/nowhere/nginx"), directory.path(), 7443).await.unwrap_err();
    assert!(error.to_string().contains("can't run /nowhere/nginx"), "{error}");
    let error = inspect(Path::new("/bin/true"), directory.path(), 7443).await.unwrap_err();
    assert!(error.to_string().contains("no stream module"), "{error}");
}

async fn probe(port: u16, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect((LOCAL, port)).await.ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

/// Waits until nobody listens on a port any more.
async fn until_closed(port: u16) {
    let closed = async {
        while TcpStream::connect((LOCAL, port)).await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(10), closed).await.expect("a closed port");
}

async fn until_probed(port: u16, path: &str, want: Option<u16>) {
    let start = Instant::now();
    while probe(port, path).await != want {
        assert!(start.elapsed() < Duration::from_secs(10), "{path} did not become {want:?} within 10 s");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_agent_follows_the_cluster_and_says_what_it_serves() {
    let directory = TempDir::new().unwrap();
    let (health_port, sni_listen, listen) = (free_port().await, free_port().await, free_port().await);
    let first = route("first", "192.0.2.1", 443, listen);
    let own = route("own", "192.0.2.21", 443, free_port().await);
    let clash = route("clash", "192.0.2.3", 443, listen);
    let mut cluster = Cluster::new(vec![config_map(&first, 1)]);
    let nobody = ResolverConfig::from_name_servers(vec![]);
    let resolver = TokioResolver::builder_with_config(nobody, TokioRuntimeProvider::default()).build().unwrap();
    let args = AgentArgs {
        nginx: nginx_path(),
        dir: directory.path().to_owned(),
        health_port,
        sni_listen,
        pod_name: "proxy-1".into(),
        pod_uid: "u1".into(),
        pod_namespace: "vela-system".into(),
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let agent = tokio::spawn(serve(args, cluster.client.clone(), resolver, async move {
        let _ = stopped.await;
    }));

    until_probed(health_port, "/livez", Some(200)).await;
    cluster.report("an empty first report", BTreeMap::is_empty).await;
    assert_eq!(probe(health_port, "/readyz").await, Some(503), "the settings are missing: nothing may be served");
    cluster.tell("ADDED", &settings());
    cluster.report("the first route", |routes| routes.get(&first.name()) == Some(&None)).await;
    until_probed(health_port, "/readyz", Some(200)).await;
    TcpStream::connect((LOCAL, listen)).await.expect("nginx listens");

    cluster.tell("ADDED", &config_map(&own, 3));
    cluster.tell("ADDED", &config_map(&clash, 4));
    let unresolved = route("unresolved", "api.example", 443, free_port().await);
    cluster.tell("ADDED", &config_map(&unresolved, 5));
    // `nginx -t` would not see this, and the reload would fail for everybody.
    let holder = TcpListener::bind(("0.0.0.0", free_port().await)).await.unwrap();
    let taken = route("taken", "192.0.2.5", 443, holder.local_addr().unwrap().port());
    cluster.tell("ADDED", &config_map(&taken, 6));
    let of_name = |cluster: &str, host: &str| {
        let server_name = Some("api.example".parse().unwrap());
        Route { listen: SNI_LISTEN, server_name, ..route(cluster, host, 443, 0) }
    };
    let [by_name, by_same_name, by_taken_name] =
        [("name-1", "192.0.2.6"), ("name-2", "192.0.2.6"), ("name-3", "192.0.2.7")].map(|(c, h)| of_name(c, h));
    for (version, route) in [(7, &by_name), (8, &by_same_name), (9, &by_taken_name)] {
        cluster.tell("ADDED", &config_map(route, version));
    }
    // Equally old, so the name decides: the clash is now first and takes the port over.
    let wanted: BTreeMap<_, _> = [
        (&first, Some(Reason::Invalid)),
        (&own, Some(Reason::Refused)),
        (&clash, None),
        (&unresolved, Some(Reason::Unanswered)),
        (&taken, Some(Reason::Rejected)),
        (&by_name, None),
        (&by_same_name, None),
        (&by_taken_name, Some(Reason::Invalid)),
    ]
    .map(|(route, problem)| (route.name(), problem))
    .into();
    cluster.report("a reason for each route", |routes| *routes == wanted).await;
    cluster.tell("DELETED", &config_map(&clash, 10));
    cluster.report("the port handed back", |routes| routes.get(&first.name()) == Some(&None)).await;
    assert_eq!(probe(health_port, "/readyz").await, Some(200), "an upstream's trouble is no proxy's");

    let start = Instant::now();
    stop.send(()).unwrap();
    until_closed(sni_listen).await;
    assert_eq!(probe(health_port, "/readyz").await, Some(200), "what still comes in is not dropped");
    TcpStream::connect((LOCAL, listen)).await.expect("nginx accepts until nobody sends it connections any more");
    timeout(Duration::from_secs(20), agent).await.expect("the agent ends").unwrap().unwrap();
    assert!(start.elapsed() >= Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(processes(directory.path()), 0, "a process was left behind");
}
