//! The token that the hub has already, kept where it lasts longer than the one that is brought.
//!
//! What a brought token says of its subject, anybody can write. So the hub's is shown only to who sees it anyway, with each request of the
//! gateway: a server with a certificate for the name, and by the authority, that the cluster is joined with.

use std::io;
use std::path::Path;

use jiff::Timestamp;
use secrecy::ExposeSecret as _;

use super::Join;
use crate::error::{Failure, Kind, Result};
use crate::hub::clusters::JoinedCluster;
use crate::model::kubeconfig::{Access, Credentials};
use crate::model::lifetime::choose_token;
use crate::model::names::{ApiHost, DnsName};
use crate::model::renewal::outlived;
use crate::probe::{self, Door};

/// Reads a kubeconfig from a Secret; with the hub's token in the place of one that is over, if its server may see that. Gives whether it
/// is the hub's.
pub(super) fn read(text: &[u8], context: Option<&str>, before: Option<&JoinedCluster>, now: Timestamp) -> Result<(Access, bool)> {
    let no_files = |_: &Path| Err(io::Error::other("a Secret holds no files"));
    let parse = |text: &[u8]| Access::parse(text, context, &no_files, now);
    if let Some(cluster) = before
        && let Some(Credentials::Token(held)) = cluster.credentials()
        && let Some(with_held) = outlived(text, context, &held, now)
        && let Ok(access) = parse(&with_held)
        && let Some(name) = match access.certificate_name() {
            ApiHost::Dns(name) => Some(name),
            // Its name is chosen when its certificate is seen, and looked at then.
            ApiHost::Ip(_) => cluster.host(),
        }
        && cluster.is_shown_to(&name, &access.ca)
    {
        return Ok((access, true));
    }
    Ok((parse(text)?, false))
}

/// The access with the hub's token in the place of one that ends sooner, if a server of that name may see it.
fn with_later(access: &Access, cluster: &JoinedCluster, alias: &DnsName, now: Timestamp) -> Option<Access> {
    let (Credentials::Token(brought), Credentials::Token(held)) = (&access.credentials, cluster.credentials()?) else {
        return None;
    };
    let (brought, existing) = (brought.expose_secret(), held.expose_secret());
    if existing == brought || choose_token(existing, brought, now) == brought || !cluster.is_shown_to(alias, &access.ca) {
        return None;
    }
    Some(Access { credentials: Credentials::Token(held), ..access.clone() })
}

