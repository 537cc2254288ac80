use std::net::{SocketAddr, UdpSocket};
use std::sync::Mutex;

use futures::future::join_all;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NoRecords;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::{Message, Query};
use hickory_resolver::proto::rr::Record;

use super::*;

/// What the server in these tests says of a name.
#[derive(Clone, Debug)]
enum Says {
    Addresses(u32, Vec<&'static str>),
    Code(ResponseCode),
    Nothing,
    /// Of IPv4, and of IPv6.
    Each(Box<[Says; 2]>),
}

impl Says {
    fn of(self, kind: RecordType) -> Self {
        match self {
            Self::Each(each) => {
                let [v4, v6] = *each;
                if kind == RecordType::A { v4 } else { v6 }
            }
            says => says,
        }
    }
}

type Zone = Arc<Mutex<BTreeMap<&'static str, Says>>>;

/// A DNS server on loopback; it answers from `zone` until the test ends.
fn server(zone: Zone) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let question = query.queries[0].clone();
            let name = question.name().to_string();
            let mut answer = Message::response(query.id, query.op_code);
            answer.add_query(question.clone());
            let says = zone.lock().unwrap().get(name.as_str()).cloned().unwrap_or(Says::Code(ResponseCode::NXDomain));
            match says.of(question.query_type()) {
                Says::Nothing | Says::Each(_) => continue,
                Says::Code(code) => answer.metadata.response_code = code,
                Says::Addresses(ttl, addresses) => {
                    let addresses = addresses.into_iter().map(|address| RData::from(address.parse::<IpAddr>().unwrap()));
                    let fitting = addresses.filter(|data| data.record_type() == question.query_type());
                    answer.add_answers(fitting.map(|data| Record::from_rdata(question.name().clone(), ttl, data)));
                }
            }
            socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
        }
    });
    address
}

fn names(zone: &[(&'static str, Says)]) -> (Names, Zone) {
    let zone: Zone = Arc::new(Mutex::new(zone.iter().cloned().collect()));
    let server = server(zone.clone());
    let mut connection = ConnectionConfig::udp();
    connection.port = server.port();
    let servers = vec![NameServerConfig::new(server.ip(), true, vec![connection])];
    // A search domain that would answer anything: it must not be asked.
    let search = vec!["search.example.".parse().unwrap()];
    let config = ResolverConfig::from_parts(None, search, servers);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    options(builder.options_mut());
    (Names::new(builder.build().unwrap()), zone)
}

fn wanted(names: &[&str]) -> BTreeSet<DnsName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

async fn until<T>(names: &mut Names, what: &str, done: impl Fn(&Names) -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(value) = done(names) {
                return value;
            }
            names.changed().await;
        }
    };
    timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("waited 10 s for {what}"))
}

fn addresses(names: &Names, name: &str) -> Option<Result<Vec<String>, String>> {
    let known = names.known().get(&name.parse().unwrap())?;
    let told = known.addresses().map_err(|(reason, failure)| format!("{reason:?}: {failure}"));
    Some(told.map(|all| all.iter().map(ToString::to_string).collect()))
}

