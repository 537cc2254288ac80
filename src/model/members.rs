//! Members as components declare them, and what becomes of each: the rules of `xregion-member`.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ConfigMap;
use sha2::{Digest as _, Sha256};

use super::membership::Membership;
use super::names::ClusterName;
use crate::error::Kind;

/// Label value (of [`super::names::KIND`]) of members.
pub const KIND_MEMBER: &str = "member";
/// The finalizer that keeps a member until its cluster has left. The controller sets it, not the manifest: a member that was never carried
/// out goes without asking anybody, also where no controller runs.
pub const FINALIZER: &str = "xregion.oam.dev/member";
/// Annotation with the cluster name that the member has joined, or was about to join when nobody had it.
pub const HOLDS: &str = "xregion.oam.dev/holds";
/// Annotation with the digest of what was joined.
pub const APPLIED: &str = "xregion.oam.dev/applied";
/// Annotation that lets the cluster leave although Applications have resources there. Not among the parameters: it must be possible to
/// set it on a member whose Application is being deleted, and it is no reason to join again.
pub const FORCE: &str = "xregion.oam.dev/force";
/// Key of what the component asks for: one JSON text. (KubeVela keeps no record of what it last applied to a ConfigMap, so a key that is
/// in its manifest no more would stay.)
pub const PARAMETERS: &str = "parameters";
/// Key of the parameters that what is told is about.
pub const SEEN: &str = "seen";
/// Key of a [`State`].
pub const STATE: &str = "state";
/// Key of what is told to people.
pub const MESSAGE: &str = "message";

/// The pause after a first failure, and the longest.
const PAUSES: (SignedDuration, SignedDuration) = (SignedDuration::from_secs(10), SignedDuration::from_mins(5));

/// How a member stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Its cluster is being joined.
    Joining,
    /// Its cluster is joined as asked for.
    Joined,
    /// The same, and it gives no right answer over its way now.
    Broken,
    /// It could not be joined, or could not leave.
    Failed,
    /// It waits for somebody else.
    Waiting,
    /// Its cluster is leaving.
    Leaving,
}

impl State {
    /// As written into the ConfigMap.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Joined => "joined",
            Self::Broken => "broken",
            Self::Failed => "failed",
            Self::Waiting => "waiting",
            Self::Leaving => "leaving",
        }
    }
}

/// A member's ConfigMap.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Its UID: one that was made anew is another member.
    pub uid: String,
    /// When it was made.
    pub created: Timestamp,
    /// Whether it is being deleted.
    pub deleted: bool,
    /// Whether it is kept until its cluster has left.
    pub kept: bool,
    /// The cluster name that it has joined or was about to.
    pub holds: Option<ClusterName>,
    /// The digest of what it has joined.
    pub applied: Option<String>,
    /// Whether its cluster leaves although Applications have resources there.
    pub force: bool,
    /// What it asks for, as the component wrote it.
    pub parameters: String,
    /// What was told last: the state, the message, and the parameters that they are about.
    pub told: [Option<String>; 3],
}

impl Declared {
    /// Reads a ConfigMap.
    pub fn from_config_map(map: &ConfigMap) -> Option<Self> {
        let meta = &map.metadata;
        let annotation = |key: &str| meta.annotations.as_ref()?.get(key);
        let data = |key: &str| map.data.as_ref()?.get(key).cloned();
        Some(Self {
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
            created: meta.creation_timestamp.as_ref()?.0,
            deleted: meta.deletion_timestamp.is_some(),
            kept: meta.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER),
            holds: annotation(HOLDS).and_then(|name| name.parse().ok()),
            applied: annotation(APPLIED).cloned(),
            force: annotation(FORCE).is_some_and(|text| text == "true"),
            parameters: data(PARAMETERS).unwrap_or_default(),
            told: [data(STATE), data(MESSAGE), data(SEEN)],
        })
    }

    /// Whether just this was told already.
    pub fn was_told(&self, state: State, message: &str) -> bool {
        self.told == [Some(state.as_str().to_owned()), Some(message.to_owned()), Some(self.parameters.clone())]
    }

    /// Whether its state was told for the parameters that it has now.
    pub fn stands(&self, state: State) -> bool {
        self.told[0].as_deref() == Some(state.as_str()) && self.told[2].as_ref() == Some(&self.parameters)
    }
}

/// What a member asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wish {
    /// The name its cluster is to have.
    pub cluster: ClusterName,
    /// What it would be joined with, as a digest.
    pub digest: String,
}