impl Join<'_> {
    /// Refuses to show the hub's token to a server that has turned out to be of another name.
    pub(super) fn check_kept(&self, alias: &DnsName) -> Result<()> {
        let is_known = |cluster: &JoinedCluster| cluster.is_shown_to(alias, &self.access.ca);
        if !self.kept_token || self.before.as_ref().is_some_and(is_known) {
            return Ok(());
        }
        Err(Failure::new(
            Kind::Credentials,
            format!(
                "the kubeconfig's token has expired or ends sooner than the hub's, which is not shown to {alias}: {} is joined by another name",
                self.member.cluster
            ),
            "get a new one; xregion kubeconfig makes a kubeconfig whose token lasts",
        ))
    }

    /// Goes on with the hub's token in place of the one brought, if it is of the same subject, ends later, and the cluster still
    /// accepts it: of one that was revoked, its text doesn't tell.
    pub(super) async fn keep_later_token(&mut self, door: &Door, alias: &DnsName, identity: &str) -> Result<()> {
        let kept = self.before.as_ref().and_then(|cluster| with_later(&self.access, cluster, alias, Timestamp::now()));
        let Some(kept) = kept else { return Ok(()) };
        match probe::client(door, alias, &kept)?.identity().await {
            Ok(found) if found == identity => {
                tracing::info!(cluster = %self.member.cluster, "the hub's token ends later than the one brought, and is kept");
                self.access = kept;
                self.kept_token = true;
            }
            // It leads somewhere else, or nowhere.
            Ok(_) => {}
            Err(failure) if matches!(failure.kind, Kind::Unauthorized | Kind::Forbidden) => {}
            Err(failure) => return Err(failure),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(50).unwrap()
    }

    fn token(expires: i64) -> String {
        let claims = json!({"kubernetes.io": {"serviceaccount": {"uid": "1"}}, "exp": expires});
        format!("e30.{}.c2lnbmF0dXJl", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn authority() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
    }

    /// A cluster that was joined as `a.example`, with a token that ends at 90.
    fn joined(ca: &str) -> JoinedCluster {
        let base64 = |text: &str| BASE64_STANDARD.encode(text);
        let secret = json!({
            "metadata": {"labels": {"cluster.core.oam.dev/cluster-credential-type": "ServiceAccountToken"}},
            "data": {"endpoint": base64("https://a.example:30000"), "ca.crt": base64(ca), "token": base64(&token(90))},
        });
        serde_json::from_value::<k8s_openapi::api::core::v1::Secret>(secret).unwrap().into()
    }

    fn kubeconfig(server: &str, name: Option<&str>, ca: &str, token: &str) -> Vec<u8> {
        json!({
            "clusters": [{"name": "k", "cluster": {
                "server": server, "tls-server-name": name, "certificate-authority-data": BASE64_STANDARD.encode(ca),
            }}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "users": [{"name": "u", "user": {"token": token}}], "current-context": "c",
        })
        .to_string()
        .into_bytes()
    }

    fn shown(access: &Access) -> &str {
        let Credentials::Token(shown) = &access.credentials else { panic!("it is a token") };
        shown.expose_secret()
    }

    #[test]
    fn the_hub_s_token_goes_to_no_server_but_the_one_that_has_it() {
        let (mine, other) = (authority(), authority());
        let cluster = joined(&mine);
        let read = |server: &str, name: Option<&str>, ca: &str, before| {
            super::read(&kubeconfig(server, name, ca, &token(40)), None, before, now())
        };
        for (server, name, why) in [
            ("https://a.example", None, "as it was joined"),
            ("https://10.0.0.1:6443", Some("a.example"), "by another way to the same server"),
            ("https://10.0.0.1:6443", None, "its name is known when its certificate was seen"),
        ] {
            let (access, kept) = read(server, name, &mine, Some(&cluster)).unwrap();
            assert_eq!((shown(&access), kept), (token(90).as_str(), true), "{why}");
        }
        for (server, name, ca, before, why) in [
            ("https://evil.example", None, &other, Some(&cluster), "another server"),
            ("https://a.example", None, &other, Some(&cluster), "whoever has signed its certificate"),
            ("https://10.0.0.1:6443", None, &other, Some(&cluster), "the same by address"),
            ("https://evil.example", None, &mine, Some(&cluster), "an authority that signs for others, too"),
            ("https://a.example", Some("evil.example"), &mine, Some(&cluster), "its certificate counts"),
            ("https://a.example", None, &mine, None, "nothing is joined"),
        ] {
            let failure = read(server, name, ca, before).unwrap_err();
            assert_eq!(failure.kind, Kind::Credentials, "{why}");
            assert!(failure.cause().starts_with("the kubeconfig's token expired at "), "{why}: {failure}");
        }
    }

    #[test]
    fn nor_does_it_take_the_place_of_one_that_ends_sooner() {
        let (mine, other) = (authority(), authority());
        let cluster = joined(&mine);
        for (alias, ca, brought, kept, why) in [
            ("a.example", &mine, 60, true, "it is the same server"),
            ("a.example", &mine, 99, false, "the one brought ends later"),
            ("a.example", &mine, 90, false, "it is the same token"),
            ("a.example", &other, 60, false, "whoever has signed its certificate"),
            ("evil.example", &mine, 60, false, "an authority that signs for others, too"),
        ] {
            let text = kubeconfig("https://10.0.0.1:6443", None, ca, &token(brought));
            let (access, _) = super::read(&text, None, None, now()).unwrap();
            let later = with_later(&access, &cluster, &alias.parse().unwrap(), now());
            assert_eq!(later.as_ref().map(shown), kept.then_some(token(90).as_str()), "{why}");
        }
    }
}
