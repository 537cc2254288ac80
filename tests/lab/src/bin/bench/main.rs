//! `make bench`: xregion against the article's steps by hand, on the lab that is up, in one run of about twenty minutes.
//!
//! It fails when it can't measure, not when a goal is missed. `docs/benchmark.md` says how to read what it prints.

// The table is for people.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod batch;
mod binary;
mod by_hand;
mod drift;
mod joins;
mod report;
mod route_live;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use xregion_lab::Lab;
use xregion_lab::progress::Progress;
use xregion_lab::site::{self, Dist};

use joins::{Fresh, JOINS, Side};
use report::Report;

/// Of how many clusters the ways are undone.
const DRIFTING: usize = 3;
/// xregion's joins without load.
const UNLOADED: usize = 2;

fn main() -> ExitCode {
    match run(&Progress::new()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(progress: &Progress) -> Result<()> {
    let dist = Dist::find()?;
    Lab::up(progress)?;
    let lab = Lab::attach()?;
    progress.step("clearing the lab of what runs before left");
    clear(&lab)?;

    let by_hand = half(&lab, || by_hand(&lab, progress)).context("by hand")?;
    let Ours { joins, unloaded, routes, binary, drift } = half(&lab, || xregion(&lab, &dist, progress)).context("xregion")?;
    let batch = half(&lab, || batch(&lab, progress)).context("batch")?;

    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    // Left there by `make test-faults` and `make test-unit`.
    let counted = |name: &str| fs::read_to_string(directory.join(name)).ok().and_then(|text| serde_json::from_str(&text).ok());
    let (faults, kubeconfigs) = (counted("faults.json"), counted("kubeconfigs.json"));
    let report = Report { by_hand, xregion: joins, unloaded, routes, binary, drift, batch, faults, kubeconfigs };
    let file = directory.join("report.json");
    fs::create_dir_all(&directory)?;
    fs::write(&file, serde_json::to_vec_pretty(&report.to_json())?)?;
    progress.done("measured");
    print!("{}", report.to_table());
    println!("everything: {}", file.canonicalize()?.display());
    Ok(())
}

/// What is measured of xregion, but for batches.
struct Ours {
    joins: Side,
    unloaded: Vec<f64>,
    routes: Vec<f64>,
    binary: binary::Measured,
    drift: drift::Measured,
}

/// Runs one side, and takes away what it made even if it failed.
fn half<T>(lab: &Lab, measure: impl FnOnce() -> Result<T>) -> Result<T> {
    let measured = measure();
    let cleared = clear(lab);
    let measured = measured?;
    cleared.context("clearing up")?;
    Ok(measured)
}

/// Takes everything off the lab that either side makes.
fn clear(lab: &Lab) -> Result<()> {
    by_hand::clean_up(lab)?;
    lab.sweep()?;
    Fresh::stop_all(lab)
}

fn by_hand(lab: &Lab, progress: &Progress) -> Result<Side> {
    progress.step(&format!("by hand: starting {JOINS} business clusters"));
    let fresh = Fresh::start(lab, "hand", JOINS)?;
    progress.step("by hand: joining them, a minute or more each");
    joins::by_hand(lab, progress, &fresh.names)
}

fn xregion(lab: &Lab, dist: &Dist, progress: &Progress) -> Result<Ours> {
    progress.step("xregion: enabling the addon, placing region east");
    lab.publish(dist)?;
    // As users have it, with its controller.
    lab.enable("xregion", &["controller.enabled=true"])?;
    place(lab)?;

    progress.step("xregion: starting business clusters");
    let fresh = Fresh::start(lab, "x", JOINS + UNLOADED + 1)?;
    progress.step("xregion: joining them under load");
    let (loaded, rest) = fresh.names.split_at(JOINS);
    let joins = joins::xregion(lab, progress, loaded)?;
    progress.step("xregion: joining without load");
    let (unloaded, last) = rest.split_at(UNLOADED);
    let unloaded = unloaded.iter().map(|cluster| joins::by_application(lab, cluster)).collect::<Result<_>>()?;

    progress.step("xregion: routes");
    let routes = route_live::measure(lab, &loaded[0])?;
    progress.step("xregion: the binary");
    let binary = binary::measure(lab, &last[0])?;
    progress.step("xregion: what others undo");
    let drift = drift::measure(lab, progress, &loaded[..DRIFTING])?;
    Ok(Ours { joins, unloaded, routes, binary, drift })
}

fn place(lab: &Lab) -> Result<()> {
    lab.vela_up(&site::region("proxy-east"))?;
    lab.await_running("region-proxy-east").map(drop)
}

fn batch(lab: &Lab, progress: &Progress) -> Result<batch::Measured> {
    progress.step(&format!("batch: starting {} business clusters", batch::CLUSTERS));
    place(lab)?;
    let fresh = Fresh::start(lab, "b", batch::CLUSTERS)?;
    batch::measure(lab, progress, &fresh.names)
}
