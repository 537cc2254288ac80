use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn now() -> Timestamp {
    Timestamp::now()
}

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
    Access::parse(config.to_string().as_bytes(), None, &no_files, now())
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
        ("https://[::ffff:10.0.0.1]:6443", "::ffff:10.0.0.1", 6443),
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
        ("https://api.example:", "port"),
        ("https://api.example:+6443", "port"),
        ("https://api.example:https", "port"),
        ("https://2001:db8::1", "without brackets"),
        ("https://2001:db8::1:6443", "without brackets"),
        ("https://[2001:db8::1", "without brackets"),
        ("https://[fe80::1%25eth0]:6443", "names no host"),
        ("https://[api.example]:6443", "names no host"),
        ("https://api.example?token=hunter2", "path"),
        ("unix:///var/run/api.sock", "not https"),
        ("https://api.example\n", "names no host"),
        ("https://\u{e4}pi.example", "names no host"),
        ("https://127.1", "names no host"),
        ("https://127.0.0.1:6443", "this machine itself"),
        ("https://[::ffff:127.0.0.1]:6443", "this machine itself"),
        ("https://0.0.0.0:6443", "this machine itself"),
        ("https://localhost:6443", "this machine itself"),
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
        (user(json!({"token": "t", "as-user-extra": {"scopes": ["x"]}})), Kind::Credentials, "impersonates"),
        (user(json!({"client-certificate-data": BASE64_STANDARD.encode(certificate)})), Kind::Credentials, "no key"),
        (user(json!({"tokenFile": "/var/run/token"})), Kind::Kubeconfig, "can't be read"),
    ] {
        let failure = parse(&config).unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.cause().contains(want), "{want}: {failure}");
        assert!(!failure.to_string().contains("hunter2"));
    }
    assert_eq!(Access::parse(&[0xff, 0xfe], None, &no_files, now()).unwrap_err().kind, Kind::Kubeconfig);
}

#[test]
fn contexts_and_files() {
    let mut config = config();
    config["users"][0]["user"] = json!({"tokenFile": "token"});
    let read = |path: &Path| -> std::io::Result<Vec<u8>> {
        assert_eq!(path, Path::new("token"));
        Ok(b"from-file\n".to_vec())
    };
    let access = Access::parse(config.to_string().as_bytes(), None, &read, now()).unwrap();
    assert!(matches!(access.credentials, Credentials::Token(token) if token.expose_secret() == "from-file"));
    let access = Access::parse(config.to_string().as_bytes(), Some("d"), &read, now()).unwrap();
    assert!(matches!(access.credentials, Credentials::Certificate(..)));
}

#[test]
fn what_is_written_reads_back_and_debug_shows_no_secret() {
    for context in ["c", "d"] {
        let access = Access::parse(config().to_string().as_bytes(), Some(context), &no_files, now()).unwrap();
        let written = access.flattened("k");
        let again = Access::parse(written.expose_secret().as_bytes(), None, &no_files, now()).unwrap();
        assert_eq!(again.flattened("k").expose_secret(), written.expose_secret());
        assert!(!format!("{access:?}").contains("t0ken"));
    }
}

fn refusal(bytes: &[u8]) -> Failure {
    let failure = Access::parse(bytes, None, &no_files, now()).unwrap_err();
    assert_eq!(failure.kind, Kind::Kubeconfig, "{failure}");
    failure
}

#[test]
fn encodings() {
    let text = config().to_string();
    let utf16 = |unit: fn(u16) -> [u8; 2]| -> Vec<u8> { format!("\u{feff}{text}").encode_utf16().flat_map(unit).collect() };
    for (bytes, what) in [
        (format!("\u{feff}{text}").into_bytes(), "UTF-8 with a byte order mark"),
        (utf16(u16::to_le_bytes), "UTF-16 of Windows"),
        (utf16(u16::to_be_bytes), "UTF-16, big endian"),
        (format!("---\n{text}\n...\n").into_bytes(), "one document, marked"),
        (format!("# mine\n{text}").into_bytes(), "a comment"),
    ] {
        assert!(Access::parse(&bytes, None, &no_files, now()).is_ok(), "{what}");
    }
    let mut half = utf16(u16::to_le_bytes);
    half.pop();
    for (bytes, want) in [
        (half, "no text"),
        (utf16(u16::to_le_bytes)[2..].to_vec(), "does not parse"),
        (vec![0xff, 0xfe, 0x00, 0xd8], "no text"),
        (vec![0x7f, b'E', b'L', b'F', 0x80, 0xff], "no text"),
        (b"\0\0\0\0".to_vec(), "does not parse"),
        (Vec::new(), "it is empty"),
        (b" \n# nothing\n".to_vec(), "it is empty"),
        (b"null".to_vec(), "it is empty"),
        (format!("{text}\n---\n{text}").into_bytes(), "several documents"),
        (vec![b' '; MAX_SIZE + 1], "larger than 1 MiB"),
        (b"kind: Secret\napiVersion: v1".to_vec(), "its kind is 'Secret'"),
        (b"kind: Config\napiVersion: v2".to_vec(), "its apiVersion is not v1"),
    ] {
        let failure = refusal(&bytes);
        assert!(failure.cause().contains(want), "{want}: {failure}");
    }
}

