//! How long credentials last, and which of two tokens to keep. A token's claims are read and never verified: only its API server
//! can do that.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use serde::Deserialize;
use serde_json::Value;

use super::kubeconfig::{Access, Credentials};
use super::names::ObjectName;

/// How long before their end credentials count as expiring.
pub const SOON: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How long before a certificate's end a join warns of it.
const NOTICE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What a token (a JWT) says of itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Claims {
    /// Whose it is.
    pub subject: Option<Subject>,
    /// The ServiceAccount whose it is, by name.
    pub account: Option<Account>,
    /// When it was made.
    pub issued: Option<Timestamp>,
    /// When it ends; none is for ever.
    pub expires: Option<Timestamp>,
}

/// Where a ServiceAccount is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Account {
    /// Its namespace.
    pub namespace: ObjectName,
    /// Its name.
    pub name: ObjectName,
}

impl Account {
    /// Reads what a token says of its subject.
    fn of_subject(subject: &str) -> Option<Self> {
        let (namespace, name) = subject.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        Some(Self { namespace: namespace.parse().ok()?, name: name.parse().ok()? })
    }
}

/// As Kubernetes' tools write it.
impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// From when to when credentials are valid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lifetime {
    /// When they were made.
    pub issued: Timestamp,
    /// When they end; later than that.
    pub expires: Timestamp,
}

impl Lifetime {
    /// None where they end before they begin.
    pub fn new(issued: Timestamp, expires: Timestamp) -> Option<Self> {
        (issued < expires).then_some(Self { issued, expires })
    }

    /// How long it is as a whole.
    pub fn length(&self) -> SignedDuration {
        self.expires.duration_since(self.issued)
    }

    /// From when they are to be renewed: when a third of it is left.
    pub fn renewal(&self) -> Timestamp {
        self.end_less(3)
    }

    /// From when it is late to renew them: when a tenth of it is left.
    pub fn late(&self) -> Timestamp {
        self.end_less(10)
    }

    /// The end, less such a part of the whole, in whole seconds.
    fn end_less(&self, part: i64) -> Timestamp {
        self.expires.checked_sub(SignedDuration::from_secs(self.length().as_secs() / part)).unwrap_or(self.issued)
    }
}

/// What a cluster is asked for a ServiceAccount's token that lasts so long. It may give one that lasts less.
pub fn token_request(lasting: Duration) -> TokenRequest {
    let seconds = i64::try_from(lasting.as_secs()).ok();
    TokenRequest {
        spec: TokenRequestSpec { expiration_seconds: seconds, ..TokenRequestSpec::default() },
        ..TokenRequest::default()
    }
}

/// Whose a token is. A ServiceAccount that was deleted and made again is another one, and its old tokens are void; what issues
/// its tokens may be called otherwise without making it another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Subject {
    /// A ServiceAccount, by its UID.
    ServiceAccount(String),
    /// Anybody else, by issuer and name.
    Other(Option<String>, String),
}

#[derive(Deserialize)]
struct Payload {
    iss: Option<String>,
    sub: Option<String>,
    iat: Option<f64>,
    exp: Option<f64>,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: Value,
    /// In tokens from before Kubernetes 1.21, kept in Secrets.
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    account_uid: Option<String>,
}

impl Claims {
    /// Reads a token's claims; none where it is opaque.
    pub fn of(token: &str) -> Option<Self> {
        let mut parts = token.split('.');
        let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return None;
        };
        let payload: Payload = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let uid = payload.kubernetes["serviceaccount"]["uid"].as_str().map(str::to_owned).or(payload.account_uid);
        // Seconds since 1970, of which RFC 7519 allows fractions. What lies beyond every calendar is never.
        let time = |seconds: Option<f64>| seconds.and_then(|seconds| Timestamp::from_second(seconds as i64).ok());
        let account = payload.sub.as_deref().and_then(Account::of_subject);
        let subject = match (uid, payload.sub) {
            (Some(uid), _) => Some(Subject::ServiceAccount(uid)),
            (None, Some(name)) => Some(Subject::Other(payload.iss, name)),
            (None, None) => None,
        };
        Some(Self { subject, account, issued: time(payload.iat), expires: time(payload.exp) })
    }

    /// Its lifetime, where it tells both ends of it.
    pub fn lifetime(&self) -> Option<Lifetime> {
        Lifetime::new(self.issued?, self.expires?)
    }
}

