//! The `xregion` program.

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    // kube and the probe share one provider. The only error is that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let filter = EnvFilter::try_from_env("XREGION_LOG").unwrap_or_else(|_| EnvFilter::new("xregion=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).with_ansi(false).init();
    xregion::run::run().await
}