#[test]
fn a_field_or_a_name_given_twice_is_refused() {
    for (text, want) in [
        ("clusters: []\nclusters: []", "the field 'clusters' is given twice (line 2, column 1)"),
        ("clusters: [{name: k, cluster: {server: a, server: b}}]", "the field 'server' is given twice"),
        ("users: [{name: u, user: {exec: {command: a}, exec: {command: b}}}]", "the field 'exec' is given twice"),
        ("other: {x: 1, x: 2}", "the field 'x' is given twice"),
        ("clusters: [{name: k}, {name: k}]", "two of its clusters are called 'k'"),
        ("users: [{name: k}, {name: k}]", "two of its users are called 'k'"),
        ("contexts: [{name: k}, {name: k}]", "two of its contexts are called 'k'"),
    ] {
        let failure = refusal(text.as_bytes());
        assert!(failure.cause().contains(want), "{want}: {failure}");
    }
    let long = "s3cret".repeat(10);
    assert!(!refusal(format!("{long}: 1\n{long}: 2").as_bytes()).to_string().contains("s3cret"));
    // A value where none belongs is not repeated either.
    assert!(!refusal(b"clusters: s3cret").to_string().contains("s3cret"));
}

#[test]
fn no_nesting_exhausts_the_stack_or_anybody_s_patience() {
    let start = std::time::Instant::now();
    for part in ["[", "{", "{\"a\":", "- ", "? ", "a: [", "&a [", "!a [", "((", "\"", "'", "|", "-\n", "<<: {"] {
        let text = part.repeat(MAX_SIZE / part.len());
        refusal(text.as_bytes());
    }
    let steps: String = (0..1400).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    refusal(steps.as_bytes());
    let bomb: String = (1..40).map(|n| format!("a{n}: &a{n} [*a{0},*a{0},*a{0},*a{0},*a{0},*a{0}]\n", n - 1)).collect();
    refusal(format!("a0: &a0 [x]\n{bomb}").as_bytes());
    // An own list of 1 MiB is no kubeconfig either, and not slow.
    refusal(format!("other: [{}]", "1,".repeat(MAX_SIZE / 2 - 10)).as_bytes());
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

#[test]
fn of_a_list_of_files_the_first_to_name_something_counts_and_paths_are_where_they_stand() {
    let (ca, _) = pem();
    let file = |text: &str, directory: &str| document(text.as_bytes(), Path::new(directory)).unwrap();
    let one = file(
        "current-context: ''\nclusters: [{name: k, cluster: {server: 'https://one.example', certificate-authority: ca.pem}}]\nusers: [{name: u, user: {tokenFile: /abs/token}}]",
        "/one",
    );
    let two = file(
        "current-context: c\nclusters: [{name: k, cluster: {server: 'https://two.example', tls-server-name: x}}]\ncontexts: [{name: c, context: {cluster: k, user: u}}]\nusers: [{name: v, user: {exec: {command: ./login}}}, {name: w, user: {exec: {command: aws}}}]",
        "/two",
    );
    let both = merged(vec![one, two]).unwrap();
    let read = |path: &Path| -> std::io::Result<Vec<u8>> {
        match path.to_str().unwrap() {
            "/one/ca.pem" => Ok(ca.clone().into_bytes()),
            "/abs/token" => Ok(b"t0ken".to_vec()),
            other => panic!("{other} was read"),
        }
    };
    let access = Access::of(&both, None, &read, now()).unwrap();
    assert_eq!((access.host.to_string().as_str(), &access.tls_server_name), ("one.example", &None));
    let command = |n: usize| both.auth_infos[n].auth_info.clone().unwrap().exec.unwrap().command.unwrap();
    assert_eq!((command(1).as_str(), command(2).as_str()), ("/two/./login", "aws"));
}

/// The `user` of a client certificate that is valid so many days from now, and to so many; its key, or another's.
fn certificate(from: i64, to: i64, own_key: bool) -> Value {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let day = |days: i64| std::time::SystemTime::from(now() + jiff::SignedDuration::from_hours(days * 24)).into();
    (params.not_before, params.not_after) = (day(from), day(to));
    let pem = params.self_signed(&key).unwrap().pem();
    let key = if own_key { key.serialize_pem() } else { pem_key() };
    json!({"client-certificate-data": BASE64_STANDARD.encode(pem), "client-key-data": BASE64_STANDARD.encode(key)})
}

fn pem_key() -> String {
    pem().1
}

#[test]
fn client_certificates_are_looked_at() {
    let with = |user: Value| {
        let mut config = config();
        config["users"][0]["user"] = user;
        parse(&config)
    };
    let access = with(certificate(-1, 20, true)).unwrap();
    let left = access.credentials.expires().unwrap().duration_since(now());
    assert_eq!((left.as_hours() + 1) / 24, 20);
    let mut both = certificate(-1, 1, true);
    both["client-key-data"] = json!(BASE64_STANDARD.encode("-----BEGIN PRIVATE KEY-----\naGVsbG8=\n-----END PRIVATE KEY-----\n"));
    for (user, want) in [
        (certificate(-30, -1, true), "client certificate expired at"),
        (certificate(1, 30, true), "client certificate is not valid before"),
        (certificate(-1, 1, false), "client key is not the key of its client certificate"),
        (both, "can't be used"),
    ] {
        let failure = with(user).unwrap_err();
        assert_eq!(failure.kind, Kind::Credentials, "{failure}");
        assert!(failure.cause().contains(want), "{want}: {failure}");
    }
    // "Never", in a certificate, is a time that no clock shows.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    let pem = params.self_signed(&key).unwrap().pem();
    let user = json!({"client-certificate-data": BASE64_STANDARD.encode(pem), "client-key-data": BASE64_STANDARD.encode(key.serialize_pem())});
    assert_eq!(with(user).unwrap().credentials.expires(), None);
}

/// Whatever the text is, nothing panics; and a host that is accepted is one that nginx, a hosts file and a URL can hold.
fn survives(bytes: &[u8]) {
    let read = |_: &Path| Ok(b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n".to_vec());
    if let Ok(access) = Access::parse(bytes, None, &read, now()) {
        for host in [Some(access.host.to_string()), access.tls_server_name.map(|name| name.to_string())].into_iter().flatten() {
            assert!(!host.is_empty());
            assert!(host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".:-".contains(&b)), "{host:?}");
        }
        assert_ne!(access.port, 0);
    }
}

const SEED: &str = "apiVersion: v1
kind: Config
current-context: c
clusters:
- name: k
  cluster: {server: 'https://API.example:6443', tls-server-name: x.example, certificate-authority: ca.pem}
contexts:
- {name: c, context: {cluster: k, user: u}}
users:
- name: u
  user:
    token: eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln
";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        survives(&bytes);
        for mark in [&[0xff, 0xfe][..], &[0xfe, 0xff], &[0xef, 0xbb, 0xbf]] {
            survives(&[mark, &bytes].concat());
        }
    }

    #[test]
    fn no_mutation_of_a_valid_one_does(
        edits in proptest::collection::vec(
            (any::<prop::sample::Index>(), 0usize..20, prop_oneof![
                prop::sample::select(vec![
                    "", "\n", " ", "\t", "{", "}", "[", "]", ": ", "- ", "&a", "*a", "<<: ", "!!binary ", "!!str ", "'", "\"", "|", "#", "%",
                    ";", "@", "$", "\\", "/", "..", "\u{0}", "\u{202e}", "\u{ff0f}", "\r", "---\n", "https://", "server: ", "null", "~", "0x1", "1e999",
                ]).prop_map(str::to_owned),
                ".{0,8}",
            ]),
            1..6,
        ),
    ) {
        let mut text = SEED.as_bytes().to_vec();
        for (at, cut, with) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + cut).min(text.len());
            text.splice(at..end, with.into_bytes());
        }
        survives(&text);
    }

    #[test]
    fn no_server_gets_past_the_rules_of_hosts(server in "(https://|HTTPS://|http://)?[a-zA-Z0-9.:@/;{}$ \\[\\]_*?#%\\\\\n-]{0,40}", port in ".{0,6}") {
        let mut config: Value = serde_json::from_str(&config_once()).unwrap();
        for server in [server.clone(), format!("{server}:{port}")] {
            config["clusters"][0]["cluster"]["server"] = json!(server);
            survives(config.to_string().as_bytes());
        }
    }
}

fn config_once() -> String {
    static CONFIG: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    CONFIG.get_or_init(|| config().to_string()).clone()
}

#[test]
fn the_seed_of_the_mutations_is_valid() {
    let read = |_: &Path| Ok(pem().0.into_bytes());
    assert!(Access::parse(SEED.as_bytes(), None, &read, now()).is_ok());
}
