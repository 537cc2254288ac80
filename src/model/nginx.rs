//! nginx's configuration, rendered from routes for the nginx that is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::bounds::Bounds;
use super::names::DnsName;
use super::region::Timeouts;
use super::route::{Mode, Route};
use super::sources::SourceRange;

/// Connections a worker can hold for traffic: a session takes two. nginx's own default of 512 is 256 sessions.
const CONNECTIONS: usize = 8192;
/// Workers. They only copy bytes, and with two a reload or a slow accept of one never stops the other.
pub const WORKERS: usize = 2;
/// Open files a worker needs besides connections and listeners: logs, sockets to the master, event queues.
const OTHER_FILES: u64 = 64;
/// What paths may hold: they stand unquoted in the configuration.
const PATH_CHARACTERS: &str = "/._-";
/// Longest directory: the path of a unix socket below it must fit 107 bytes.
const LONGEST_DIRECTORY: usize = 80;
/// The server for connections that are told apart by name.
pub const SNI_FILE: &str = "sni.conf";
/// Seconds a connection has to say which name it asks for. A client sends that first thing.
const PREREAD_SECONDS: u32 = 5;
/// The name of its access log's format, which no cluster's can be: those end with a hash.
const SNI_LOG: &str = "xregion-sni";
/// What stands in it beside what is in every route's: nginx receives a session's first bytes, which tell its name, without counting them.
const FORWARDED: &str = r#","forwarded":"$upstream_bytes_sent""#;
/// Bytes of a bucket of nginx's hashes of names, each of which must fit with two pointers, and how many buckets there are at most.
const BUCKET: usize = 512;
const BUCKETS: usize = 8192;

/// What `nginx -V` says about a build that matters here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Build {
    /// Its version, for the log.
    pub version: String,
    /// The stream module to load; none: it is built in.
    pub stream_module: Option<PathBuf>,
    /// The user its workers change to when it starts as root.
    pub user: String,
}

impl Build {
    /// Reads the output of `nginx -V`.
    pub fn parse(output: &str) -> Result<Self, String> {
        let arguments =
            || output.lines().filter_map(|line| line.strip_prefix("configure arguments:")).flat_map(str::split_whitespace);
        let value = |key: &str| arguments().find_map(|argument| argument.strip_prefix(key)?.strip_prefix('='));
        let version = output.lines().find_map(|line| line.strip_prefix("nginx version: ")).unwrap_or("unknown").trim();
        let modules = || match value("--modules-path") {
            Some(path) => PathBuf::from(path),
            None => Path::new(value("--prefix").unwrap_or("/usr/local/nginx")).join("modules"),
        };
        let stream_module = match (arguments().any(|argument| argument == "--with-stream"), value("--with-stream")) {
            (true, _) => None,
            (false, Some("dynamic")) => Some(modules().join("ngx_stream_module.so")),
            _ => return Err(format!("{version} has no stream module; use an nginx built with --with-stream")),
        };
        if !arguments().any(|argument| argument == "--with-stream_ssl_preread_module") {
            return Err(format!("{version} can't read TLS names; use an nginx built with --with-stream_ssl_preread_module"));
        }
        Ok(Self { version: version.to_owned(), stream_module, user: value("--user").unwrap_or("nobody").to_owned() })
    }
}

/// The process and the machine a configuration is for.
#[derive(Clone, Debug)]
pub struct Host {
    /// The nginx.
    pub build: Build,
    /// The only directory that is written to.
    pub directory: PathBuf,
    /// Whether sockets can listen on IPv6.
    pub ipv6: bool,
    /// The hard limit of open files.
    pub open_files: u64,
    /// The user workers are to run as, where nginx's own choice does not exist.
    pub user: Option<String>,
    /// The port for connections that are told apart by name.
    pub sni_listen: u16,
}

/// A route and the addresses its upstream has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Served {
    /// The route.
    pub route: Route,
    /// The addresses, tried in turn.
    pub addresses: Vec<IpAddr>,
}

/// What bounds connections.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long they may take and last.
    pub timeouts: Timeouts,
    /// What a route lets in, as far as its own bounds don't bound it further.
    pub bounds: Bounds,
}

/// Files by their path below a generation's directory.
pub type Files = BTreeMap<String, String>;

