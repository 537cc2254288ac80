//! One cluster is joined under one name, also where two runs join it at about the same time.
//!
//! Each run writes its own record first and looks for others then. The hub's API puts all writes into one order, and whoever was recorded later gives
//! way: it finds the earlier record for certain, while the other one, whenever it looks, finds a later record or none. (By their names alone it
//! could not be told who is to give way: the one that should may have looked and be done before the other was there.)

use std::collections::BTreeSet;

/// The record of a joined cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OnRecord {
    /// The cluster's name.
    pub name: String,
    /// Who it is.
    pub identity: String,
    /// When its Secret was written, by the `resourceVersion`: Kubernetes' API servers count.
    pub version: Option<u64>,
}

/// The other name that a cluster was recorded with before it got its `own`, if there is one beside those of the same run, which sees to that itself.
pub fn earlier_name<'a>(own: &OnRecord, run: &BTreeSet<&str>, all: &'a [OnRecord]) -> Option<&'a str> {
    let order = |one: &OnRecord| (one.version, one.name.clone());
    let others = all.iter().filter(|one| one.identity == own.identity && one.name != own.name && !run.contains(one.name.as_str()));
    others.filter(|one| order(one) < order(own)).min_by_key(|one| order(one)).map(|one| one.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, identity: &str, version: u64) -> OnRecord {
        OnRecord { name: name.into(), identity: identity.into(), version: Some(version) }
    }

    #[test]
    fn whoever_was_recorded_later_gives_way() {
        let own = record("b", "uid", 10);
        for (others, want) in [
            (vec![], None),
            (vec![record("a", "uid", 9)], Some("a")),
            (vec![record("c", "uid", 9)], Some("c")),
            (vec![record("a", "uid", 11)], None),
            (vec![record("a", "other", 9)], None),
            (vec![record("c", "uid", 8), record("a", "uid", 9)], Some("c")),
            (vec![record("of-this-run", "uid", 9)], None),
        ] {
            let all: Vec<_> = others.into_iter().chain([own.clone()]).collect();
            assert_eq!(earlier_name(&own, &["b", "of-this-run"].into(), &all), want, "{all:?}");
        }
        let uncounted = |name: &str| OnRecord { version: None, ..record(name, "uid", 0) };
        let all = ["a", "b"].map(uncounted);
        assert_eq!(all.each_ref().map(|own| earlier_name(own, &BTreeSet::new(), &all)), [None, Some("a")]);
    }

    /// A run that joins the cluster: what it does next, and what came of it.
    #[derive(Clone)]
    struct Run {
        own: OnRecord,
        looked: bool,
        gave_way: bool,
    }

    /// Goes on with either of the runs, in every order there is; at the end of each, one of them has given way.
    fn go_on(runs: &[Run; 2], records: &[OnRecord], clock: u64, ends: &mut usize) {
        if runs.iter().all(|run| run.looked) {
            *ends += 1;
            assert_eq!(runs.iter().filter(|run| run.gave_way).count(), 1, "{records:?}");
        }
        for n in 0..2 {
            let (mut runs, mut records) = (runs.clone(), records.to_vec());
            let run = &mut runs[n];
            if run.looked {
                continue;
            } else if run.own.version.is_none() {
                run.own.version = Some(clock);
                records.push(run.own.clone());
            } else {
                run.looked = true;
                run.gave_way = earlier_name(&run.own, &[run.own.name.as_str()].into(), &records).is_some();
                records.retain(|record| !run.gave_way || *record != run.own);
            }
            go_on(&runs, &records, clock + 1, ends);
        }
    }

    #[test]
    fn in_whichever_order_two_runs_go_one_of_them_stays() {
        let run = |name| Run { own: OnRecord { version: None, ..record(name, "uid", 0) }, looked: false, gave_way: false };
        let mut ends = 0;
        go_on(&["a", "b"].map(run), &[], 1, &mut ends);
        assert_eq!(ends, 6);
    }
}