/// When the credentials of an access end, where that can be told.
pub fn expiry(access: &Access) -> Option<Timestamp> {
    access.credentials.expires()
}

/// The token to keep of the one that the hub has and the one that is brought: the later-ending, if both are the same subject's.
pub fn choose_token<'a>(existing: &'a str, brought: &'a str, now: Timestamp) -> &'a str {
    let (Some(old), Some(new)) = (Claims::of(existing), Claims::of(brought)) else { return brought };
    let ends = |claims: &Claims| claims.expires.unwrap_or(Timestamp::MAX);
    if old.subject.is_some() && old.subject == new.subject && ends(&old) > ends(&new).max(now) { existing } else { brought }
}

/// What a user should know of the end of the credentials: of any token's, and of a certificate's when it is near. `kept` is whether
/// they are the hub's own, in place of those that were brought; `renewed` whether the controller makes new ones in time.
pub fn warning(access: &Access, kept: bool, renewed: bool, now: Timestamp) -> Option<String> {
    let Some(expires) = expiry(access) else {
        return kept.then(|| "its token never expires, and is kept: the one brought does".to_owned());
    };
    let left = expires.duration_since(now);
    let what = match access.credentials {
        Credentials::Token(_) => "token",
        Credentials::Certificate(..) if left <= NOTICE => "client certificate",
        Credentials::Certificate(..) => return None,
    };
    let then = match (kept, renewed) {
        (true, _) => ", and is kept: the one brought expires sooner",
        (false, true) => "; the addon's controller renews it before",
        (false, false) => ": join it with a new kubeconfig before",
    };
    Some(format!("its {what} expires at {expires}, {} from now{then}", in_words(left)))
}

