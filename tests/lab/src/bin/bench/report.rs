//! The figures, against the goals: a table to read and JSON to keep.

use std::fmt::Write as _;

use serde_json::{Value, json};
use xregion_lab::load::Outcome;

use crate::batch::{self, Burst};
use crate::binary::Measured;
use crate::drift;
use crate::joins::Side;

const JOIN_SECONDS: f64 = 15.0;
const TIMES_FASTER: f64 = 4.0;
const ROUTE_SECONDS: f64 = 2.0;
const BATCH_SECONDS: f64 = 30.0;
const BATCH_RELOADS: usize = 3;
const LEAVE_SECONDS: f64 = 15.0;
const DRIFT_SECONDS: f64 = 30.0;

/// All that was measured.
pub struct Report {
    pub by_hand: Side,
    pub xregion: Side,
    /// Seconds of xregion's joins without load beside them.
    pub unloaded: Vec<f64>,
    /// Seconds until a route served.
    pub routes: Vec<f64>,
    pub binary: Measured,
    /// What others undid.
    pub drift: drift::Measured,
    pub batch: batch::Measured,
    /// `tried` and `converged`: deaths at kill points, counted by `make test-faults`.
    pub faults: Option<Value>,
    /// `tried` and `right`: forms of kubeconfigs, counted by `make test-unit`.
    pub kubeconfigs: Option<Value>,
}

impl Report {
    fn times_faster(&self) -> f64 {
        self.by_hand.p50() / self.xregion.p50()
    }

    fn join_met(&self) -> bool {
        self.xregion.p50() <= JOIN_SECONDS && self.times_faster() >= TIMES_FASTER
    }

