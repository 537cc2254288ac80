//! Which of a region's nodes answer the hub, by what was heard of them lately.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// How many times in a row a node is asked in vain before connections are led past it. Once may be chance.
const MISSES: u8 = 2;
/// How many times in a row it has to answer before connections are led to it (again).
const ANSWERS: u8 = 3;

/// What was heard of the nodes of one region.
#[derive(Clone, Debug, Default)]
pub struct Answering(BTreeMap<IpAddr, Heard>);

#[derive(Clone, Copy, Debug)]
struct Heard {
    answers: bool,
    /// How often in a row it was not so.
    against: u8,
}

impl Answering {
    /// Notes whether each node answered just now, and gives those that do. Of a node that is heard of for the first time it is taken that
    /// it answers if connections are led to it already.
    pub fn note(&mut self, heard: &BTreeMap<IpAddr, bool>, led: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        self.0.retain(|ip, _| heard.contains_key(ip));
        for (ip, answered) in heard {
            let one = self.0.entry(*ip).or_insert(Heard { answers: led.contains(ip), against: 0 });
            one.against = if *answered == one.answers { 0 } else { one.against + 1 };
            if one.against >= if one.answers { MISSES } else { ANSWERS } {
                *one = Heard { answers: *answered, against: 0 };
            }
        }
        self.0.iter().filter(|(_, heard)| heard.answers).map(|(ip, _)| *ip).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_given_up_at_its_second_silence_and_taken_back_at_its_third_answer() {
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let (mut answering, led) = (Answering::default(), BTreeSet::from([ip(1), ip(2)]));
        let mut heard = |one: bool| {
            let alive = answering.note(&[(ip(1), one), (ip(2), true), (ip(3), true)].into(), &led);
            (alive.contains(&ip(1)), alive.contains(&ip(3)))
        };
        let got: Vec<_> = [true, false, true, false, false, true, true, false, true, true, true].map(&mut heard).into();
        let one: Vec<bool> = got.iter().map(|(one, _)| *one).collect();
        assert_eq!(one, [true, true, true, true, false, false, false, false, false, false, true]);
        let new: Vec<bool> = got.iter().map(|(_, new)| *new).take(4).collect();
        assert_eq!(new, [false, false, true, true], "a new one has to answer for a while");
        assert_eq!(answering.note(&[(ip(2), true)].into(), &led), [ip(2)].into(), "a node that is gone is forgotten");
    }
}
