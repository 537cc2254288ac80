//! Whatever bytes a kubeconfig is, it is refused, or what comes of it can stand in a route and in a kubeconfig again.

#![no_main]

use std::path::Path;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use secrecy::ExposeSecret as _;
use xregion::model::kubeconfig::Access;

fuzz_target!(|bytes: &[u8]| {
    let no_files = |_: &Path| Err(std::io::Error::other("no files"));
    let Ok(access) = Access::parse(bytes, None, &no_files, Timestamp::UNIX_EPOCH) else { return };
    let host = access.host.to_string();
    assert!(host.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-:".contains(c)), "{host:?}");
    let flat = access.flattened("name");
    let again =
        Access::parse(flat.expose_secret().as_bytes(), None, &no_files, Timestamp::UNIX_EPOCH).expect("it was accepted before");
    assert_eq!((&again.host, again.port, &again.ca), (&access.host, access.port, &access.ca));
    assert_eq!(again.flattened("name").expose_secret(), flat.expose_secret());
});
