//! When drift is put back, when no more, and what is told of it: the controller's memory from look to look.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};

use super::checkup::{Problem, Subject};
use super::drift::{Repair, Told, Trouble};

/// How often the same thing is put back within [`SPAN`].
const TIMES: usize = 3;
/// After how long what failed is tried again: this, twice as long, and so on, up to [`PAUSE_AT_MOST`]. Each try may keep others from changing the
/// gateway for as long as it waits.
const PAUSE: SignedDuration = SignedDuration::from_secs(10);
const PAUSE_AT_MOST: SignedDuration = SignedDuration::from_secs(40);
/// Within what; and how long it must have been in step to be put back again.
const SPAN: SignedDuration = SignedDuration::from_mins(10);

/// How often names follow nodes that come and go: a node that does so all the time is not to roll the gateway all the time.
const FOLLOW_EVERY: SignedDuration = SignedDuration::from_secs(30);

/// What becomes of drift.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It was seen for the first time: a run may be in the middle.
    Wait,
    /// It is put back.
    Mend,
    /// It was put back too often.
    Stop,
}

/// What is remembered of repairs.
#[derive(Default)]
pub struct Mending {
    last: Vec<Repair>,
    past: BTreeMap<Subject, Past>,
}

struct Past {
    repairs: Vec<Timestamp>,
    /// The nodes that a region's names were led to last.
    led: Option<BTreeSet<IpAddr>>,
    /// From when on they may be led to others.
    follows: Timestamp,
    /// When it was last out of step.
    out: Timestamp,
    stopped: bool,
    failed: Option<Problem>,
    /// For how long it is not tried again after it failed, and until when.
    pause: SignedDuration,
    rests: Timestamp,
}

impl Past {
    /// Whether other nodes came since its names were led to some: nobody undid anything then.
    fn moves(&self, repair: &Repair) -> bool {
        matches!(repair, Repair::Addresses { way, .. } if self.led.as_ref().is_some_and(|led| *led != way.nodes))
    }
}

impl Mending {
    /// What becomes of what was found in a look.
    pub fn judge(&mut self, found: &[Repair], now: Timestamp) -> Vec<Verdict> {
        let judged = found.iter().map(|repair| {
            let fresh = Past {
                repairs: Vec::new(),
                led: None,
                follows: now,
                out: now,
                stopped: false,
                failed: None,
                pause: SignedDuration::ZERO,
                rests: now,
            };
            let past = self.past.entry(repair.subject()).or_insert(fresh);
            past.out = now;
            past.stopped |= past.repairs.iter().filter(|at| now.duration_since(**at) < SPAN).count() >= TIMES;
            // Nodes that come and go are followed whatever else of the region was put back too often, and as often as a gateway may be rolled.
            let moves = past.moves(repair);
            let rests = if moves { past.rests.max(past.follows) } else { past.rests };
            if past.stopped && !moves {
                Verdict::Stop
            } else if self.last.contains(repair) && rests <= now {
                Verdict::Mend
            } else {
                Verdict::Wait
            }
        });
        let judged = judged.collect();
        let subjects: Vec<Subject> = found.iter().map(Repair::subject).collect();
        self.past.retain(|subject, past| {
            if !subjects.contains(subject) {
                (past.failed, past.pause, past.rests) = (None, SignedDuration::ZERO, now);
            }
            now.duration_since(past.out) < SPAN
        });
        self.last = found.to_vec();
        judged
    }

    /// Something was put back.
    pub fn mended(&mut self, repair: &Repair, now: Timestamp) {
        let subject = repair.subject();
        if let Some(past) = self.past.get_mut(&subject) {
            if past.moves(repair) {
                past.follows = now + FOLLOW_EVERY;
            } else {
                past.repairs.push(now);
            }
            if let Repair::Addresses { way, .. } = repair {
                past.led = Some(way.nodes.clone());
            }
            (past.failed, past.pause, past.rests) = (None, SignedDuration::ZERO, now);
        }
        // What is seen next is another drift, and has to be seen twice again.
        self.last.retain(|repair| repair.subject() != subject);
    }

    /// Something could not be put back.
    pub fn failed(&mut self, subject: &Subject, problem: Problem, now: Timestamp) {
        if let Some(past) = self.past.get_mut(subject) {
            past.failed = Some(problem);
            past.pause = (past.pause * 2).clamp(PAUSE, PAUSE_AT_MOST);
            past.rests = now + past.pause;
        }
    }

    /// What can't be put back for now.
    pub fn failures(&self) -> Vec<Trouble> {
        let of = |(about, past): (&Subject, &Past)| Some(Trouble { about: about.clone(), problem: past.failed.clone()? });
        self.past.iter().filter_map(of).collect()
    }
}

