//! Who the hub is in a cluster: what of a kubeconfig's user KubeVela can keep.

use jiff::Timestamp;
use kube::config::AuthInfo;
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret as _, SecretString};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{ReadFile, inline_or_file, read_file};
use crate::error::{Failure, Kind, Result};
use crate::model::lifetime::{self, Lifetime};

/// Credentials that KubeVela can keep.
#[derive(Clone)]
pub enum Credentials {
    /// A bearer token.
    Token(SecretString),
    /// A client certificate (PEM, its chain after it) and its key (PEM).
    Certificate(Vec<u8>, SecretString),
}

fn unusable(cause: &str) -> Failure {
    refused(cause, "give a kubeconfig with the token of a ServiceAccount, or with a client certificate and its key")
}

fn refused(cause: &str, hint: &str) -> Failure {
    Failure::new(Kind::Credentials, cause, hint)
}

/// For users that have no credentials but a way to get some: `xregion kubeconfig` makes what lasts.
fn fleeting(cause: &str) -> Failure {
    refused(cause, "where kubectl works with it, make one that lasts: xregion kubeconfig --kubeconfig FILE --output NEW-FILE")
}

impl Credentials {
    /// Reads a kubeconfig's user. Where it has several credentials, the token counts: that is what KubeVela keeps.
    ///
    /// # Errors
    /// It has none that a hub can use, or none that is valid at `now`.
    pub fn of(user: &AuthInfo, read: ReadFile<'_>, now: Timestamp) -> Result<Self> {
        if impersonates(user) {
            return Err(refused(
                "the kubeconfig's user impersonates another, which KubeVela can't keep",
                "give the kubeconfig of that other user, or of a ServiceAccount with its rights",
            ));
        }
        if let Some(token) = user.token.as_ref().filter(|token| !token.expose_secret().is_empty()) {
            return Self::token(token.expose_secret(), now);
        }
        if let Some(path) = user.token_file.as_deref().filter(|path| !path.is_empty()) {
            let token = read_file("tokenFile", path, read)?;
            let token = std::str::from_utf8(&token).map_err(|_| unusable("the kubeconfig's token file holds no token"))?;
            return Self::token(token.trim(), now);
        }
        let certificate = inline_or_file(
            "client-certificate",
            user.client_certificate_data.as_deref(),
            user.client_certificate.as_deref(),
            read,
        )?;
        let key_data = user.client_key_data.as_ref().map(|data| data.expose_secret());
        let key = inline_or_file("client-key", key_data, user.client_key.as_deref(), read)?;
        match (certificate, key) {
            (Some(certificate), Some(key)) => Self::certificate(certificate, key, now),
            (Some(_), None) => Err(unusable("the kubeconfig has a client certificate but no key to it")),
            (None, Some(_)) => Err(unusable("the kubeconfig has a client key but no certificate to it")),
            (None, None) if user.exec.is_some() => Err(fleeting(
                "the kubeconfig gets its credentials from a command (exec), and what it prints expires within minutes or hours",
            )),
            (None, None) if user.auth_provider.is_some() => {
                Err(fleeting("the kubeconfig gets its credentials from an auth provider, which KubeVela doesn't have"))
            }
            (None, None) if user.username.is_some() => {
                Err(unusable("the kubeconfig has a user name and password, which API servers no longer accept"))
            }
            (None, None) => Err(unusable("the kubeconfig's user has no credentials")),
        }
    }

    fn token(token: &str, now: Timestamp) -> Result<Self> {
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(unusable("the kubeconfig's token is empty, or has characters no token has"));
        }
        let this = Self::Token(token.to_owned().into());
        match this.expires().filter(|expires| *expires <= now) {
            Some(expired) => Err(refused(
                &format!("the kubeconfig's token expired at {expired}"),
                "get a new one; xregion kubeconfig makes a kubeconfig whose token lasts",
            )),
            None => Ok(this),
        }
    }

    fn certificate(certificate: Vec<u8>, key: Vec<u8>, now: Timestamp) -> Result<Self> {
        let no_key = || unusable("the kubeconfig's client key is no PEM private key");
        let chain = CertificateDer::pem_slice_iter(&certificate).collect::<Result<Vec<_>, _>>().unwrap_or_default();
        let parsed = chain.first().and_then(|first| X509Certificate::from_der(first).ok());
        let Some((_, parsed)) = parsed else {
            return Err(unusable("the kubeconfig's client certificate is no PEM certificate"));
        };
        let (from, until) = (timestamp(parsed.validity.not_before.timestamp()), timestamp(parsed.validity.not_after.timestamp()));
        if let Some(until) = until.filter(|until| *until <= now) {
            return Err(refused(
                &format!("the kubeconfig's client certificate expired at {until}"),
                "have it renewed, and give the new kubeconfig",
            ));
        }
        if let Some(from) = from.filter(|from| *from > now) {
            return Err(refused(
                &format!("the kubeconfig's client certificate is not valid before {from}, and it is {now}"),
                "wait until then, or set the clock of whoever signed it or of the machine this runs on",
            ));
        }
        let private = PrivateKeyDer::from_pem_slice(&key).map_err(|_| no_key())?;
        match CertifiedKey::from_der(chain, private, &ring::default_provider()) {
            Ok(_) => {}
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                return Err(refused(
                    "the kubeconfig's client key is not the key of its client certificate",
                    "copy both again from where the kubeconfig was made",
                ));
            }
            Err(error) => return Err(unusable(&format!("the kubeconfig's client certificate or key can't be used: {error}"))),
        }
        Ok(Self::Certificate(certificate, String::from_utf8(key).map_err(|_| no_key())?.into()))
    }

    /// When they end, where that can be told: a certificate says it, and most tokens do.
    pub fn expires(&self) -> Option<Timestamp> {
        match self {
            Self::Token(token) => lifetime::Claims::of(token.expose_secret())?.expires,
            Self::Certificate(pem, _) => certificate_validity(pem).1,
        }
    }

    /// From when to when they are valid, where both can be told.
    pub fn lifetime(&self) -> Option<Lifetime> {
        match self {
            Self::Token(token) => lifetime::Claims::of(token.expose_secret())?.lifetime(),
            Self::Certificate(pem, _) => {
                let (from, until) = certificate_validity(pem);
                Lifetime::new(from?, until?)
            }
        }
    }
}

/// From when to when a certificate (PEM, the first of its chain) is valid.
fn certificate_validity(pem: &[u8]) -> (Option<Timestamp>, Option<Timestamp>) {
    let Ok(der) = CertificateDer::from_pem_slice(pem) else { return (None, None) };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return (None, None) };
    let validity = &certificate.validity;
    (timestamp(validity.not_before.timestamp()), timestamp(validity.not_after.timestamp()))
}

/// None for the year 9999, which stands for "never" in a certificate (RFC 5280, 4.1.2.5).
fn timestamp(seconds: i64) -> Option<Timestamp> {
    Timestamp::from_second(seconds).ok()
}

fn impersonates(user: &AuthInfo) -> bool {
    let named = |name: &Option<String>| name.as_deref().is_some_and(|name| !name.is_empty());
    named(&user.impersonate)
        || named(&user.impersonate_uid)
        || user.impersonate_groups.as_ref().is_some_and(|groups| !groups.is_empty())
        || user.impersonate_user_extra.as_ref().is_some_and(|extra| !extra.is_empty())
}
