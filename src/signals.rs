//! When this process is asked to end.

use std::future::pending;
use std::io::Result;

use futures::future::select_all;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Ends when this process is asked to end: by Kubernetes (SIGTERM), from a terminal (SIGINT), or with it (SIGHUP). Whoever asks from this call
/// on is noticed, also before the future is polled.
pub fn asked_to_end() -> impl Future<Output = ()> {
    let signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let wait = async |signal: Result<Signal>| match signal {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => pending().await,
    };
    async move { drop(select_all(signals.map(|signal| Box::pin(wait(signal)))).await) }
}