/// A digest of all that a join depends on: the parameters, and the kubeconfig, if there is one. Never the kubeconfig itself: the digest is
/// written where more people read than may read Secrets.
pub fn digest(parameters: &str, kubeconfig: Option<&[u8]>) -> String {
    let mut hash = Sha256::new();
    // A length before each: no two inputs run together to the same bytes.
    hash.update((parameters.len() as u64).to_be_bytes());
    hash.update(parameters);
    if let Some(kubeconfig) = kubeconfig {
        hash.update((kubeconfig.len() as u64).to_be_bytes());
        hash.update(kubeconfig);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the hub has of clusters.
#[derive(Clone, Debug, Default)]
pub struct Clusters {
    /// Those that are joined, and how, where that is on record.
    pub joined: BTreeMap<ClusterName, Option<Membership>>,
    /// Those that are leaving, or whose leave was not finished.
    pub leaving: BTreeSet<ClusterName>,
}

/// What becomes of a member.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Due {
    /// It is to be joined.
    Join,
    /// It is joined as asked for.
    Joined,
    /// The cluster of this name is to leave.
    Leave(ClusterName),
    /// It may go: it has no cluster.
    Release,
    /// It can do nothing now, for this reason.
    Stand(String),
    /// Nothing: it can't be read, or somebody else keeps it.
    Nothing,
}

/// Decides what becomes of each member, in their order. Those whose parameters can't be read wish for nothing.
pub fn decide(members: &[(Declared, Option<Wish>)], clusters: &Clusters) -> Vec<Due> {
    members.iter().map(|(member, wish)| due(member, wish.as_ref(), members, clusters)).collect()
}

fn due(member: &Declared, wish: Option<&Wish>, members: &[(Declared, Option<Wish>)], clusters: &Clusters) -> Due {
    let has = |name: &ClusterName| owner(name, members).is_none_or(|owner| owner.uid == member.uid);
    let held = member.holds.as_ref().filter(|name| has(name));
    match (member.deleted, held, wish) {
        (true, _, _) if !member.kept => Due::Nothing,
        (true, Some(name), _) => Due::Leave(name.clone()),
        (true, None, _) => Due::Release,
        (false, _, None) => Due::Nothing,
        // Its cluster gets another name, and may not have two.
        (false, Some(name), Some(wish)) if *name != wish.cluster => Due::Leave(name.clone()),
        (false, _, Some(wish)) if !has(&wish.cluster) => {
            let other = owner(&wish.cluster, members).map(|other| other.name.as_str()).unwrap_or_default();
            Due::Stand(format!("member {other} has the cluster name {} already (give one of them another name)", wish.cluster))
        }
        (false, Some(name), Some(wish)) if member.applied.as_ref() == Some(&wish.digest) => {
            match (clusters.joined.contains_key(name), clusters.leaving.contains(name)) {
                (true, _) => Due::Joined,
                // A run in the middle, or one that was cut short: a join now would be undone by what that has still to do.
                (false, true) => {
                    Due::Stand(format!("a leave of cluster {name} is not finished (xregion leave {name} finishes it)"))
                }
                (false, false) => Due::Join,
            }
        }
        (false, _, Some(_)) => Due::Join,
    }
}

/// Who has a cluster's name: the member that has joined it, else the oldest that asks for it.
fn owner<'a>(name: &ClusterName, members: &'a [(Declared, Option<Wish>)]) -> Option<&'a Declared> {
    let holds = |member: &Declared| member.holds.as_ref() == Some(name);
    let asks = |member: &Declared, wish: &Option<Wish>| !member.deleted && wish.as_ref().is_some_and(|wish| wish.cluster == *name);
    let about = members.iter().filter(|(member, wish)| holds(member) || asks(member, wish)).map(|(member, _)| member);
    about.min_by_key(|member| (!holds(member), member.created, member.name.as_str()))
}

/// Whether a join that failed so says that the name belongs to a cluster which is not the member's. One that was joined by somebody else
/// must not leave with the member.
pub const fn is_another_s(kind: Kind) -> bool {
    matches!(kind, Kind::OtherCluster | Kind::NameTaken | Kind::SecondName)
}

/// What was tried for members without success, and when it is tried again.
#[derive(Default)]
pub struct Tries(BTreeMap<String, Try>);

struct Try {
    what: String,
    pause: SignedDuration,
    next: Timestamp,
}

impl Tries {
    /// Whether something may be tried for a member now. What is new is tried at once.
    pub fn may(&self, member: &Declared, what: &str, now: Timestamp) -> bool {
        self.0.get(&member.uid).is_none_or(|last| last.what != what || last.next <= now)
    }

