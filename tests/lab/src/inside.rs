//! Code run inside a place: its sockets are that network namespace's, so a test can be where the hub or the laptop is.

use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use kube::api::GetParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::{Client, Config};
use nix::sched::{CloneFlags, setns};

use crate::net::namespace_path;
use crate::topology::namespace;

/// Runs what `work` returns to its end in a thread of its own that has entered the network namespace of `place`.
/// Threads the runtime makes for blocking calls are there too.
pub fn in_namespace<T, F, W>(place: &str, work: W) -> Result<T>
where
    T: Send,
    F: Future<Output = Result<T>>,
    W: FnOnce() -> F + Send,
{
    in_network(&namespace_path(&namespace(place)), work)
}

/// The same in the network namespace that this file is.
pub fn in_network<T, F, W>(path: &Path, work: W) -> Result<T>
where
    T: Send,
    F: Future<Output = Result<T>>,
    W: FnOnce() -> F + Send,
{
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            enter_network(path)?;
            // Whoever was first has chosen; ring is the only one here.
            drop(rustls::crypto::ring::default_provider().install_default());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("can't start a runtime")?;
            let result = runtime.block_on(work());
            // A resolver thread that hangs must not keep the caller.
            runtime.shutdown_background();
            result
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves this thread into the network namespace of `place`. Sockets it has stay where they were made.
pub fn enter(place: &str) -> Result<()> {
    enter_network(&namespace_path(&namespace(place)))
}

fn enter_network(path: &Path) -> Result<()> {
    let entered = File::open(path).with_context(|| format!("no network at {}; is the lab up?", path.display()))?;
    setns(entered, CloneFlags::CLONE_NEWNET).with_context(|| format!("can't enter {}", path.display()))
}

/// A client for the kubeconfig in this file. To be made inside a place that reaches its server.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let failed = || format!("can't use {}", kubeconfig.display());
    let parsed = Kubeconfig::read_from(kubeconfig).with_context(failed)?;
    let mut config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await.with_context(failed)?;
    config.connect_timeout = Some(Duration::from_secs(3));
    config.read_timeout = Some(Duration::from_secs(30));
    // The machine's proxy settings are none of the lab's.
    config.proxy_url = None;
    Client::try_from(config).with_context(failed)
}

/// One GET of an API server's path, its body as text.
pub fn get(place: &str, kubeconfig: &Path, path: &str) -> Result<String> {
    in_namespace(place, || async {
        let (parent, name) = path.rsplit_once('/').context("not a path")?;
        let request = Request::new(parent).get(name, &GetParams::default()).context("not a path")?;
        let client = client(kubeconfig).await?;
        tokio::time::timeout(Duration::from_secs(5), client.request_text(request))
            .await
            .map_err(|_| anyhow!("no answer"))?
            .with_context(|| format!("GET {path}"))
    })
}
