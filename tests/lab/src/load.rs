//! Requests to joined clusters, as steadily as a hub sends them: what others would notice of a join.
//!
//! Twenty a second from the hub, none retried, none waiting for the one before. They take turns on the hub's two ways to a
//! cluster ([`Way`]), on a connection of their own and on one that is kept, and on the clusters given.

mod way;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::Lab;
use way::{Connection, Road, Unsent, connect};

pub use way::Way;

const INTERVAL: Duration = Duration::from_millis(50);
/// How long a request may take, its connection included.
const PATIENCE: Duration = Duration::from_secs(10);
/// A load ends by itself after this, whatever becomes of its owner.
const BOUND: Duration = Duration::from_mins(15);
/// How many failures are worth printing.
const SHOWN: usize = 8;

/// How long a session may take to be answered: twice the 30 s for which Go dials.
const SESSION: Duration = Duration::from_secs(60);

/// Asks a joined cluster for a session (`kubectl exec`) through the hub's aggregated API; gives the time until it answered. The
/// gateway makes a new connection for each session, while all other requests to a cluster share one, which it keeps.
///
/// # Errors
/// When the cluster has not answered within a minute.
pub fn ask_session(lab: &Lab, cluster: &str) -> Result<Duration> {
    let road = Road::find(lab, Way::Aggregated)?;
    lab.in_namespace("hub", || async move {
        let asked = Instant::now();
        timeout(SESSION, road.ask_session(cluster)).await.context("no answer")??;
        Ok(asked.elapsed())
    })
}

/// A load that runs. Dropping it ends it, too.
#[derive(Debug)]
pub struct Load {
    started: Instant,
    end: oneshot::Sender<()>,
    thread: JoinHandle<Result<Outcome>>,
}

impl Load {
    /// Starts sending requests to these clusters, which have to be joined.
    ///
    /// # Errors
    /// When one of them can't be reached now, in any of the ways requests take.
    pub fn start(lab: &Lab, clusters: &[&str]) -> Result<Self> {
        let clusters: Vec<String> = clusters.iter().map(|&cluster| cluster.to_owned()).collect();
        let lab = lab.clone();
        let (end, ended) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::Builder::new().name("load".to_owned()).spawn(move || {
            let roads = Way::ALL.map(|way| Road::find(&lab, way)).into_iter().collect::<Result<Vec<_>>>()?;
            lab.in_namespace("hub", || run(roads, clusters, ready, ended))
        })?;
        match is_ready.recv() {
            Ok(started) => Ok(Self { started, end, thread }),
            // It ended before it was ready: its error says why.
            Err(_) => Err(joined(thread).err().unwrap_or_else(|| anyhow!("the load ended before it had begun"))),
        }
    }

    /// The time since it started: what [`Failure::at`] is to be compared with.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends it, waits for the requests under way, and tells how all went.
    ///
    /// # Errors
    /// When it has ended before: it never runs for longer than 15 minutes.
    pub fn stop(self) -> Result<Outcome> {
        // Nobody listens when it has ended, and then its result says so.
        let _ = self.end.send(());
        joined(self.thread)
    }
}

fn joined(thread: JoinHandle<Result<Outcome>>) -> Result<Outcome> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("the load's thread panicked")))
}

/// How a load went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Requests sent.
    pub requests: usize,
    /// Requests that weren't answered with 200 within 10 s.
    pub failed: usize,
    /// Both, by the way they took.
    pub by_way: BTreeMap<Way, Tally>,
    /// The time the slowest answered request took.
    pub slowest: Duration,
    /// Of every answered request, in the order they were sent: when that was, since the load's start, and the time it took.
    pub answers: Vec<(Duration, Duration)>,
    /// Every failure, in the order they were sent.
    pub failures: Vec<Failure>,
}

/// Counts of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests sent.
    pub requests: usize,
    /// Those that failed.
    pub failed: usize,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When it was sent, since the load's start.
    pub at: Duration,
    /// The way it took.
    pub way: Way,
    /// Whether on the kept connection.
    pub kept: bool,
    /// The cluster it was for.
    pub cluster: String,
    /// What became of it.
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connection = if self.kept { "kept" } else { "fresh" };
        write!(f, "{:.2} s, {}, {} connection, {}: {}", self.at.as_secs_f64(), self.way, connection, self.cluster, self.text)
    }
}

/// For a person: the counts, and the first failures.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests, {} failed, the slowest took {} ms", self.requests, self.failed, self.slowest.as_millis())?;
        for (way, tally) in &self.by_way {
            write!(f, "; {way}: {} of {}", tally.failed, tally.requests)?;
        }
        self.failures.iter().take(SHOWN).try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}

/// A request and what became of it.
struct Sample {
    at: Duration,
    way: Way,
    kept: bool,
    cluster: String,
    answered: Result<Duration, String>,
}