    /// It failed: the pause doubles.
    pub fn failed(&mut self, member: &Declared, what: &str, now: Timestamp) {
        let (first, longest) = PAUSES;
        let before = self.0.get(&member.uid).filter(|last| last.what == what);
        let pause = before.map_or(first, |last| (last.pause * 2).min(longest));
        self.note(member, what, pause, now);
    }

    /// It waits for somebody else, who may be done soon: the pause stays.
    pub fn waits(&mut self, member: &Declared, what: &str, now: Timestamp) {
        self.note(member, what, PAUSES.0, now);
    }

    fn note(&mut self, member: &Declared, what: &str, pause: SignedDuration, now: Timestamp) {
        let next = now.checked_add(pause).unwrap_or(now);
        self.0.insert(member.uid.clone(), Try { what: what.to_owned(), pause, next });
    }

    /// It succeeded.
    pub fn done(&mut self, member: &Declared) {
        self.0.remove(&member.uid);
    }

    /// Forgets members that are gone.
    pub fn keep(&mut self, members: &[(Declared, Option<Wish>)]) {
        self.0.retain(|uid, _| members.iter().any(|(member, _)| member.uid == *uid));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn name(text: &str) -> ClusterName {
        text.parse().unwrap()
    }

    /// A member that was made at `age` and asks for a cluster; `more` is of its metadata.
    fn member(age: u8, cluster: &str, more: serde_json::Value) -> (Declared, Option<Wish>) {
        let mut map = json!({
            "metadata": {
                "name": format!("member-{age}"), "uid": format!("uid-{age}"), "creationTimestamp": format!("2026-01-01T00:00:{age:02}Z"),
                "annotations": {},
            },
            "data": {"parameters": cluster},
        });
        for (key, value) in more.as_object().unwrap() {
            map["metadata"][key] = value.clone();
        }
        let declared = Declared::from_config_map(&serde_json::from_value(map).unwrap()).unwrap();
        let wish = cluster.parse().ok().map(|cluster| Wish { cluster, digest: "now".into() });
        (declared, wish)
    }

    fn holding(name: &str, applied: Option<&str>) -> serde_json::Value {
        let mut annotations = json!({HOLDS: name});
        applied.into_iter().for_each(|applied| annotations[APPLIED] = json!(applied));
        json!({"finalizers": ["others", FINALIZER], "annotations": annotations})
    }

    fn gone(mut more: serde_json::Value) -> serde_json::Value {
        more["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
        more
    }

    fn clusters(joined: &[&str], leaving: &[&str]) -> Clusters {
        Clusters {
            joined: joined.iter().map(|text| (name(text), None)).collect(),
            leaving: leaving.iter().map(|text| name(text)).collect(),
        }
    }

    #[test]
    fn a_member_alone() {
        let kept = json!({"finalizers": [FINALIZER]});
        let unfinished = "a leave of cluster a is not finished (xregion leave a finishes it)";
        for (what, member, clusters, want) in [
            ("new", member(1, "a", json!({})), clusters(&[], &[]), Due::Join),
            ("new, of a cluster that a step has joined", member(1, "a", json!({})), clusters(&["a"], &[]), Due::Join),
            ("not to be read", member(1, "A", json!({})), clusters(&[], &[]), Due::Nothing),
            ("not to be read any more", member(1, "A", holding("a", Some("then"))), clusters(&["a"], &[]), Due::Nothing),
            ("begun", member(1, "a", holding("a", None)), clusters(&[], &[]), Due::Join),
            ("joined", member(1, "a", holding("a", Some("now"))), clusters(&["a"], &[]), Due::Joined),
            ("changed", member(1, "a", holding("a", Some("then"))), clusters(&["a"], &[]), Due::Join),
            ("detached by somebody", member(1, "a", holding("a", Some("now"))), clusters(&[], &[]), Due::Join),
            ("left by a step", member(1, "a", holding("a", Some("now"))), clusters(&[], &["a"]), Due::Stand(unfinished.into())),
            ("moving", member(1, "a", holding("a", Some("now"))), clusters(&["a"], &["a"]), Due::Joined),
            ("renamed", member(1, "b", holding("a", Some("then"))), clusters(&["a"], &[]), Due::Leave(name("a"))),
            ("deleted", member(1, "a", gone(holding("a", Some("now")))), clusters(&["a"], &[]), Due::Leave(name("a"))),
            ("deleted, unreadable", member(1, "A", gone(holding("a", Some("now")))), clusters(&["a"], &[]), Due::Leave(name("a"))),
            ("deleted when begun", member(1, "a", gone(holding("a", None))), clusters(&[], &[]), Due::Leave(name("a"))),
            ("deleted without a cluster", member(1, "a", gone(kept)), clusters(&["a"], &[]), Due::Release),
            ("kept by somebody else", member(1, "a", gone(json!({"finalizers": ["others"]}))), clusters(&[], &[]), Due::Nothing),
        ] {
            assert_eq!(decide(&[member], &clusters), [want], "{what}");
        }
    }

    #[test]
    fn one_of_two_members_has_a_name() {
        let stands =
            |other: u8| Due::Stand(format!("member member-{other} has the cluster name a already (give one of them another name)"));
        let clusters = clusters(&["a"], &[]);
        for (what, one, two, want) in [
            ("the older", member(1, "a", json!({})), member(2, "a", json!({})), [Due::Join, stands(1)]),
            ("that has joined", member(1, "a", json!({})), member(2, "a", holding("a", Some("now"))), [stands(2), Due::Joined]),
            (
                "that waits to leave",
                member(1, "a", gone(holding("a", Some("now")))),
                member(2, "a", json!({})),
                [Due::Leave(name("a")), stands(1)],
            ),
            (
                "and the other goes",
                member(1, "a", holding("a", Some("now"))),
                member(2, "a", gone(json!({"finalizers": [FINALIZER]}))),
                [Due::Joined, Due::Release],
            ),
            (
                "and the other, that lost it by hand, goes",
                member(1, "a", holding("a", Some("now"))),
                member(2, "a", gone(holding("a", None))),
                [Due::Joined, Due::Release],
            ),
            (
                "that is renamed, until it has left",
                member(2, "b", holding("a", Some("then"))),
                member(1, "a", json!({})),
                [Due::Leave(name("a")), stands(2)],
            ),
            (
                "who never had it",
                member(1, "a", gone(json!({"finalizers": [FINALIZER]}))),
                member(2, "a", json!({})),
                [Due::Release, Due::Join],
            ),
        ] {
            assert_eq!(decide(&[one, two], &clusters), want, "{what}");
        }
    }

    #[test]
    fn a_digest_is_of_parameters_and_kubeconfig() {
        let of = [digest("a", None), digest("a", Some(b"")), digest("a", Some(b"b")), digest("ab", None), digest("a", Some(b"c"))];
        let different: BTreeSet<_> = of.iter().collect();
        assert_eq!((different.len(), of[0].len()), (5, 64));
        assert_eq!(digest("a", Some(b"b")), of[2]);
    }

    #[test]
    fn what_fails_is_tried_less_and_less_often_and_what_is_new_at_once() {
        let (member, _) = member(1, "a", json!({}));
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let at = |seconds: i64| start + SignedDuration::from_secs(seconds);
        let mut tries = Tries::default();
        let mut now = 0;
        for pause in [10, 20, 40, 80, 160, 300, 300] {
            assert!(tries.may(&member, "x", at(now)));
            tries.failed(&member, "x", at(now));
            assert!(!tries.may(&member, "x", at(now + pause - 1)), "{pause}");
            assert!(tries.may(&member, "y", at(now)), "it changed");
            now += pause;
        }
        tries.failed(&member, "y", at(now));
        assert!(tries.may(&member, "y", at(now + 10)), "the pause begins anew");
        for _ in 0..3 {
            tries.waits(&member, "leave", at(now));
            assert!(!tries.may(&member, "leave", at(now + 9)) && tries.may(&member, "leave", at(now + 10)));
        }
        tries.done(&member);
        assert!(tries.may(&member, "leave", at(now)));
        tries.failed(&member, "x", at(now));
        tries.keep(&[]);
        assert!(tries.may(&member, "x", at(now)));
    }

    #[test]
    fn what_is_told_is_about_the_parameters_of_then() {
        let map = |parameters: &str| {
            let map = json!({
                "metadata": {"name": "m", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {FORCE: "true"}},
                "data": {PARAMETERS: parameters, SEEN: "one", STATE: "joined", MESSAGE: "well"},
            });
            Declared::from_config_map(&serde_json::from_value(map).unwrap()).unwrap()
        };
        assert!(map("one").was_told(State::Joined, "well") && map("one").stands(State::Joined) && map("one").force);
        assert!(!map("one").was_told(State::Joined, "better") && !map("one").was_told(State::Failed, "well"));
        assert!(!map("two").was_told(State::Joined, "well") && !map("two").stands(State::Joined));
    }
}
