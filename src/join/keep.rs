//! The token that the hub has already, kept where it lasts longer than the one that is brought.

use jiff::Timestamp;
use secrecy::ExposeSecret as _;

use super::Join;
use crate::error::{Kind, Result};
use crate::model::kubeconfig::{Access, Credentials};
use crate::model::lifetime::choose_token;
use crate::model::names::DnsName;
use crate::probe::{self, Door};

impl Join<'_> {
    /// Goes on with the hub's token in place of the one brought, if it is of the same subject, ends later, and the cluster still
    /// accepts it: of one that was revoked, its text doesn't tell.
    pub(super) async fn keep_later_token(&mut self, door: &Door, alias: &DnsName, identity: &str) -> Result<()> {
        let Credentials::Token(brought) = &self.access.credentials else { return Ok(()) };
        let existing = self.before.as_ref().and_then(|cluster| cluster.data("token"));
        let Some(existing) = existing.and_then(|token| std::str::from_utf8(token).ok()) else { return Ok(()) };
        let brought = brought.expose_secret();
        if existing == brought || choose_token(existing, brought, Timestamp::now()) == brought {
            return Ok(());
        }
        let kept = Access { credentials: Credentials::Token(existing.to_owned().into()), ..self.access.clone() };
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
