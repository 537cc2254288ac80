//! `make bench`: xregion against the article's steps by hand and its way against others, on the lab that is up, in one run of about
//! forty minutes. A piece of it can be run alone: `bench data-path`.
//!
//! It fails when it can't measure, not when a goal is missed. `docs/benchmark.md` says how to read what it prints.

// The table is for people.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod batch;
mod binary;
mod by_hand;
mod churn;
mod client;
mod data_path;
mod drift;
mod failover;
mod joins;
mod plot;
mod report;
mod route_live;
mod scale;
mod stand_ins;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use xregion_lab::progress::Progress;
use xregion_lab::site::{self, Dist};
use xregion_lab::{Lab, build};

use joins::{Fresh, JOINS, Side};
use report::Report;

/// Of how many clusters the ways are undone.
const DRIFTING: usize = 3;
/// xregion's joins without load.
const UNLOADED: usize = 2;

/// Measures xregion against the article's steps by hand, and its way against others
#[derive(Parser)]
#[command(name = "bench")]
struct Cli {
    /// Measure these alone; their figures take the place of those in the report
    pieces: Vec<Piece>,
}

/// What can be measured alone.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Piece {
    /// The way that requests go, against others
    DataPath,
    /// What one route notices of changes of others
    Churn,
    /// What it costs when a proxy or a node ends
    Failover,
    /// A thousand routes in one region, and twenty regions: an hour, and only when asked for
    Scale,
}

fn main() -> ExitCode {
    match run(&Cli::parse().pieces, &Progress::new()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(pieces: &[Piece], progress: &Progress) -> Result<()> {
    let dist = Dist::find()?;
    Lab::up(progress)?;
    let lab = Lab::attach()?;
    progress.step("clearing the lab of what runs before left");
    clear(&lab)?;

    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    let mut figures = Figures::read(&directory.join("report.json"))?;
    if pieces.is_empty() {
        let report = whole(&lab, &dist, &directory, progress)?;
        figures.take(report.to_json(), &report.to_table());
    }
    if pieces.is_empty() || pieces.contains(&Piece::DataPath) {
        let measured = half(&lab, || data_path(&lab, &dist, progress)).context("data path")?;
        figures.take(json!({"data_path": measured.to_json()}), &measured.to_table());
    }
    if pieces.is_empty() || pieces.contains(&Piece::Churn) {
        let measured = half(&lab, || churn(&lab, &dist, progress)).context("churn")?;
        figures.take(json!({"churn": measured.to_json()}), &measured.to_table());
    }
    if pieces.is_empty() || pieces.contains(&Piece::Failover) {
        let measured = half(&lab, || failover(&lab, &dist, progress)).context("failover")?;
        figures.take(json!({"failover": measured.to_json()}), &measured.to_table());
    }
    if pieces.contains(&Piece::Scale) {
        let measured = half(&lab, || scale(&lab, &dist, progress)).context("scale")?;
        figures.take(json!({"scale": measured.to_json()}), &measured.to_table());
        let stages = figures.all["scale"]["stages"].as_array().map_or(&[][..], Vec::as_slice);
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/scale.svg"), plot::draw(stages))?;
    }
    figures.write()?;
    progress.done("measured");
    print!("{}", figures.table);
    println!("everything: {}", figures.file.canonicalize()?.display());
    Ok(())
}

/// All but the pieces that can be run alone.
fn whole(lab: &Lab, dist: &Dist, directory: &Path, progress: &Progress) -> Result<Report> {
    let by_hand = half(lab, || by_hand(lab, progress)).context("by hand")?;
    let Ours { joins, unloaded, routes, binary, drift } = half(lab, || xregion(lab, dist, progress)).context("xregion")?;
    let batch = half(lab, || batch(lab, progress)).context("batch")?;
    // Left there by `make test-faults` and `make test-unit`.
    let counted = |name: &str| fs::read_to_string(directory.join(name)).ok().and_then(|text| serde_json::from_str(&text).ok());
    let (faults, kubeconfigs) = (counted("faults.json"), counted("kubeconfigs.json"));
    Ok(Report { by_hand, xregion: joins, unloaded, routes, binary, drift, batch, faults, kubeconfigs })
}

/// The report's file: what was measured before, but for what is measured anew.
struct Figures {
    file: PathBuf,
    all: serde_json::Map<String, Value>,
    table: String,
}

impl Figures {
    fn read(file: &Path) -> Result<Self> {
        let all = match fs::read(file) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is damaged", file.display()))?,
            Err(_) => serde_json::Map::new(),
        };
        Ok(Self { file: file.to_owned(), all, table: String::new() })
    }

    fn take(&mut self, figures: Value, table: &str) {
        if let Value::Object(figures) = figures {
            self.all.extend(figures);
        }
        self.table.push_str(table);
    }

    fn write(&self) -> Result<()> {
        if let Some(directory) = self.file.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&self.file, serde_json::to_vec_pretty(&self.all)?)?;
        Ok(())
    }
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
    enable(lab, dist)?;

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

/// As users have it, with its controller.
fn publish(lab: &Lab, dist: &Dist) -> Result<()> {
    lab.publish(dist)?;
    lab.enable("xregion", &["controller.enabled=true", "hostAliases=services"])?;
    // The image has the same name as that of the run before, which a controller that went on running would be of.
    for verb in ["restart", "status"] {
        lab.kubectl("hub", &["rollout", verb, "deployment", "xregion-controller", "-n", site::NAMESPACE])?;
    }
    Ok(())
}

fn enable(lab: &Lab, dist: &Dist) -> Result<()> {
    publish(lab, dist)?;
    place(lab)
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

fn data_path(lab: &Lab, dist: &Dist, progress: &Progress) -> Result<data_path::Measured> {
    progress.step("data path: enabling the addon, placing region east, starting a business cluster");
    let compared = build::ensure_compared(progress)?;
    publish(lab, dist)?;
    lab.vela_up(&site::region_with("proxy-east", &data_path::region()))?;
    lab.await_running("region-proxy-east")?;
    let fresh = Fresh::start(lab, "p", 1)?;
    data_path::measure(lab, &compared, progress, &fresh.names[0])
}

fn churn(lab: &Lab, dist: &Dist, progress: &Progress) -> Result<churn::Measured> {
    progress.step("churn: enabling the addon, placing region east, starting a business cluster");
    enable(lab, dist)?;
    let fresh = Fresh::start(lab, "c", 1)?;
    churn::measure(lab, progress, &fresh.names[0])
}

fn failover(lab: &Lab, dist: &Dist, progress: &Progress) -> Result<failover::Measured> {
    progress.step("failover: enabling the addon, placing region east, joining a business cluster");
    enable(lab, dist)?;
    let fresh = Fresh::start(lab, "f", 1)?;
    joins::by_application(lab, &fresh.names[0])?;
    let measured = failover::measure(lab, progress, &fresh.names[0]);
    // Whatever became of it, the next piece finds the addon as users have it.
    publish(lab, dist)?;
    measured
}

fn scale(lab: &Lab, dist: &Dist, progress: &Progress) -> Result<scale::Measured> {
    progress.step("scale: enabling the addon");
    publish(lab, dist)?;
    let measured = scale::measure(lab, &binary::find()?, progress);
    let cleaned = scale::clean_up(lab);
    let measured = measured?;
    cleaned?;
    Ok(measured)
}
