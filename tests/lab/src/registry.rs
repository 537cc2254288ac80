//! The helm-type addon registry: a directory served over HTTP on the hub's node.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::Daemon;
use crate::state::{self, State};
use crate::topology::{REGISTRY_PORT, hub_address};

const PLACE: &str = "hub";

/// Where the registry is, for the hub, its pods and the laptop.
#[must_use]
pub fn url() -> String {
    format!("http://{}:{REGISTRY_PORT}", hub_address())
}

/// Serves the registry's directory unless it is served.
pub fn ensure(state: &State) -> Result<()> {
    let root = state.registry();
    let index = root.join("index.yaml");
    if !index.exists() {
        state::write(&index, "apiVersion: v1\nentries: {}\n")?;
    }
    let own = state.place(PLACE).join("registry");
    state::make_dir(&own)?;
    let config = own.join("nginx.conf");
    state::write(&config, configuration(&root, &own))?;
    let daemon = Daemon::new(state, PLACE, "registry");
    daemon.ensure(Path::new("nginx"), &["-c".to_owned(), config.display().to_string()])?;
    daemon.await_ready(Duration::from_secs(20), || {
        crate::inside::in_namespace(PLACE, || async {
            tokio::net::TcpStream::connect((hub_address(), REGISTRY_PORT)).await.context("not listening")?;
            Ok(())
        })
    })
}

fn configuration(root: &Path, own: &Path) -> String {
    let (root, own, address) = (root.display(), own.display(), hub_address());
    format!(
        "daemon off;
user root;
worker_processes 1;
pid {own}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {own}/body;
    proxy_temp_path {own}/proxy;
    fastcgi_temp_path {own}/fastcgi;
    uwsgi_temp_path {own}/uwsgi;
    scgi_temp_path {own}/scgi;
    server {{
        listen {address}:{REGISTRY_PORT};
        root {root};
        # A package published anew is to be seen at once.
        add_header Cache-Control no-store;
    }}
}}
"
    )
}
