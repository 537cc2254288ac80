//! Every form of kubeconfig: what becomes of it, and that docs/kubeconfigs.md says just that.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs)]

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use xregion::error::{Kind, Result};
use xregion::files;
use xregion::model::kubeconfig::{Access, Credentials};
use xregion::model::lifetime;

/// What becomes of a form, as the table in the docs has it.
#[derive(Debug, Eq, PartialEq)]
enum Outcome {
    Accepted,
    Warned,
    Refused(Kind),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted => f.write_str("accepted"),
            Self::Warned => f.write_str("accepted, with a warning"),
            Self::Refused(kind) => write!(f, "refused: `{}`", kind.name()),
        }
    }
}

/// A form: its files, the first of which is the kubeconfig, and what is made of it.
struct Form {
    name: &'static str,
    files: Vec<(&'static str, Vec<u8>)>,
    list: &'static [&'static str],
    context: Option<&'static str>,
    /// Host and port it leads to, where it is accepted.
    address: (&'static str, u16),
    outcome: Outcome,
}

impl Form {
    fn new(name: &'static str, text: impl Into<Vec<u8>>, outcome: Outcome) -> Self {
        Self {
            name,
            files: vec![("config", text.into())],
            list: &["config"],
            context: None,
            address: ("api.example", 6443),
            outcome,
        }
    }

    fn at(self, host: &'static str, port: u16) -> Self {
        Self { address: (host, port), ..self }
    }

    fn with_file(mut self, name: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.push((name, bytes.into()));
        self
    }

    /// Reads it as `xregion join --kubeconfig` does, from files.
    fn read(&self, directory: &Path) -> Result<Access> {
        for (name, bytes) in &self.files {
            std::fs::create_dir_all(directory.join(name).parent().unwrap()).unwrap();
            std::fs::write(directory.join(name), bytes).unwrap();
        }
        let list = std::env::join_paths(self.list.iter().map(|name| directory.join(name))).unwrap();
        let config = files::kubeconfig(Path::new(&list))?;
        Access::of(&config, self.context, &files::read, Timestamp::now())
    }
}

struct Pair {
    certificate: String,
    key: String,
}

/// A certificate that is valid from so many days from now to so many.
fn pair(from: i64, to: i64) -> Pair {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let day = |days: i64| std::time::SystemTime::from(Timestamp::now() + SignedDuration::from_hours(days * 24)).into();
    (params.not_before, params.not_after) = (day(from), day(to));
    Pair { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

fn base64(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

fn jwt(hours: i64) -> String {
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let end = (Timestamp::now() + SignedDuration::from_hours(hours)).as_second();
    let claims = json!({"sub": "system:serviceaccount:vela-system:xregion", "exp": end});
    format!("{}.{}.c2ln", part(json!({"alg": "RS256"})), part(claims))
}

fn client(pair: &Pair) -> Value {
    json!({"client-certificate-data": base64(&pair.certificate), "client-key-data": base64(&pair.key)})
}

fn valid() -> Value {
    client(&pair(-1, 365))
}

fn token() -> Value {
    json!({"token": "0paque"})
}

fn exec(command: &str, args: &[&str]) -> Value {
    json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "IfAvailable", "command": command, "args": args,
    }})
}

fn cluster(server: &str) -> Value {
    json!({"server": server, "certificate-authority-data": base64(&pair(-1, 3650).certificate)})
}

fn config(cluster: Value, user: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "c",
        "clusters": [{"name": "k", "cluster": cluster}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "default"}}],
        "users": [{"name": "u", "user": user}],
    })
}

/// YAML as kubectl writes it.
fn yaml(config: &Value) -> String {
    // Anything that isn't on one line is YAML and no JSON.
    let Value::Object(fields) = config else { panic!("no kubeconfig") };
    fields.iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
}

fn plain(server: &str, user: Value) -> String {
    yaml(&config(cluster(server), user))
}

fn right() -> String {
    plain("https://api.example:6443", valid())
}