/// That something is not put back any more.
pub fn given_up(repair: &Repair, writer: Option<&str>) -> Trouble {
    let (who, fix) = match writer {
        Some(writer) => (
            format!("field manager {writer} last wrote it"),
            format!("keep {writer} from writing it, or have it write what is on record: docs/controller.md says how"),
        ),
        None => (
            "who did it left no trace, as whoever deletes does".to_owned(),
            "find them in the API server's audit log, and keep them from it".to_owned(),
        ),
    };
    let minutes = SPAN.as_mins();
    let cause =
        format!("not mended any more: {repair} had to be put back {TIMES} times within {minutes} minutes, and differ again; {who}");
    Trouble { about: repair.subject(), problem: Problem::new(cause, fix) }
}

/// What is told of troubles.
#[derive(Default)]
pub struct Telling {
    last: Vec<Trouble>,
    told: Vec<Told>,
}

impl Telling {
    /// Goes on from what was told before.
    pub fn after(told: Vec<Told>) -> Self {
        Self { last: Vec::new(), told }
    }

    /// What is told now.
    pub fn told(&self) -> &[Told] {
        &self.told
    }

    /// Takes what is troublesome in a look. What is so for the second time is told; gives what is new of that, or none where nothing has
    /// changed.
    pub fn note(&mut self, troubles: Vec<Trouble>, now: Timestamp) -> Option<Vec<Trouble>> {
        let lasting = troubles.iter().filter(|trouble| self.last.contains(trouble) || self.known(trouble).is_some());
        let (mut told, mut fresh) = (Vec::new(), Vec::new());
        for trouble in lasting {
            let since = self.known(trouble).map(|known| known.since);
            if since.is_none() {
                fresh.push(trouble.clone());
            }
            let Problem { cause, fix } = trouble.problem.clone();
            told.push(Told { about: trouble.about.to_string(), what: cause, fix, since: since.unwrap_or(now) });
        }
        let changed = told != self.told;
        self.told = told;
        self.last = troubles;
        changed.then_some(fresh)
    }

    fn known(&self, trouble: &Trouble) -> Option<&Told> {
        self.told.iter().find(|told| told.about == trouble.about.to_string() && told.what == trouble.problem.cause)
    }
}

#[cfg(test)]
mod tests {
    use super::super::nodes::Way;
    use super::*;

    fn gateway() -> Repair {
        Repair::Gateway { wanted: vec![], regions: BTreeMap::new() }
    }

    /// Names of region east are to lead to that node.
    fn east(node: u8) -> Repair {
        let way = Way { nodes: [[10, 0, 0, node].into()].into(), ..Way::default() };
        Repair::Addresses { region: "east".parse().unwrap(), way }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
    }

    #[test]
    fn drift_is_put_back_when_it_is_seen_twice_in_a_row() {
        let mut mending = Mending::default();
        assert_eq!(mending.judge(&[gateway()], at(0)), [Verdict::Wait]);
        assert_eq!(mending.judge(&[], at(5)), []);
        assert_eq!(mending.judge(&[gateway()], at(10)), [Verdict::Wait]);
        assert_eq!(mending.judge(&[gateway(), east(1)], at(15)), [Verdict::Mend, Verdict::Wait]);
        mending.mended(&gateway(), at(16));
        assert_eq!(mending.judge(&[gateway(), east(1)], at(20)), [Verdict::Wait, Verdict::Mend]);
    }

    /// Drifts, and is put back if that is the verdict.
    fn drift(mending: &mut Mending, repair: &Repair, seconds: i64) -> Verdict {
        mending.judge(std::slice::from_ref(repair), at(seconds));
        let verdict = mending.judge(std::slice::from_ref(repair), at(seconds + 5))[0];
        if verdict == Verdict::Mend {
            mending.mended(repair, at(seconds + 5));
            mending.judge(&[], at(seconds + 10));
        }
        verdict
    }

    fn revert(mending: &mut Mending, seconds: i64) -> Verdict {
        drift(mending, &gateway(), seconds)
    }

    #[test]
    fn the_fourth_time_within_ten_minutes_it_stays_until_it_has_been_in_step_for_ten() {
        let mut mending = Mending::default();
        for seconds in [0, 60, 120] {
            assert_eq!(revert(&mut mending, seconds), Verdict::Mend);
        }
        assert_eq!(revert(&mut mending, 180), Verdict::Stop);
        assert_eq!(revert(&mut mending, 900), Verdict::Stop, "it was never in step");
        mending.judge(&[], at(1000));
        assert_eq!(revert(&mut mending, 1100), Verdict::Stop, "only for a while");
        mending.judge(&[], at(1110));
        mending.judge(&[], at(1720));
        assert_eq!(revert(&mut mending, 1730), Verdict::Mend);
        // Rare ones never stop it, and what happens to another neither.
        let mut mending = Mending::default();
        for seconds in (0..10).map(|n| n * 400) {
            assert_eq!(revert(&mut mending, seconds), Verdict::Mend);
        }
        mending.judge(&[east(1)], at(4000));
        assert_eq!(mending.judge(&[east(1)], at(4005)), [Verdict::Mend]);
    }

