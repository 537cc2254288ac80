//! What others undo, one thing after another, and the controller puts back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use xregion_lab::progress::Progress;
use xregion_lab::site::{GATEWAY, NAMESPACE};
use xregion_lab::{Lab, wait};

/// How long it is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was measured.
pub struct Measured {
    /// How often something was undone.
    pub tried: usize,
    /// Seconds until it was as before, of those that were.
    pub healed: Vec<f64>,
}

/// Undoes things with clusters that are joined: of each its route, then its port, and twice something of the gateway.
pub fn measure(lab: &Lab, progress: &Progress, clusters: &[String]) -> Result<Measured> {
    let mut measured = Measured { tried: 0, healed: Vec::new() };
    let mut heal = |what: &str, read: &dyn Fn() -> Result<Value>, undo: &dyn Fn() -> Result<()>| -> Result<()> {
        let before = read()?;
        measured.tried += 1;
        undo()?;
        let started = Instant::now();
        let same = || {
            let now = read()?;
            ensure!(now == before, "{now}");
            Ok(())
        };
        match wait::until(what, PATIENCE, same) {
            Ok(()) => measured.healed.push(started.elapsed().as_secs_f64()),
            Err(error) => progress.step(&format!("  not healed: {error:#}")),
        }
        Ok(())
    };
    for cluster in clusters {
        heal("the route", &|| lab.route(cluster), &|| lab.lose_route(cluster))?;
        heal("the port", &|| lab.port(cluster), &|| lab.lose_port(cluster))?;
    }
    heal("the aliases", &|| lab.gateway_settings(GATEWAY), &|| lab.lose_aliases())?;
    // As `helm upgrade` leaves it.
    let chart = json!({"spec": {"strategy": {"rollingUpdate": {"maxUnavailable": 1}}}}).to_string();
    heal("the strategy", &|| lab.gateway_settings(GATEWAY), &|| {
        lab.kubectl("hub", &["patch", "deployment", GATEWAY, "-n", NAMESPACE, "-p", &chart]).map(drop)
    })?;
    progress.step(&format!("  {} of {} healed, {:.1?} s", measured.healed.len(), measured.tried, measured.healed));
    Ok(measured)
}