impl Host {
    /// Checks that a directory's path can stand in a configuration, and that a socket fits below it.
    pub fn check_directory(directory: &Path) -> Result<(), String> {
        let fits = directory.is_absolute()
            && directory.to_str().is_some_and(|path| {
                path.len() <= LONGEST_DIRECTORY && path.chars().all(|c| c.is_ascii_alphanumeric() || PATH_CHARACTERS.contains(c))
            });
        let rule = "use an absolute path of at most 80 letters, digits and any of /._-";
        if fits { Ok(()) } else { Err(format!("directory {directory:?} can't be used; {rule}")) }
    }

    /// The socket on which nginx says which generation it serves.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("generation.sock")
    }

    /// Renders the configuration; equal inputs give equal text, so comparing text tells whether a reload is needed.
    pub fn render<'a>(&self, limits: Limits, served: impl IntoIterator<Item = &'a Served>) -> Files {
        let mut files = Files::new();
        let (mut listeners, mut counts, mut names) = (1, false, BTreeMap::new());
        for served in served {
            let route = &served.route;
            files.insert(file_name(route), self.route(served, &limits));
            counts |= limits.bounds.both(&route.bounds, route.mode()).connections.is_some();
            match &route.server_name {
                None => listeners += 1,
                // Whoever has the same name leads to the same upstream.
                Some(name) => drop(names.entry(name).or_insert(route)),
            }
        }
        files.insert("nginx.conf".into(), self.main(&limits.timeouts, listeners, counts));
        files.insert(SNI_FILE.into(), self.sni(&names, &limits));
        files
    }

    /// The file that makes nginx tell its generation: a reload is over when the socket answers the new one.
    pub fn generation(&self, generation: u64) -> String {
        format!("server {{\n    listen unix:{};\n    return {generation};\n}}\n", self.socket().display())
    }

    fn main(&self, timeouts: &Timeouts, listeners: usize, counts: bool) -> String {
        // A listener occupies a connection in every worker.
        let connections = CONNECTIONS + listeners * if self.ipv6 { 2 } else { 1 } + 1;
        let open_files = self.open_files.min(connections as u64 + OTHER_FILES);
        let module = self.build.stream_module.as_ref().map(|path| format!("load_module {};\n", path.display()));
        let user = self.user.as_ref().map(|user| format!("user {user};\n"));
        // A route is known by the port it listens on; 1 MiB counts some ten thousand of them.
        let zone = if counts { "\n    limit_conn_zone $server_port zone=routes:1m;" } else { "" };
        // `worker_shutdown_timeout 0` would mean for ever, and old workers would pile up.
        let [connect, idle, drain] =
            [timeouts.connect_seconds, timeouts.idle_seconds, timeouts.drain_seconds].map(|seconds| seconds.max(1));
        format!(
            "{module}{user}\
daemon off;
master_process on;
pid {directory}/nginx.pid;
error_log stderr warn;
worker_processes {WORKERS};
worker_rlimit_nofile {open_files};
worker_shutdown_timeout {drain}s;
events {{
    worker_connections {connections};
}}
stream {{
    proxy_connect_timeout {connect}s;
    proxy_timeout {idle}s;
    proxy_socket_keepalive on;
    # API clients give up a TLS handshake after 10 s: don't go on trying addresses for nobody
    proxy_next_upstream_timeout {all}s;{zone}
    include generation.conf;
    include {SNI_FILE};
    include routes/*.conf;
}}
",
            module = module.unwrap_or_default(),
            user = user.unwrap_or_default(),
            directory = self.directory.display(),
            all = connect.saturating_mul(3),
        )
    }

    /// The one server for all that are told apart by the TLS name they ask for: a name that is not listed leads nowhere, and no connection
    /// ever to a host of the client's choosing.
    fn sni(&self, names: &BTreeMap<&DnsName, &Route>, limits: &Limits) -> String {
        // To nginx, `default` and `include` mean something here, and so does how a word begins; what follows a backslash is a plain word,
        // and a quoted string makes one backslash of two.
        let upstreams = names.iter().map(|(name, route)| format!("    \"\\\\{name}\" {};\n", label(route)));
        let clusters = names.values().map(|route| format!("    {} {};\n", label(route), route.cluster));
        let hubs = names.values().map(|route| format!("    {} {};\n", label(route), route.hub.short()));
        let [upstreams, clusters, hubs]: [String; 3] = [upstreams.collect(), clusters.collect(), hubs.collect()];
        format!(
            "# Room for the longest names
map_hash_bucket_size {BUCKET};
map_hash_max_size {BUCKETS};
map $ssl_preread_server_name $xregion_upstream {{
    default \"\";
{upstreams}}}
map $xregion_upstream $xregion_cluster {{
    default \"\";
{clusters}}}
map $xregion_upstream $xregion_hub {{
    default \"\";
{hubs}}}
{log}
server {{
{listeners}{sources}    ssl_preread on;
    preread_timeout {PREREAD_SECONDS}s;
    proxy_pass $xregion_upstream;
    access_log /dev/stdout {SNI_LOG} if=$xregion_upstream;
}}
",
            log = log_format(SNI_LOG, "$xregion_cluster", "$xregion_hub", FORWARDED),
            listeners = self.listeners(self.sni_listen),
            // Whose the connection is, is known too late for ranges of a route.
            sources = access(limits.bounds.both(&Bounds::NONE, Mode::Sni).sources),
        )
    }

    /// Load balancers and NATs forget a silent connection after minutes; Linux's first keepalive comes after two hours.
    fn listeners(&self, port: u16) -> String {
        let families = ["", "[::]:"].iter().take(if self.ipv6 { 2 } else { 1 });
        families.map(|family| format!("    listen {family}{port} so_keepalive=60s:15s:4;\n")).collect()
    }

    fn route(&self, Served { route, addresses }: &Served, limits: &Limits) -> String {
        let name = label(route);
        let mut text = format!("# {}, {}:{}\n", route.cluster, route.host, route.port);
        if route.server_name.is_none() {
            let _ = writeln!(text, "{}", log_format(&name, route.cluster.as_str(), &route.hub.short(), ""));
        }
        let _ = writeln!(text, "upstream {name} {{");
        for address in addresses {
            // Without `max_fails=0` nginx sets a failing address aside for 10 s, and once all are it refuses every connection,
            // also when the API server is back. So each connection tries in turn; DNS says which addresses are still good.
            let _ = writeln!(text, "    server {} max_fails=0;", SocketAddr::new(*address, route.port));
        }
        text.push_str("}\n");
        if route.server_name.is_some() {
            return text;
        }
        text.push_str("server {\n");
        text.push_str(&self.listeners(route.listen));
        let let_in = limits.bounds.both(&route.bounds, Mode::Port);
        text.push_str(&access(let_in.sources));
        if let Some(most) = let_in.connections {
            let _ = writeln!(text, "    limit_conn routes {most};");
        }
        let _ = write!(text, "    proxy_pass {name};\n    access_log /dev/stdout {name};\n}}\n");
        text
    }
}

/// The record of a session. What is JSON for us is text for nginx, which fills the rest in; neither name can hold a character that means
/// something to either.
fn log_format(name: &str, cluster: &str, hub: &str, more: &str) -> String {
    format!(
        "log_format {name} escape=json '{{\"time\":\"$time_iso8601\",\"cluster\":\"{cluster}\",\"hub\":\"{hub}\",\"from\":\"$remote_addr\",\
         \"to\":\"$upstream_addr\",\"status\":\"$status\",\"received\":$bytes_received,\"sent\":$bytes_sent,\"seconds\":$session_time,\
         \"connect\":\"$upstream_connect_time\"{more}}}';"
    )
}

/// Who may connect: the first that fits decides. None: everybody.
fn access(ranges: Option<BTreeSet<SourceRange>>) -> String {
    let Some(ranges) = ranges else { return String::new() };
    let allowed: String = ranges.iter().map(|range| format!("    allow {range};\n")).collect();
    allowed + "    deny all;\n"
}

/// A cluster's name and its hub's, of `[a-z0-9-]` only. A slot's suffix is no hash of a hub.
fn label(route: &Route) -> String {
    format!("{}-{}{}", route.cluster, route.hub.short(), route.slot.suffix())
}

fn file_name(route: &Route) -> String {
    format!("routes/{}.conf", label(route))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use proptest::prelude::*;

    use super::*;
    use crate::model::names::{HubId, Slot};
    use crate::model::observed::sample;
    use crate::model::region::SNI_LISTEN;
    use crate::model::sources::SourceRanges;

    const DEBIAN: &str = "nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.0.22 (running with OpenSSL 3.0.19)\nTLS SNI support enabled\n\
        configure arguments: --with-cc-opt='-g -O2 -fPIC' --prefix=/usr/share/nginx --conf-path=/etc/nginx/nginx.conf \
        --modules-path=/usr/lib/nginx/modules --with-compat --with-stream_ssl_module --with-stream_ssl_preread_module --with-mail=dynamic \
        --with-stream=dynamic --with-stream_geoip_module=dynamic\n";
    const STOCK: &str = "nginx version: nginx/1.30.4\nbuilt by gcc 14.2.0 (Debian 14.2.0-19)\nTLS SNI support enabled\n\
        configure arguments: --prefix=/etc/nginx --sbin-path=/usr/sbin/nginx --modules-path=/usr/lib/nginx/modules --user=nginx \
        --group=nginx --with-compat --with-mail --with-stream --with-stream_realip_module --with-stream_ssl_preread_module --with-cc-opt='-g -O2 -fPIC'\n";

    fn host() -> Host {
        let build = Build::parse(STOCK).unwrap();
        Host { build, directory: "/run/xregion".into(), ipv6: true, open_files: 1 << 20, user: None, sni_listen: SNI_LISTEN }
    }

    fn limits() -> Limits {
        Limits { timeouts: Timeouts { connect_seconds: 3, idle_seconds: 14400, drain_seconds: 3600 }, bounds: Bounds::NONE }
    }

    fn served(cluster: &str, upstream: &str, addresses: &[&str]) -> Served {
        let route = sample::route(cluster, Slot::First, upstream, 8000);
        Served { route, addresses: addresses.iter().map(|address| address.parse().unwrap()).collect() }
    }

    #[test]
    fn builds() {
        let module = |path: &str| Ok(Some(PathBuf::from(path)));
        for (output, want) in [
            (DEBIAN, module("/usr/lib/nginx/modules/ngx_stream_module.so")),
            (STOCK, Ok(None)),
            (
                "configure arguments: --with-stream=dynamic --with-stream_ssl_preread_module",
                module("/usr/local/nginx/modules/ngx_stream_module.so"),
            ),
            (
                "configure arguments: --prefix=/opt/n --with-stream=dynamic --with-stream_ssl_preread_module",
                module("/opt/n/modules/ngx_stream_module.so"),
            ),
            ("configure arguments: --with-stream_ssl_module", Err("stream module")),
            ("configure arguments: --with-stream", Err("can't read TLS names")),
            ("", Err("stream module")),
        ] {
            let found = Build::parse(output).map(|build| build.stream_module);
            match (found, want) {
                (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
                (found, want) => assert_eq!(found, want.map_err(str::to_owned), "{output}"),
            }
        }
        assert_eq!((Build::parse(DEBIAN).unwrap().user, Build::parse(STOCK).unwrap().user), ("nobody".into(), "nginx".into()));
    }

    #[test]
    fn a_route_becomes_one_file_named_after_its_cluster() {
        let files = host().render(limits(), [&served("business-a", "api.example", &["10.80.1.31", "2001:db8::1"])]);
        let hub = HubId::new("hub-uid").short();
        let want = "# business-a, api.example:443\nlog_format business-a-HUB escape=json '{\"time\":\"$time_iso8601\",\"cluster\":\"business-a\",\
            \"hub\":\"HUB\",\"from\":\"$remote_addr\",\"to\":\"$upstream_addr\",\"status\":\"$status\",\"received\":$bytes_received,\
            \"sent\":$bytes_sent,\"seconds\":$session_time,\"connect\":\"$upstream_connect_time\"}';\nupstream business-a-HUB {\n    server 10.80.1.31:443 max_fails=0;\n    \
            server [2001:db8::1]:443 max_fails=0;\n}\nserver {\n    listen 8000 so_keepalive=60s:15s:4;\n    \
            listen [::]:8000 so_keepalive=60s:15s:4;\n    proxy_pass business-a-HUB;\n    access_log /dev/stdout business-a-HUB;\n}\n";
        assert_eq!(files[&format!("routes/business-a-{hub}.conf")], want.replace("HUB", &hub));
        assert_eq!(files.len(), 3);
    }

    #[test]
    fn a_cluster_s_second_route_stands_beside_its_first() {
        let one = served("business-a", "api.example", &["192.0.2.1"]);
        let second = Served { route: Route { slot: Slot::Second, listen: 8001, ..one.route.clone() }, ..one.clone() };
        assert_eq!(host().render(limits(), [&one, &second]).len(), 4);
    }

    fn named(name: &str, served: Served) -> Served {
        let route = Route { listen: SNI_LISTEN, server_name: Some(name.parse().unwrap()), ..served.route };
        Served { route, ..served }
    }

    #[test]
    fn routes_by_name_share_one_server_and_each_name_is_served_once() {
        let one = named("api.example", served("a", "api.example", &["192.0.2.1"]));
        // Names that mean something to nginx where they stand.
        let others =
            ["default", "include", "hostnames", "volatile", "n"].map(|name| named(name, served(name, "x", &["192.0.2.2"])));
        let mut twice = one.clone();
        twice.route.cluster = "b".parse().unwrap();
        let ported = served("c", "c.example", &["192.0.2.3"]);
        let files = host().render(limits(), others.iter().chain([&twice, &one, &ported]));
        let (hub, text) = (HubId::new("hub-uid").short(), &files["sni.conf"]);
        for want in [
            "map $ssl_preread_server_name $xregion_upstream {\n    default \"\";\n    \"\\\\api.example\" b-HUB;\n    \"\\\\default\" default-HUB;\n",
            "map $xregion_upstream $xregion_cluster {\n    default \"\";\n    b-HUB b;\n",
            "map $xregion_upstream $xregion_hub {\n    default \"\";\n    b-HUB HUB;\n",
            "    listen 7443 so_keepalive=60s:15s:4;\n    listen [::]:7443 so_keepalive=60s:15s:4;\n    ssl_preread on;\n",
            "    proxy_pass $xregion_upstream;\n    access_log /dev/stdout xregion-sni if=$xregion_upstream;\n",
        ] {
            assert!(text.contains(&want.replace("HUB", &hub)), "{want}: {text}");
        }
        assert_eq!(text.matches("api.example").count(), 1, "{text}");
        let route = "# a, api.example:443\nupstream a-HUB {\n    server 192.0.2.1:443 max_fails=0;\n}\n";
        assert_eq!(files[&format!("routes/a-{hub}.conf")], route.replace("HUB", &hub));
        assert!(files["nginx.conf"].contains("worker_connections 8197;"), "two ports are listened on");
    }

    #[test]
    fn the_main_file_follows_the_build_the_limits_and_the_region() {
        let stock = host().main(&limits().timeouts, 2, false);
        assert!(!stock.contains("load_module") && !stock.contains("user "), "{stock}");
        for want in
            ["worker_shutdown_timeout 3600s;", "proxy_timeout 14400s;", "proxy_connect_timeout 3s;", "worker_connections 8197;"]
        {
            assert!(stock.contains(want), "{want}: {stock}");
        }
        let tight = Host { build: Build::parse(DEBIAN).unwrap(), open_files: 1024, user: Some("root".into()), ..host() };
        let text = tight.main(&Timeouts { drain_seconds: 0, ..limits().timeouts }, 1, false);
        assert!(text.starts_with("load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nuser root;\n"), "{text}");
        assert!(text.contains("worker_rlimit_nofile 1024;") && text.contains("worker_shutdown_timeout 1s;"), "{text}");
    }

    #[test]
    fn a_limit_of_connections_stands_at_every_route_that_has_one() {
        let (hub, most) =
            (HubId::new("hub-uid").short(), |most: u16| Bounds { connections: NonZeroU16::new(most), ..Bounds::NONE });
        let of = |cluster: &str, own: u16| {
            let mut served = served(cluster, "api.example", &["192.0.2.1"]);
            served.route.bounds = most(own);
            served
        };
        // The region's, and those of two routes; what stands at these.
        for (region, [a, b], want) in [
            (0, [0, 0], [None, None]),
            (100, [0, 0], [Some(100), Some(100)]),
            (0, [20, 0], [Some(20), None]),
            (0, [20, 30], [Some(20), Some(30)]),
            (100, [20, 0], [Some(20), Some(100)]),
            (100, [1000, 100], [Some(100), Some(100)]),
        ] {
            let limits = || Limits { bounds: most(region), ..limits() };
            // What is told apart by name is not counted, whatever somebody has written into its route.
            let files = host().render(limits(), [&of("a", a), &of("b", b), &named("n.example", of("n", 7))]);
            for (cluster, want) in ["a", "b"].into_iter().zip(want) {
                let text = &files[&format!("routes/{cluster}-{hub}.conf")];
                let found: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("limit_conn ")).collect();
                let want: Vec<_> = want.iter().map(|most: &u16| format!("routes {most};")).collect();
                assert_eq!(found, want, "{region} {a} {b}: {text}");
            }
            let zone =
                files["nginx.conf"].contains("s;\n    limit_conn_zone $server_port zone=routes:1m;\n    include generation.conf;");
            assert_eq!(zone, want != [None, None], "{region} {a} {b}");
            assert!(!files["sni.conf"].contains("limit_conn") && !files[&format!("routes/n-{hub}.conf")].contains("limit_conn"));
            let alone = host().render(limits(), [&named("n.example", of("n", 7))]);
            assert!(!alone["nginx.conf"].contains("limit_conn"));
        }
    }

    #[test]
    fn who_may_come_in_stands_at_every_route() {
        let of = |region: &str, route: &str| {
            let ranges = |text: &str| if text.is_empty() { SourceRanges::EVERYBODY } else { text.parse().unwrap() };
            let mut served = served("a", "api.example", &["192.0.2.1"]);
            served.route.bounds.sources = ranges(route);
            let bounds = Bounds { sources: ranges(region), ..Bounds::NONE };
            let text = host().route(&served, &Limits { bounds, ..limits() });
            text.lines().filter(|line| line.contains("allow ") || line.contains("deny ")).map(str::trim).collect::<String>()
        };
        assert_eq!(of("", ""), "");
        assert_eq!(of("10.0.0.0/8,2001:db8::/32", ""), "allow 10.0.0.0/8;allow 2001:db8::/32;deny all;");
        assert_eq!(of("", "10.0.0.0/8"), "allow 10.0.0.0/8;deny all;");
        assert_eq!(of("10.0.0.0/8", "10.80.0.0/16,192.0.2.1"), "allow 10.80.0.0/16;deny all;");
        assert_eq!(of("10.0.0.0/8", "192.0.2.1"), "deny all;", "nobody is let in by both");
    }

    #[test]
    fn directories() {
        for good in ["/run/xregion", "/tmp/.tmpA1_b-c"] {
            assert_eq!(Host::check_directory(Path::new(good)), Ok(()));
        }
        for bad in ["run", "/run/a b", "/run/a;b", "/run/a{", "/run/$a", "/run/é", &format!("/{}", "x".repeat(80))] {
            assert!(Host::check_directory(Path::new(bad)).unwrap_err().contains("absolute path"), "{bad}");
        }
    }

    proptest! {
        /// Braces, semicolons and quotes end what they stand in: their number must not depend on the route's text.
        #[test]
        fn no_route_can_inject(
            cluster in ".{0,70}", upstream in ".{0,80}", hub in ".{0,40}", name in ".{0,40}|[a-z]{1,9}", port: u16, address: IpAddr,
        ) {
            let plain = served("a", "b", &["192.0.2.1"]);
            let (Ok(cluster), Ok(upstream)) = (cluster.parse(), upstream.parse()) else { return Ok(()) };
            let route = Route { hub: HubId::new(hub), cluster, host: upstream, port, ..plain.route.clone() };
            let marks = |served: &Served| {
                let files = host().render(limits(), [served]);
                files.into_values().collect::<String>().chars().filter(|c| "{};\n\"'\\$#".contains(*c)).collect::<String>()
            };
            let wild = Served { route, addresses: vec![address] };
            prop_assert_eq!(marks(&wild), marks(&plain));
            let Ok(name) = name.parse::<DnsName>() else { return Ok(()) };
            prop_assert_eq!(marks(&named(name.as_str(), wild)), marks(&named("x", plain)));
        }
    }
}