#[tokio::test]
async fn each_failure_is_told_apart_and_none_delays_another_name() {
    let code = Says::Code;
    let (mut names, _zone) = names(&[
        ("good.example.", Says::Addresses(60, vec!["127.0.0.3", "127.0.0.2"])),
        ("six.example.", Says::Addresses(60, vec!["::1"])),
        ("empty.example.", Says::Addresses(60, vec![])),
        ("broken.example.", code(ResponseCode::ServFail)),
        ("silent.example.", Says::Nothing),
        ("short.search.example.", Says::Addresses(60, vec!["127.0.0.9"])),
    ]);
    let all = ["good.example", "six.example", "empty.example", "broken.example", "silent.example", "gone.example", "short"];
    names.want(wanted(&all));
    let start = std::time::Instant::now();
    until(&mut names, "the good name", |names| addresses(names, "good.example")).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());

    until(&mut names, "all answers", |names| (names.known().len() == all.len()).then_some(())).await;
    for (name, want) in [
        ("good.example", Ok(vec!["127.0.0.2", "127.0.0.3"])),
        ("six.example", Ok(vec!["::1"])),
        ("empty.example", Err(["Unresolvable", "has no address"])),
        ("broken.example", Err(["Unanswered", "SERVFAIL"])),
        ("silent.example", Err(["Unanswered", "did not answer within 5 s"])),
        ("gone.example", Err(["Unresolvable", "NXDOMAIN"])),
        ("short", Err(["Unresolvable", "NXDOMAIN"])),
    ] {
        match (addresses(&names, name).unwrap(), want) {
            (Err(error), Err(parts)) => assert!(parts.iter().all(|part| error.contains(part)), "{name}: {error}"),
            (found, want) => {
                let want = want.map(|all| all.into_iter().map(str::to_owned).collect::<Vec<_>>()).map_err(|parts| parts.concat());
                assert_eq!(found, want, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn an_address_follows_its_ttl_and_the_last_good_one_survives_a_failure() {
    let (mut names, zone) = names(&[("api.example.", Says::Addresses(1, vec!["127.0.0.2"]))]);
    let says = |answer| zone.lock().unwrap().insert("api.example.", answer);
    names.want(wanted(&["api.example"]));
    until(&mut names, "an address", |names| addresses(names, "api.example")).await.unwrap();

    says(Says::Addresses(1, vec!["127.0.0.7"]));
    let start = std::time::Instant::now();
    let moved = |names: &Names| (addresses(names, "api.example")? == Ok(vec!["127.0.0.7".into()])).then_some(());
    until(&mut names, "the new address", moved).await;
    assert!(start.elapsed() < Duration::from_secs(3), "TTL + 2 s: {:?}", start.elapsed());

    says(Says::Code(ResponseCode::NXDomain));
    let failed = |names: &Names| names.known().values().next()?.failure.clone();
    assert!(until(&mut names, "the failure", failed).await.1.contains("NXDOMAIN"));
    assert_eq!(moved(&names), Some(()));

    names.want(BTreeSet::new());
    assert!(names.known().is_empty() && names.wanted.is_empty());
}

#[tokio::test(start_paused = true)]
async fn many_names_are_not_asked_all_at_once_and_one_that_is_alone_does_not_wait() {
    let (turns, start) = (Turns::default(), tokio::time::Instant::now());
    drop(turns.next().await);
    assert!(start.elapsed() < PACE);
    let all = (0..100).map(async |_| {
        let _turn = turns.next().await;
        sleep(Duration::from_secs(5)).await;
    });
    join_all(all).await;
    let (least, most) = (PACE * 100, PACE * 100 + Duration::from_millis(50));
    let spread = start.elapsed() - Duration::from_secs(5);
    assert!((least..most).contains(&spread), "{spread:?}");
    sleep(Duration::from_secs(60)).await;
    let later = tokio::time::Instant::now();
    drop(turns.next().await);
    assert!(later.elapsed() < PACE, "and no turns were saved up");
}

#[tokio::test]
async fn a_family_that_fails_alone_keeps_its_addresses_until_there_are_none() {
    let each = |v4, v6| Says::Each(Box::new([v4, v6]));
    let there = |address| Says::Addresses(1, vec![address]);
    let (mut names, zone) = names(&[("api.example.", each(there("127.0.0.2"), Says::Addresses(1, vec![])))]);
    let says = |answer| zone.lock().unwrap().insert("api.example.", answer);
    names.want(wanted(&["api.example"]));
    let v4 = until(&mut names, "an address", |names| addresses(names, "api.example")).await.unwrap();

    says(each(Says::Code(ResponseCode::ServFail), there("::1")));
    let failed = |names: &Names| names.known().values().next()?.failure.clone();
    assert!(until(&mut names, "the failure", failed).await.1.contains("SERVFAIL"));
    let all = addresses(&names, "api.example").unwrap().unwrap();
    assert!(all.starts_with(&v4), "{all:?}");

    says(each(Says::Addresses(1, vec![]), there("::1")));
    let moved = |names: &Names| (addresses(names, "api.example")? == Ok(vec!["::1".into()])).then_some(());
    until(&mut names, "the other family alone", moved).await;
    assert_eq!(failed(&names), None);
}

/// What a resolver makes of an answer.
fn resolved(kind: RecordType, says: Says) -> Result<Lookup, NetError> {
    let query = Query::query("api.example.".parse().unwrap(), kind);
    match says.of(kind) {
        Says::Addresses(ttl, addresses) => {
            let data = addresses.into_iter().map(|address| RData::from(address.parse::<IpAddr>().unwrap()));
            let records: Vec<_> = data.map(|data| Record::from_rdata(query.name().clone(), ttl, data)).collect();
            Ok(Lookup::new_with_max_ttl(query, records))
        }
        Says::Code(code @ (ResponseCode::NoError | ResponseCode::NXDomain)) => Err(NoRecords::new(query, code).into()),
        Says::Code(code) => Err(DnsError::ResponseCode(code).into()),
        Says::Nothing | Says::Each(_) => Err(NetError::Timeout),
    }
}

#[test]
fn each_family_is_renewed_kept_or_dropped_by_its_own_answer() {
    let code = Says::Code;
    let has = |address| Says::Addresses(60, vec![address]);
    let (none, gone, broken) = (ResponseCode::NoError, ResponseCode::NXDomain, ResponseCode::ServFail);
    let (both, unknown): (&[&str], &[&str]) = (&["192.0.2.1", "192.0.2.2", "2001:db8::1"], &[]);
    for (last, v4, v6, want, failure, seconds) in [
        (both, has("192.0.2.9"), has("2001:db8::9"), vec!["192.0.2.9", "2001:db8::9"], None, 60),
        (both, Says::Nothing, has("2001:db8::9"), vec!["192.0.2.1", "192.0.2.2", "2001:db8::9"], Some("did not answer"), 3),
        (both, code(broken), has("2001:db8::9"), vec!["192.0.2.1", "192.0.2.2", "2001:db8::9"], Some("SERVFAIL"), 3),
        (both, has("192.0.2.9"), Says::Nothing, vec!["192.0.2.9", "2001:db8::1"], Some("did not answer"), 3),
        (both, has("192.0.2.9"), code(broken), vec!["192.0.2.9", "2001:db8::1"], Some("SERVFAIL"), 3),
        (both, code(none), has("2001:db8::9"), vec!["2001:db8::9"], None, 60),
        (both, has("192.0.2.9"), code(none), vec!["192.0.2.9"], None, 60),
        (both, has("192.0.2.9"), code(gone), vec!["192.0.2.9"], None, 60),
        (both, code(broken), code(none), vec!["192.0.2.1", "192.0.2.2"], Some("SERVFAIL"), 3),
        (both, code(broken), Says::Nothing, both.to_vec(), Some("did not answer"), 3),
        // Then what is in use stays.
        (both, code(none), code(none), vec![], Some("has no address"), 3),
        (both, code(gone), code(gone), vec![], Some("NXDOMAIN"), 3),
        (&both[2..], Says::Nothing, code(none), vec![], Some("did not answer"), 3),
        // Nothing is known yet.
        (unknown, Says::Nothing, has("2001:db8::9"), vec!["2001:db8::9"], Some("did not answer"), 3),
        (unknown, has("192.0.2.9"), code(broken), vec!["192.0.2.9"], Some("SERVFAIL"), 3),
    ] {
        let what = format!("{last:?} {v4:?} {v6:?}");
        let last: Vec<IpAddr> = last.iter().map(|address| address.parse().unwrap()).collect();
        let answer = combine(resolved(RecordType::A, v4), resolved(RecordType::AAAA, v6), &last);
        assert_eq!(answer.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), want, "{what}");
        let told = answer.failure.as_ref().map(|(_, told)| told.as_str());
        assert!(
            told.is_some() == failure.is_some() && told.unwrap_or_default().contains(failure.unwrap_or_default()),
            "{what}: {told:?}"
        );
        assert_eq!(answer.pause().as_secs(), seconds, "{what}");
    }
}

#[test]
fn when_a_name_is_looked_up_again() {
    let failure = || Some((Reason::Unanswered, String::new()));
    for (ttl, failure, seconds) in [
        (Duration::ZERO, None, 1),
        (Duration::from_secs(7), None, 7),
        (Duration::from_secs(86400), None, 60),
        (Duration::MAX, failure(), 3),
        (Duration::from_secs(7), failure(), 3),
        (Duration::from_secs(2), failure(), 2),
    ] {
        assert_eq!(Answer { addresses: vec![], failure, ttl }.pause().as_secs(), seconds);
    }
}