    #[test]
    fn names_follow_nodes_as_often_as_those_change_and_are_left_to_who_reverts_the_same_ones_three_times() {
        let cases: [(&str, &[u8], Verdict); 5] = [
            ("nodes are replaced one by one", &[1, 2, 3, 4, 5, 6], Verdict::Mend),
            ("they go and come back", &[1, 2, 1, 2, 1, 2], Verdict::Mend),
            ("reverted twice", &[1, 1, 2, 3, 4], Verdict::Mend),
            ("reverted three times, and differ again", &[1, 1, 1, 1], Verdict::Stop),
            ("reverted three times, while nodes change", &[1, 1, 2, 2, 2], Verdict::Stop),
        ];
        for (what, nodes, last) in cases {
            let mut mending = Mending::default();
            let verdicts: Vec<_> = nodes.iter().zip(0..).map(|(node, n)| drift(&mut mending, &east(*node), n * 30)).collect();
            let (end, before) = verdicts.split_last().unwrap();
            assert!(before.iter().all(|verdict| *verdict == Verdict::Mend), "{what}: {verdicts:?}");
            assert_eq!(*end, last, "{what}");
        }
    }

    #[test]
    fn a_node_that_comes_and_goes_moves_names_twice_a_minute_at_most() {
        let mut mending = Mending::default();
        assert_eq!(drift(&mut mending, &east(1), 0), Verdict::Mend);
        assert_eq!(drift(&mut mending, &east(2), 15), Verdict::Mend);
        assert_eq!(drift(&mut mending, &east(3), 30), Verdict::Wait);
        // Nothing else waits for that, nor who reverts what is there.
        let service = Repair::Service { region: "east".parse().unwrap() };
        assert_eq!(drift(&mut mending, &service, 35), Verdict::Mend);
        assert_eq!(drift(&mut mending, &east(2), 40), Verdict::Mend);
        assert_eq!(drift(&mut mending, &east(3), 50), Verdict::Mend);
    }

    #[test]
    fn names_follow_nodes_of_a_region_whose_service_is_left_alone() {
        let mut mending = Mending::default();
        let service = Repair::Service { region: "east".parse().unwrap() };
        drift(&mut mending, &east(1), 0);
        drift(&mut mending, &service, 60);
        drift(&mut mending, &service, 120);
        assert_eq!(drift(&mut mending, &service, 180), Verdict::Stop);
        assert_eq!(drift(&mut mending, &east(1), 200), Verdict::Stop);
        assert_eq!(drift(&mut mending, &east(2), 220), Verdict::Mend);
    }

    #[test]
    fn a_failure_is_remembered_while_it_lasts() {
        let mut mending = Mending::default();
        mending.judge(&[gateway()], at(0));
        mending.failed(&Subject::Hub, Problem::new("no", "why"), at(0));
        assert_eq!(mending.failures()[0].problem.cause, "no");
        mending.judge(&[], at(5));
        assert_eq!(mending.failures(), []);
    }

    #[test]
    fn what_fails_is_tried_less_and_less_often_until_it_is_in_step() {
        let mut mending = Mending::default();
        let mut tried = |until: i64, from: i64| -> Vec<i64> {
            (from..until)
                .step_by(5)
                .filter(|second| {
                    let due = mending.judge(&[gateway()], at(*second)) == [Verdict::Mend];
                    if due {
                        mending.failed(&Subject::Hub, Problem::new("no", "why"), at(*second));
                    }
                    due
                })
                .collect()
        };
        assert_eq!(tried(160, 0), [5, 15, 35, 75, 115, 155]);
        mending.judge(&[], at(160));
        mending.judge(&[gateway()], at(165));
        assert_eq!(mending.judge(&[gateway()], at(170)), [Verdict::Mend]);
    }

    #[test]
    fn who_reverts_it_is_named() {
        let told = given_up(&gateway(), Some("helm")).problem;
        assert!(
            told.cause.contains("3 times within 10 minutes") && told.cause.ends_with("field manager helm last wrote it"),
            "{told:?}"
        );
        assert!(told.fix.starts_with("keep helm from writing it"), "{told:?}");
        assert!(given_up(&gateway(), None).problem.fix.contains("audit log"));
        assert!(given_up(&east(1), Some("helm")).problem.cause.ends_with("field manager helm last wrote it"));
    }

    #[test]
    fn a_trouble_that_lasts_is_told_once() {
        let trouble = |cause: &str| Trouble { about: Subject::Hub, problem: Problem::new(cause, "fix") };
        let mut telling = Telling::default();
        assert_eq!(telling.note(vec![trouble("a")], at(0)), None, "it may pass");
        assert_eq!(telling.note(vec![trouble("a")], at(5)), Some(vec![trouble("a")]));
        assert_eq!(telling.note(vec![trouble("a"), trouble("b")], at(10)), None);
        assert_eq!(telling.note(vec![trouble("a"), trouble("b")], at(15)), Some(vec![trouble("b")]));
        assert_eq!(telling.told().iter().map(|told| told.since).collect::<Vec<_>>(), [at(5), at(15)]);
        // Whoever goes on tells it no second time.
        let mut telling = Telling::after(telling.told().to_vec());
        assert_eq!(telling.note(vec![trouble("a"), trouble("b")], at(100)), None);
        assert_eq!(telling.note(vec![], at(105)), Some(vec![]));
    }
}