fn with(cluster_fields: Value, user: Value) -> String {
    let mut whole = cluster("https://api.example:6443");
    for (key, value) in cluster_fields.as_object().unwrap() {
        whole[key] = value.clone();
    }
    whole.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    yaml(&config(whole, user))
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn forms() -> Vec<Form> {
    [managed(), installed(), servers(), authorities(), credentials(), contexts(), texts()].into_iter().flatten().collect()
}

use Outcome::{Accepted, Refused, Warned};

fn managed() -> Vec<Form> {
    let eks = "https://A1B2C3D4E5F6.gr7.ap-east-1.eks.amazonaws.com";
    let aks = "https://aks-dns-1a2b3c.hcp.eastasia.azmk8s.io:443";
    let mut aks_admin = valid();
    aks_admin["token"] = json!("0123456789abcdef");
    vec![
        Form::new(
            "EKS, from `aws eks update-kubeconfig`",
            plain(eks, exec("aws", &["eks", "get-token"])),
            Refused(Kind::Credentials),
        ),
        Form::new("EKS, from `xregion kubeconfig`", plain(eks, json!({"token": jwt(24)})), Warned)
            .at("a1b2c3d4e5f6.gr7.ap-east-1.eks.amazonaws.com", 443),
        Form::new(
            "GKE, from `gcloud container clusters get-credentials`",
            plain("https://34.92.1.2", exec("gke-gcloud-auth-plugin", &[])),
            Refused(Kind::Credentials),
        ),
        Form::new("AKS, from `az aks get-credentials`", plain(aks, exec("kubelogin", &["get-token"])), Refused(Kind::Credentials)),
        Form::new("AKS, from `az aks get-credentials --admin`", plain(aks, aks_admin), Accepted)
            .at("aks-dns-1a2b3c.hcp.eastasia.azmk8s.io", 443),
        Form::new("ACK", plain("https://10.0.4.17:6443", valid()), Accepted).at("10.0.4.17", 6443),
        Form::new("TKE", plain("https://cls-1a2b3c4d.ccs.tencent-cloud.com", valid()), Accepted)
            .at("cls-1a2b3c4d.ccs.tencent-cloud.com", 443),
    ]
}

fn installed() -> Vec<Form> {
    let mut rancher =
        config(cluster("https://rancher.example/k8s/clusters/c-m-1a2b3c"), json!({"token": "kubeconfig-user-x:secret"}));
    rancher["clusters"].as_array_mut().unwrap().push(json!({"name": "direct", "cluster": cluster("https://10.0.5.2:6443")}));
    rancher["contexts"].as_array_mut().unwrap().push(json!({"name": "direct", "context": {"cluster": "direct", "user": "u"}}));
    let openshift = || json!({"token": "sha256~0paque"});
    vec![
        Form::new("kubeadm, `/etc/kubernetes/admin.conf`", plain("https://control-plane.example:6443", valid()), Accepted)
            .at("control-plane.example", 6443),
        Form::new("k3s, `/etc/rancher/k3s/k3s.yaml` as it is", plain("https://127.0.0.1:6443", valid()), Refused(Kind::Server)),
        Form::new("k3s, with its server's address", plain("https://10.0.6.1:6443", valid()), Accepted).at("10.0.6.1", 6443),
        Form::new("kind, from `kind get kubeconfig`", plain("https://127.0.0.1:38291", valid()), Refused(Kind::Server)),
        Form::new("kind, from `kind get kubeconfig --internal`", plain("https://kind-control-plane:6443", valid()), Accepted)
            .at("kind-control-plane", 6443),
        Form::new("Rancher, through Rancher (a server with a path)", yaml(&rancher), Refused(Kind::Server)),
        Form {
            context: Some("direct"),
            ..Form::new("Rancher, a context of the authorized cluster endpoint", yaml(&rancher), Accepted)
        }
        .at("10.0.5.2", 6443),
        Form::new("OpenShift, port 6443", plain("https://api.prod.example:6443", openshift()), Accepted)
            .at("api.prod.example", 6443),
        Form::new("OpenShift with hosted control planes, port 443", plain("https://api.hcp.example:443", openshift()), Accepted)
            .at("api.hcp.example", 443),
        Form::new(
            "OpenShift, from `oc login` without a certificate authority",
            with(json!({"certificate-authority-data": null}), openshift()),
            Refused(Kind::Insecure),
        ),
    ]
}

fn servers() -> Vec<Form> {
    let server = |name, server: &str, outcome| Form::new(name, plain(server, valid()), outcome);
    vec![
        server("an IPv4 address", "https://10.80.1.32:6443", Accepted).at("10.80.1.32", 6443),
        server("an IPv6 address", "https://[2001:DB8::1]:6443", Accepted).at("2001:db8::1", 6443),
        server("an IPv6 address without brackets", "https://2001:db8::1:6443", Refused(Kind::Server)),
        Form::new("`tls-server-name`", with(json!({"tls-server-name": "API-2.example"}), valid()), Accepted),
        server("no port", "https://api.example", Accepted).at("api.example", 443),
        server("another port", "https://api.example:16443", Accepted).at("api.example", 16443),
        server("a port that is none", "https://api.example:0", Refused(Kind::Server)),
        server("a slash at the end, a dot at the host's", "HTTPS://API.example.:6443/", Accepted),
        server("no scheme", "api.example:6443", Accepted),
        server("`http`", "http://api.example:8080", Refused(Kind::Server)),
        server("user information", "https://admin:secret@api.example:6443", Refused(Kind::Server)),
        server("a host that is no DNS name (`_`, `*`, not ASCII, ...)", "https://api_1.example:6443", Refused(Kind::Server)),
        server("no server", "", Refused(Kind::Server)),
        Form::new("`proxy-url`", with(json!({"proxy-url": "http://proxy.example:3128"}), valid()), Refused(Kind::Server)),
    ]
}

fn authorities() -> Vec<Form> {
    let in_file = with(json!({"certificate-authority-data": null, "certificate-authority": "pki/ca.crt"}), valid());
    vec![
        Form::new("certificate authority as data", right(), Accepted),
        Form::new("certificate authority as a file", in_file.clone(), Accepted).with_file("pki/ca.crt", pair(-1, 3650).certificate),
        Form::new("certificate authority in a file that isn't there", in_file, Refused(Kind::Kubeconfig)),
        Form::new("no certificate authority", with(json!({"certificate-authority-data": null}), valid()), Refused(Kind::Insecure)),
        Form::new(
            "a certificate authority that is no PEM",
            with(json!({"certificate-authority-data": base64("hello")}), valid()),
            Refused(Kind::Insecure),
        ),
        Form::new(
            "`insecure-skip-tls-verify`",
            with(json!({"certificate-authority-data": null, "insecure-skip-tls-verify": true}), valid()),
            Refused(Kind::Insecure),
        ),
    ]
}

fn credentials() -> Vec<Form> {
    let user = |name, user: Value, outcome| Form::new(name, plain("https://api.example:6443", user), outcome);
    let mismatch = Pair { key: pair(-1, 1).key, ..pair(-1, 365) };
    let mut both = valid();
    both["token"] = json!("0paque");
    let mut acting = valid();
    acting["as"] = json!("admin");
    let own = pair(-1, 365);
    vec![
        user("client certificate as data", valid(), Accepted),
        user(
            "client certificate and key as files",
            json!({"client-certificate": "client.crt", "client-key": "client.key"}),
            Accepted,
        )
        .with_file("client.crt", own.certificate)
        .with_file("client.key", own.key),
        user("client certificate that ends within 30 days", client(&pair(-1, 20)), Warned),
        user("client certificate, expired", client(&pair(-30, -1)), Refused(Kind::Credentials)),
        user("client certificate, not valid yet", client(&pair(1, 30)), Refused(Kind::Credentials)),
        user("client certificate with another's key", client(&mismatch), Refused(Kind::Credentials)),
        user(
            "client certificate without a key",
            json!({"client-certificate-data": valid()["client-certificate-data"]}),
            Refused(Kind::Credentials),
        ),
        user("token that doesn't tell its end", token(), Accepted),
        user("token that ends (a JWT with `exp`)", json!({"token": jwt(720)}), Warned),
        user("token, expired", json!({"token": jwt(-1)}), Refused(Kind::Credentials)),
        user("`tokenFile`", json!({"tokenFile": "token"}), Accepted).with_file("token", "0paque\n"),
        user("token and client certificate", both, Accepted),
        user("exec", exec("login", &[]), Refused(Kind::Credentials)),
        user(
            "auth-provider",
            json!({"auth-provider": {"name": "oidc", "config": {"idp-issuer-url": "https://id.example"}}}),
            Refused(Kind::Credentials),
        ),
        user("user name and password", json!({"username": "admin", "password": "secret"}), Refused(Kind::Credentials)),
        user("impersonation (`as`, `as-groups`, ...)", acting, Refused(Kind::Credentials)),
        user("no credentials", json!({}), Refused(Kind::Credentials)),
    ]
}

fn contexts() -> Vec<Form> {
    let mut several = config(cluster("https://api.example:6443"), valid());
    several["contexts"].as_array_mut().unwrap().push(json!({"name": "d", "context": {"cluster": "k2", "user": "u"}}));
    several["clusters"].as_array_mut().unwrap().push(json!({"name": "k2", "cluster": cluster("https://api-2.example")}));
    let current = yaml(&several);
    several["current-context"] = json!("");
    let mut dangling = config(cluster("https://api.example:6443"), valid());
    dangling["contexts"][0]["context"]["user"] = json!("nobody");
    let here = config(cluster("https://api.example:6443"), json!({"tokenFile": "token"}));
    let mut there = config(cluster("https://api-2.example"), token());
    there["current-context"] = json!("elsewhere");
    let split = |name, list| {
        Form { list, ..Form::new(name, yaml(&there), Accepted) }
            .with_file("first/config", yaml(&here))
            .with_file("first/token", "0paque")
    };
    vec![
        Form::new("several contexts, one current", current, Accepted),
        Form::new("several contexts, none current", yaml(&several), Refused(Kind::Context)),
        Form { context: Some("d"), ..Form::new("several contexts, and `--context`", yaml(&several), Accepted) }
            .at("api-2.example", 443),
        Form::new("a context whose user or cluster is missing", yaml(&dangling), Refused(Kind::Kubeconfig)),
        split("a list of files, as in `$KUBECONFIG`", &["first/config", "config"]),
        split("a list with files that don't exist", &["nowhere/config", "first/config"]),
    ]
}

fn texts() -> Vec<Form> {
    let mut more = config(cluster("https://api.example:6443"), valid());
    more["clusters"][0]["cluster"]["extensions"] =
        json!([{"name": "minikube.sigs.k8s.io", "extension": {"provider": "x", "version": "1"}}]);
    more["users"][0]["user"]["from-the-future"] = json!([1, {"a": null}]);
    let refused = |name, text: Vec<u8>| Form::new(name, text, Refused(Kind::Kubeconfig));
    vec![
        Form::new("YAML", right(), Accepted),
        Form::new("JSON", config(cluster("https://api.example:6443"), valid()).to_string(), Accepted),
        Form::new("a byte order mark", format!("\u{feff}{}", right()), Accepted),
        Form::new("CRLF line ends", right().replace('\n', "\r\n"), Accepted),
        Form::new("UTF-16 with a byte order mark (Windows PowerShell)", utf16(&format!("\u{feff}{}", right())), Accepted),
        refused("UTF-16 without one", utf16(&right())),
        Form::new("fields that nobody knows", yaml(&more), Accepted),
        refused("a field given twice", format!("{}kind: Config\n", right()).into()),
        refused("two entries of one name", right().replace("clusters: [", "clusters: [{\"name\": \"k\"}, ").into()),
        refused("several YAML documents", format!("{}---\n{}", right(), right()).into()),
        refused("another object than a kubeconfig", b"apiVersion: v1\nkind: Secret\ndata: {}\n".to_vec()),
        refused("empty", Vec::new()),
        refused("binary", vec![0x1f, 0x8b, 0x08, 0x00, 0xff, 0xfe]),
        refused("a megabyte of nesting", b"[".repeat(1 << 20)),
        refused("more than 1 MiB", b"#".repeat((1 << 20) + 1)),
    ]
}

/// The rows of the table: form, outcome, and what is flattened or what to do.
fn rows() -> Vec<[String; 3]> {
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kubeconfigs.md")).unwrap();
    let cells = |line: &str| -> Option<[String; 3]> {
        let inner = line.strip_prefix("| ")?.strip_suffix(" |")?;
        let cells: Vec<_> = inner.split(" | ").map(str::to_owned).collect();
        cells.try_into().ok()
    };
    docs.lines().filter_map(cells).filter(|row| row[0] != "form" && !row[0].starts_with("--")).collect()
}

#[test]
fn every_form_is_decided_as_the_docs_say() {
    let mut rows = rows().into_iter();
    let mut right = 0;
    for form in forms() {
        let name = form.name;
        let [listed, outcome, what] = rows.next().unwrap_or_else(|| panic!("docs/kubeconfigs.md has no row for {name}"));
        assert_eq!(listed, name, "docs/kubeconfigs.md and the forms tested differ, or their order");
        assert_eq!(outcome, form.outcome.to_string(), "{name}: docs/kubeconfigs.md says otherwise");
        let directory = tempfile::tempdir().unwrap();
        let access = match (form.read(directory.path()), &form.outcome) {
            (Ok(access), Outcome::Accepted | Outcome::Warned) => access,
            (Err(failure), Outcome::Refused(kind)) => {
                assert_eq!(failure.kind, *kind, "{name}: {failure}");
                assert!(!failure.to_string().contains("secret"), "{name}: {failure}");
                let hint = failure.hint().replace('|', "\\|");
                assert_eq!(what, hint, "{name}: docs/kubeconfigs.md says to do something else");
                right += 1;
                continue;
            }
            (outcome, wanted) => panic!("{name}: {:?} and not {wanted}", outcome.map_err(|failure| failure.to_string())),
        };
        assert_eq!((access.host.to_string().as_str(), access.port), form.address, "{name}");
        let warned = lifetime::warning(&access, false, false, Timestamp::now()).is_some();
        assert_eq!(warned, form.outcome == Outcome::Warned, "{name}");
        is_self_contained(name, &access);
        right += 1;
    }
    let more: Vec<_> = rows.map(|row| row[0].clone()).collect();
    assert!(more.is_empty(), "docs/kubeconfigs.md has rows that no form tests: {more:?}");
    // For the benchmark's report.
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("kubeconfigs.json"), json!({"tried": forms().len(), "right": right}).to_string()).unwrap();
}

/// What is given to the hub needs no file and no command, and is the same when read again.
fn is_self_contained(name: &str, access: &Access) {
    let text = access.flattened("x");
    let config: Value = serde_json::from_str(text.expose_secret()).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let wanted: &[&str] = match access.credentials {
        Credentials::Token(_) => &["token"],
        Credentials::Certificate(..) => &["client-certificate-data", "client-key-data"],
    };
    assert_eq!(keys(&config["users"][0]["user"]), wanted, "{name}");
    let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap();
    assert_eq!(server, server.to_lowercase(), "{name}");
    let no_files = |_: &Path| Err(std::io::Error::other("there are none"));
    let again = Access::parse(text.expose_secret().as_bytes(), None, &no_files, Timestamp::now()).unwrap();
    assert_eq!(again.flattened("x").expose_secret(), text.expose_secret(), "{name}");
}