impl Outcome {
    fn of(mut samples: Vec<Sample>) -> Self {
        samples.sort_by_key(|sample| sample.at);
        let mut outcome = Self { requests: samples.len(), ..Self::default() };
        for Sample { at, way, kept, cluster, answered } in samples {
            let tally = outcome.by_way.entry(way).or_default();
            tally.requests += 1;
            match answered {
                Ok(took) => {
                    outcome.slowest = outcome.slowest.max(took);
                    outcome.answers.push((at, took));
                }
                Err(text) => {
                    tally.failed += 1;
                    outcome.failed += 1;
                    outcome.failures.push(Failure { at, way, kept, cluster, text });
                }
            }
        }
        outcome
    }
}

async fn run(
    roads: Vec<Road>,
    clusters: Vec<String>,
    ready: mpsc::Sender<Instant>,
    mut ended: oneshot::Receiver<()>,
) -> Result<Outcome> {
    let lanes: Vec<Lane> = roads.into_iter().flat_map(|road| [Lane::fresh(road.clone()), Lane::kept(road)]).collect();
    for lane in &lanes {
        for cluster in &clusters {
            lane.request(cluster).await.map_err(|why| anyhow!(why)).with_context(|| format!("{cluster}, {}", lane.road.way))?;
        }
    }
    let started = Instant::now();
    if ready.send(started).is_err() {
        bail!("nobody waits for the load");
    }
    let mut ticks = interval(INTERVAL);
    // After a pause of this process, what is due is sent at once: the load doesn't get lighter by being late.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut requests = JoinSet::new();
    for turn in 0.. {
        tokio::select! {
            _ = &mut ended => break,
            _ = ticks.tick() => {}
        }
        if started.elapsed() > BOUND {
            bail!("the load has ended by itself after {} minutes", BOUND.as_secs() / 60);
        }
        let lane = lanes[turn % lanes.len()].clone();
        let cluster = clusters[turn / lanes.len() % clusters.len()].clone();
        requests.spawn(async move {
            let sent = Instant::now();
            let answered = lane.request(&cluster).await.map(|()| sent.elapsed());
            Sample { at: sent - started, way: lane.road.way, kept: lane.kept.is_some(), cluster, answered }
        });
    }
    Ok(Outcome::of(requests.join_all().await))
}

/// A way, and the connection kept on it if there is to be one.
#[derive(Clone)]
struct Lane {
    road: Road,
    kept: Option<Arc<Mutex<Option<Connection>>>>,
}

impl Lane {
    fn fresh(road: Road) -> Self {
        Self { road, kept: None }
    }

    fn kept(road: Road) -> Self {
        Self { road, kept: Some(Arc::default()) }
    }

    /// One request; the error is what its sender would have seen.
    async fn request(&self, cluster: &str) -> Result<(), String> {
        let exchange = async {
            match self.connection().await?.get_version(&self.road, cluster).await {
                // No retry: the server has not seen it. A pool of connections, client-go's too, takes another one then.
                Err(error)
                    if error.is::<Unsent>()
                        && let Some(kept) = &self.kept =>
                {
                    let connection = kept.lock().await.insert(connect(&self.road).await?).clone();
                    connection.get_version(&self.road, cluster).await
                }
                answered => answered,
            }
        };
        match timeout(PATIENCE, exchange).await {
            Ok(answered) => answered.map_err(|error| format!("{error:#}")),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }

    /// A connection of its own, or the kept one: replaced when it has ended, as an HTTP client's pool does.
    async fn connection(&self) -> Result<Connection> {
        let Some(kept) = &self.kept else { return connect(&self.road).await };
        let mut kept = kept.lock().await;
        match &*kept {
            Some(connection) if connection.is_open() => Ok(connection.clone()),
            _ => Ok(kept.insert(connect(&self.road).await?).clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample(at: u64, way: Way, answered: Result<u64, &str>) -> Sample {
        Sample {
            at: Duration::from_millis(at),
            way,
            kept: at.is_multiple_of(100),
            cluster: "c".to_owned(),
            answered: answered.map(Duration::from_millis).map_err(str::to_owned),
        }
    }

    #[test]
    fn an_outcome_counts_by_way_and_keeps_the_failures_in_order() {
        let outcome = Outcome::of(vec![
            sample(150, Way::Direct, Err("refused")),
            sample(100, Way::Aggregated, Err("503")),
            sample(50, Way::Direct, Ok(7)),
            sample(0, Way::Aggregated, Ok(9)),
        ]);
        let ms = Duration::from_millis;
        assert_eq!((outcome.requests, outcome.failed, outcome.slowest), (4, 2, ms(9)));
        assert_eq!(outcome.answers, [(ms(0), ms(9)), (ms(50), ms(7))]);
        assert_eq!(outcome.by_way[&Way::Direct], Tally { requests: 2, failed: 1 });
        assert_eq!(
            outcome.to_string(),
            "4 requests, 2 failed, the slowest took 9 ms; aggregated API: 1 of 2; direct: 1 of 2\
             \n  0.10 s, aggregated API, kept connection, c: 503\n  0.15 s, direct, fresh connection, c: refused"
        );
    }
}