    /// Everything, raw samples included.
    pub fn to_json(&self) -> Value {
        let Self { by_hand, xregion, unloaded, routes, binary, drift, batch, faults, kubeconfigs } = self;
        json!({
            "join": {
                "xregion": {"p50_s": xregion.p50(), "samples_s": xregion.seconds(), "without_load_s": unloaded},
                "by_hand": {
                    "p50_s": by_hand.p50(),
                    "samples_s": by_hand.seconds(),
                    "steps_s": by_hand.joins.iter().map(|join| &join.steps).collect::<Vec<_>>(),
                },
                "times_faster": self.times_faster(),
                "goal": {"p50_s_at_most": JOIN_SECONDS, "times_faster_at_least": TIMES_FASTER, "met": self.join_met()},
            },
            "availability": {
                "xregion": availability(xregion),
                "by_hand": availability(by_hand),
                "goal": {"failed_at_most": 0, "met": xregion.load.failed == 0},
            },
            "route_live": {
                "p50_s": median(routes),
                "samples_s": routes,
                "goal": {"p50_s_at_most": ROUTE_SECONDS, "met": median(routes) <= ROUTE_SECONDS},
            },
            "binary": {
                "startup_ms": median(&binary.startups),
                "startup_samples_ms": binary.startups,
                "peak_rss_mb": binary.peak_rss,
                "size_mb": binary.size,
            },
            "drift": {
                "tried": drift.tried,
                "healed": drift.healed.len(),
                "p50_s": median(&drift.healed),
                "samples_s": drift.healed,
                "goal": {"healed": drift.tried, "s_at_most": DRIFT_SECONDS, "met": drift_met(drift)},
            },
            "faults": faults,
            "kubeconfigs": kubeconfigs,
            "batch": {"step": burst(&batch.step, 1), "parallel": burst(&batch.parallel, 2)},
            "leave": {
                "p50_s": median(&batch.leaves),
                "samples_s": batch.leaves,
                "requests": batch.leaves_load.requests,
                "failed_requests": batch.leaves_load.failed,
                "failures": batch.leaves_load.failures.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "goal": {"p50_s_at_most": LEAVE_SECONDS, "failed_at_most": 0, "met": leave_met(batch)},
            },
        })
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let Self { by_hand, xregion, unloaded, routes, binary, drift, batch, faults, kubeconfigs } = self;
        let mut table = String::new();
        let mut row = |what: &str, xregion: String, by_hand: String, goal: &str, met: Option<bool>| {
            add_row(&mut table, what, &xregion, &by_hand, goal, met);
        };
        row("", "xregion".into(), "by hand".into(), "goal", None);
        let goal = format!("<= {JOIN_SECONDS:.0} s, >= {TIMES_FASTER:.0}x faster");
        row("join, median", seconds(xregion.p50()), seconds(by_hand.p50()), &goal, Some(self.join_met()));
        row("  times faster", format!("{:.1}x", self.times_faster()), String::new(), "", None);
        row("  shortest to longest", range(&xregion.seconds()), range(&by_hand.seconds()), "", None);
        row("  without load beside it", range(unloaded), String::new(), "", None);
        let (ours, theirs) = (&xregion.load, &by_hand.load);
        row("availability, failed requests", ours.failed.to_string(), theirs.failed.to_string(), "0", Some(ours.failed == 0));
        row("  of requests", ours.requests.to_string(), theirs.requests.to_string(), "", None);
        row("  failed per join", per_join(xregion), per_join(by_hand), "", None);
        row("  slowest answer", slowest(ours), slowest(theirs), "", None);
        let met = median(routes) <= ROUTE_SECONDS;
        row(
            "route live, median",
            format!("{:.2} s", median(routes)),
            String::new(),
            &format!("<= {ROUTE_SECONDS:.0} s"),
            Some(met),
        );
        row("  shortest to longest", range(routes), String::new(), "", None);
        for (what, burst, rollouts) in [("in one step", &batch.step, 1), ("in parallel", &batch.parallel, 2)] {
            let goal = format!("<= {BATCH_SECONDS:.0} s, {rollouts}, {BATCH_RELOADS}, 0");
            let name = format!("{} clusters {what}", batch::CLUSTERS);
            row(&name, seconds(burst.seconds), String::new(), &goal, Some(burst_met(burst, rollouts)));
            row("  gateway rollouts", burst.rollouts.to_string(), String::new(), "", None);
            row("  nginx reloads", burst.reloads.to_string(), String::new(), "", None);
            row("  failed requests", format!("{} of {}", burst.load.failed, burst.load.requests), String::new(), "", None);
        }
        let goal = format!("<= {LEAVE_SECONDS:.0} s, 0 failed");
        row("leave, median", seconds(median(&batch.leaves)), String::new(), &goal, Some(leave_met(batch)));
        let load = &batch.leaves_load;
        row("  failed requests", format!("{} of {}", load.failed, load.requests), String::new(), "", None);
        let goal = format!("all, <= {DRIFT_SECONDS:.0} s");
        let healed = format!("{} of {}", drift.healed.len(), drift.tried);
        row("drift, healed", healed, String::new(), &goal, Some(drift_met(drift)));
        row("  median", seconds(median(&drift.healed)), String::new(), "", None);
        row("  shortest to longest", range(&drift.healed), String::new(), "", None);
        let count = |counted: &Option<Value>, good: &str, how: &str| match counted {
            Some(counted) => format!("{} of {}", counted[good], counted["tried"]),
            None => format!("make {how}"),
        };
        let all = |counted: &Option<Value>, good: &str| counted.as_ref().map(|counted| counted[good] == counted["tried"]);
        let converged = count(faults, "converged", "test-faults");
        row("deaths in the middle, converged", converged, String::new(), "all", all(faults, "converged"));
        let right = count(kubeconfigs, "right", "test-unit");
        row("forms of kubeconfigs, right", right, String::new(), "all", all(kubeconfigs, "right"));
        row("binary, start-up", format!("{:.1} ms", median(&binary.startups)), String::new(), "", None);
        row("  peak memory of a join", format!("{:.1} MiB", binary.peak_rss), String::new(), "", None);
        row("  size in the image", format!("{:.1} MiB", binary.size), String::new(), "", None);
        table
    }
}

impl Side {
    fn seconds(&self) -> Vec<f64> {
        self.joins.iter().map(|join| join.usable).collect()
    }

    fn p50(&self) -> f64 {
        median(&self.seconds())
    }
}

