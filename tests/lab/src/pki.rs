//! Certificate authorities and what they sign: for the lab's own parts, and for tests that need a wrong one.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SigningKey as _,
};

use crate::state;

const DAY: Duration = Duration::from_secs(24 * 3600);
const VALID: Duration = Duration::from_secs(365 * 24 * 3600);

/// A certificate and its key, both in PEM form.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS #8.
    pub key: String,
}

/// Never shows the key.
impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Pair {
    /// Writes `<stem>.crt` and `<stem>.key`.
    pub fn write(&self, directory: &Path, stem: &str) -> Result<()> {
        state::write(&directory.join(format!("{stem}.crt")), &self.certificate)?;
        state::write(&directory.join(format!("{stem}.key")), &self.key)
    }

    /// Reads what `write` wrote.
    pub fn read(directory: &Path, stem: &str) -> Result<Self> {
        let part = |extension: &str| state::read(&directory.join(format!("{stem}.{extension}")));
        Ok(Self { certificate: part("crt")?, key: part("key")? })
    }
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// For a year.
    Now,
    /// It ended yesterday.
    Expired,
}

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    pair: Pair,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate().context("can't make a key")?;
        let params = authority_params(name);
        let certificate = params.self_signed(&key).context("can't sign an authority")?.pem();
        Ok(Self { pair: Pair { certificate, key: key.serialize_pem() }, issuer: Issuer::new(params, key) })
    }

    /// The one of this name that `write` wrote as `ca.crt` and `ca.key`.
    pub fn read(directory: &Path, name: &str) -> Result<Self> {
        let pair = Pair::read(directory, "ca")?;
        let key = KeyPair::from_pem(&pair.key).with_context(|| format!("{}/ca.key is damaged", directory.display()))?;
        Ok(Self { pair, issuer: Issuer::new(authority_params(name), key) })
    }

    /// Writes `ca.crt` and `ca.key`.
    pub fn write(&self, directory: &Path) -> Result<()> {
        self.pair.write(directory, "ca")
    }

    /// Its own certificate, in PEM form.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.pair.certificate
    }

    /// A client certificate: Kubernetes reads the user from `name` and the group from `group`.
    pub fn client(&self, name: &str, group: Option<&str>, validity: Validity) -> Result<Pair> {
        self.sign(name, group, &[], validity)
    }

    /// A server certificate for these host names and addresses (which may be used by a client too, as Kubernetes' parts do).
    pub fn server(&self, name: &str, names: &[String], validity: Validity) -> Result<Pair> {
        self.sign(name, None, names, validity)
    }

    /// A certificate of a node's kubelet: server and client.
    pub fn kubelet(&self, node: &str, names: &[String]) -> Result<Pair> {
        self.sign(&format!("system:node:{node}"), Some("system:nodes"), names, Validity::Now)
    }

    fn sign(&self, name: &str, group: Option<&str>, names: &[String], validity: Validity) -> Result<Pair> {
        let key = KeyPair::generate().context("can't make a key")?;
        let mut params =
            CertificateParams::new(names.to_vec()).with_context(|| format!("not names for a certificate: {}", names.join(", ")))?;
        name_subject(&mut params, name, group);
        let now = SystemTime::now();
        let (from, to) = match validity {
            Validity::Now => (now - DAY, now + VALID),
            Validity::Expired => (now - 30 * DAY, now - DAY),
        };
        params.not_before = from.into();
        params.not_after = to.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !names.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let certificate = params.signed_by(&key, &self.issuer).with_context(|| format!("can't sign {name}"))?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    name_subject(&mut params, name, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn name_subject(params: &mut CertificateParams, name: &str, group: Option<&str>) {
    // Replaces rcgen's default common name.
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, name);
}

/// A key pair to sign service account tokens with: private and public, in PEM form.
pub fn token_keys() -> Result<(String, String)> {
    let key = KeyPair::generate().context("can't make a key")?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

/// Signs what a token says, by a key of `token_keys`, as API servers do: ES256, the two numbers one after the other.
pub fn sign_token(key: &str, said: &str) -> Result<Vec<u8>> {
    let key = KeyPair::from_pem(key).context("the key is damaged")?;
    let signature = key.sign(said.as_bytes()).context("can't sign")?;
    two_numbers(&signature).context("a signature of another form")
}

/// The numbers of an ECDSA signature on P-256, from ASN.1: a sequence of two integers, each shorter than 128 bytes.
fn two_numbers(signature: &[u8]) -> Option<Vec<u8>> {
    const SIZE: usize = 32;
    let mut rest = signature.get(2..)?;
    let mut numbers = Vec::with_capacity(2 * SIZE);
    for _ in 0..2 {
        let (length, after) = rest.strip_prefix(&[2])?.split_first()?;
        let (number, others) = after.split_at_checked(usize::from(*length))?;
        // A sign, which a positive number needs where its first bit is set.
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        numbers.resize(numbers.len() + SIZE.checked_sub(number.len())?, 0);
        numbers.extend(number);
        rest = others;
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_authority_read_back_signs_for_the_same_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new("a-ca").unwrap();
        authority.write(directory.path()).unwrap();
        let again = Authority::read(directory.path(), "a-ca").unwrap();
        assert_eq!(again.certificate(), authority.certificate());
        assert!(again.client("u", Some("g"), Validity::Expired).unwrap().certificate.contains("BEGIN CERTIFICATE"));
    }

    #[test]
    fn a_token_s_signature_is_two_numbers_of_one_length() {
        let (private, _) = token_keys().unwrap();
        for said in 0..20 {
            assert_eq!(sign_token(&private, &said.to_string()).unwrap().len(), 64);
        }
        let short = [0x30, 0, 2, 1, 7, 2, 2, 0, 0x80];
        let numbers = two_numbers(&short).unwrap();
        assert_eq!((numbers[31], numbers[63], numbers.iter().filter(|byte| **byte != 0).count()), (7, 0x80, 2));
        assert_eq!(two_numbers(&[0x30, 0, 2, 9]), None);
    }

    #[test]
    fn keys_are_never_shown() {
        let pair = Authority::new("a-ca").unwrap().server("s", &["s.example".to_owned()], Validity::Now).unwrap();
        assert!(pair.key.contains("PRIVATE KEY") && !format!("{pair:?}").contains("PRIVATE KEY"));
    }
}