/// A time to come, in the largest unit of which there are two.
pub fn in_words(duration: SignedDuration) -> String {
    match duration.as_secs().max(0) {
        seconds @ 0..120 => format!("{seconds} seconds"),
        seconds @ 120..7_200 => format!("{} minutes", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} hours", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn jwt(payload: &Value) -> String {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2lnbmF0dXJl", part(&json!({"alg": "RS256"})), part(payload))
    }

    /// A token of ServiceAccount `uid` that ends so many hours from now.
    fn bound(uid: &str, hours: i64) -> String {
        jwt(&json!({
            "iss": "https://kubernetes.default.svc", "sub": "system:serviceaccount:vela-system:xregion",
            "exp": now().as_second() + hours * 3600, "kubernetes.io": {"serviceaccount": {"name": "xregion", "uid": uid}},
        }))
    }

    fn access(token: &str) -> Access {
        Access {
            host: "api.example".parse().unwrap(),
            port: 443,
            tls_server_name: None,
            ca: Vec::new(),
            credentials: Credentials::Token(token.to_owned().into()),
        }
    }

    #[test]
    fn the_end_of_a_token_is_its_exp_claim() {
        let ends = |payload| expiry(&access(&jwt(&payload))).map(|end| end.to_string());
        assert_eq!(ends(json!({"exp": 1_767_225_600})).as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(ends(json!({"exp": 1_767_225_600.7})).as_deref(), Some("2026-01-01T00:00:00Z"));
        for (payload, why) in [
            (json!({"sub": "x"}), "no exp"),
            (json!({"exp": null}), "null"),
            (json!({"exp": "soon"}), "no number"),
            (json!({"exp": 1e300}), "beyond every calendar"),
            (json!([1]), "no claims"),
        ] {
            assert_eq!(ends(payload), None, "{why}");
        }
        for opaque in ["t0ken", "sha256~abc", "a.b.c", "a.b", "..", "kubeconfig-u-x:abcdef"] {
            assert_eq!(Claims::of(opaque), None, "{opaque}");
        }
    }

    #[test]
    fn a_token_tells_its_account_and_its_lifetime() {
        let claims = |payload| Claims::of(&jwt(&payload)).unwrap();
        let told = claims(json!({"sub": "system:serviceaccount:vela-system:xregion", "iat": 1_767_222_000, "exp": 1_767_225_600}));
        assert_eq!(told.account.as_ref().map(ToString::to_string).as_deref(), Some("vela-system/xregion"));
        let lifetime = told.lifetime().unwrap();
        assert_eq!(lifetime.length(), SignedDuration::from_hours(1));
        assert_eq!(lifetime.renewal().to_string(), "2025-12-31T23:40:00Z");
        assert_eq!(lifetime.late().to_string(), "2025-12-31T23:54:00Z");
        for (payload, why) in [
            (json!({"sub": "system:serviceaccount:a:../b", "exp": 9}), "a name that leads elsewhere"),
            (json!({"sub": "system:serviceaccount:a"}), "no name"),
            (json!({"sub": "alice", "iat": 1, "exp": 1}), "a person, and no time"),
            (json!({"iat": 2, "exp": 1}), "it ends before it begins"),
        ] {
            let claims = claims(payload);
            assert_eq!((claims.account.clone(), claims.lifetime()), (None, None), "{why}");
        }
    }

    #[test]
    fn the_later_token_of_a_subject_is_kept() {
        let legacy = jwt(&json!({
            "iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:vela-system:xregion",
            "kubernetes.io/serviceaccount/service-account.uid": "1",
        }));
        let person = |issuer: &str, hours: i64| jwt(&json!({"iss": issuer, "sub": "a", "exp": now().as_second() + hours * 3600}));
        for (existing, brought, kept, why) in [
            (bound("1", 2), bound("1", 1), true, "it ends later"),
            (bound("1", 1), bound("1", 2), false, "it ends earlier"),
            (bound("1", -1), bound("1", -2), false, "both are over"),
            (bound("1", 2), bound("2", 1), false, "the ServiceAccount was made again"),
            (legacy.clone(), bound("1", 9), true, "it never ends"),
            (bound("1", 9), legacy, false, "the other never ends"),
            (person("x", 2), person("x", 1), true, "people have tokens, too"),
            (person("x", 2), person("y", 1), false, "another issuer's a"),
            ("opaque".into(), bound("1", 1), false, "nothing is known of it"),
            (bound("1", 1), "opaque".into(), false, "nothing is known of the other"),
            (jwt(&json!({"exp": now().as_second() + 7200})), jwt(&json!({})), false, "nobody's"),
        ] {
            assert_eq!(choose_token(&existing, &brought, now()) == existing, kept, "{why}");
        }
    }

    #[test]
    fn every_token_s_end_is_told_and_a_certificate_s_when_it_is_near() {
        let told = |hours| warning(&access(&bound("1", hours)), false, false, now()).unwrap();
        assert_eq!(told(720), "its token expires at 2026-01-31T00:00:00Z, 30 days from now: join it with a new kubeconfig before");
        assert!(told(24).contains("24 hours from now") && told(1).contains("60 minutes"));
        let renewed = warning(&access(&bound("1", 48)), false, true, now()).unwrap();
        assert!(renewed.ends_with("2 days from now; the addon's controller renews it before"), "{renewed}");
        let kept = |token: &str| warning(&access(token), true, true, now()).unwrap();
        assert!(kept(&bound("1", 48)).ends_with("2 days from now, and is kept: the one brought expires sooner"));
        assert_eq!(kept(&jwt(&json!({"sub": "x"}))), "its token never expires, and is kept: the one brought does");
        assert_eq!(warning(&access("opaque"), false, false, now()), None);
        for (days, want) in [(29, Some("its client certificate expires at 2026-01-30T00:00:00Z, 29 days")), (31, None)] {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::default();
            let end = now() + SignedDuration::from_hours(days * 24);
            params.not_after = std::time::SystemTime::from(end).into();
            let certificate = params.self_signed(&key).unwrap().pem().into_bytes();
            let credentials = Credentials::Certificate(certificate, key.serialize_pem().into());
            let told = warning(&Access { credentials, ..access("") }, false, false, now());
            assert_eq!(told.is_some(), want.is_some(), "{told:?}");
            assert!(told.unwrap_or_default().starts_with(want.unwrap_or_default()));
        }
    }

    proptest! {
        #[test]
        fn a_lifetime_comes_to_its_renewal_then_late_then_to_its_end(issued in 0_i64..4_000_000_000, length in 10_i64..400_000_000) {
            let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
            let lifetime = Lifetime::new(at(issued), at(issued + length)).unwrap();
            let times = [lifetime.issued, lifetime.renewal(), lifetime.late(), lifetime.expires];
            prop_assert!(times.is_sorted_by(|one, next| one < next), "{:?}", times);
        }

        #[test]
        fn no_text_makes_it_panic(text in ".*", payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            Claims::of(&text);
            Claims::of(&format!("a.{}.b", BASE64_URL_SAFE_NO_PAD.encode(payload)));
        }
    }
}