fn availability(side: &Side) -> Value {
    let load = &side.load;
    let by_way =
        load.by_way.iter().map(|(way, tally)| (way.to_string(), json!({"requests": tally.requests, "failed": tally.failed})));
    json!({
        "requests": load.requests,
        "failed": load.failed,
        "failed_per_join": side.joins.iter().map(|join| join.failed).collect::<Vec<_>>(),
        "by_way": by_way.collect::<serde_json::Map<_, _>>(),
        "slowest_ms": load.slowest.as_millis(),
        "failures": load.failures.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn burst_met(burst: &Burst, rollouts: u32) -> bool {
    burst.seconds <= BATCH_SECONDS && burst.rollouts <= rollouts && burst.reloads <= BATCH_RELOADS && burst.load.failed == 0
}

fn leave_met(batch: &batch::Measured) -> bool {
    median(&batch.leaves) <= LEAVE_SECONDS && batch.leaves_load.failed == 0
}

fn drift_met(drift: &drift::Measured) -> bool {
    drift.healed.len() == drift.tried && drift.healed.iter().all(|seconds| *seconds <= DRIFT_SECONDS)
}

fn burst(burst: &Burst, rollouts: u32) -> Value {
    json!({
        "clusters": batch::CLUSTERS,
        "seconds": burst.seconds,
        "gateway_rollouts": burst.rollouts,
        "nginx_reloads": burst.reloads,
        "requests": burst.load.requests,
        "failed_requests": burst.load.failed,
        "failures": burst.load.failures.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "goal": {
            "seconds_at_most": BATCH_SECONDS, "rollouts_at_most": rollouts, "reloads_at_most": BATCH_RELOADS, "failed_at_most": 0,
            "met": burst_met(burst, rollouts),
        },
    })
}

/// A row of the table that every piece adds to: of xregion, of what it is compared with, the goal, and whether that is met.
pub fn add_row(table: &mut String, what: &str, xregion: &str, other: &str, goal: &str, met: Option<bool>) {
    let met = met.map_or("", |met| if met { "met" } else { "MISSED" });
    let line = format!("{what:<34}{xregion:>18}{other:>18}  {goal:<24}{met}");
    // Writing to a String can't fail.
    let _ = writeln!(table, "{}", line.trim_end());
}

/// The middle sample, or the mean of the two in the middle.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len().saturating_sub(1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => f64::NAN,
    }
}

fn seconds(value: f64) -> String {
    format!("{value:.1} s")
}

fn range(samples: &[f64]) -> String {
    let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
    let most = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{least:.2} to {most:.2} s")
}

fn per_join(side: &Side) -> String {
    side.joins.iter().map(|join| join.failed.to_string()).collect::<Vec<_>>().join(" ")
}

fn slowest(load: &Outcome) -> String {
    format!("{} ms", load.slowest.as_millis())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::joins::Timed;

    fn side(seconds: &[f64], failed: usize) -> Side {
        let joins = seconds.iter().map(|&usable| Timed { usable, failed, steps: vec![("nginx reloaded", 0.5)] }).collect();
        let load = Outcome { requests: 100, failed, slowest: Duration::from_millis(9), ..Outcome::default() };
        Side { joins, load }
    }

    fn report(xregion: &[f64]) -> Report {
        let binary = Measured { startups: vec![2.0, 1.0, 4.0], peak_rss: 12.0, size: 9.0 };
        let burst = |seconds| Burst { seconds, rollouts: 1, reloads: 2, load: Outcome::default() };
        let batch =
            batch::Measured { step: burst(20.0), parallel: burst(31.0), leaves: vec![9.0, 11.0], leaves_load: Outcome::default() };
        let (by_hand, xregion) = (side(&[60.0, 80.0], 36), side(xregion, 0));
        Report {
            by_hand,
            xregion,
            unloaded: vec![8.0],
            routes: vec![0.5, 0.7],
            binary,
            drift: drift::Measured { tried: 2, healed: vec![5.0, 31.0] },
            batch,
            faults: Some(json!({"tried": 5, "converged": 5})),
            kubeconfigs: None,
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]).to_string(), "2");
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).to_string(), "2.5");
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_report_has_the_keys_that_are_promised() {
        let json = report(&[9.0, 10.0, 11.0]).to_json();
        for key in [
            "/join/xregion/p50_s",
            "/join/by_hand/p50_s",
            "/availability/xregion/requests",
            "/availability/xregion/failed",
            "/availability/by_hand/requests",
            "/availability/by_hand/failed",
            "/route_live/p50_s",
            "/binary/startup_ms",
            "/binary/peak_rss_mb",
            "/binary/size_mb",
            "/batch/step/seconds",
            "/batch/step/gateway_rollouts",
            "/batch/parallel/nginx_reloads",
            "/batch/parallel/failed_requests",
            "/leave/p50_s",
            "/leave/failed_requests",
            "/drift/tried",
            "/drift/healed",
            "/drift/p50_s",
            "/faults/tried",
            "/faults/converged",
        ] {
            assert!(json.pointer(key).is_some_and(Value::is_number), "{key}");
        }
        assert_eq!(json["join"]["times_faster"], 7.0);
        assert_eq!(json["join"]["goal"]["met"], true);
        assert_eq!(json["batch"]["step"]["goal"]["met"], true);
        assert_eq!(json["batch"]["parallel"]["goal"]["met"], false, "31 s");
        assert_eq!(json["drift"]["goal"]["met"], false, "31 s");
    }

    #[test]
    fn a_goal_is_missed_when_either_half_of_it_is() {
        for (samples, met) in [([14.0], true), ([15.5], false), ([18.0], false)] {
            assert_eq!(report(&samples).join_met(), met, "{samples:?}");
        }
        let table = report(&[18.0]).to_table();
        assert!(table.lines().any(|line| line.starts_with("join") && line.ends_with("MISSED")), "{table}");
    }
}
