//! When the hub's credentials for a cluster are renewed, by what, and what is told of those that can't be.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};

use super::checkup::{Problem, Subject};
use super::drift::Trouble;
use super::kubeconfig::{Chosen, Credentials, document};
use super::lifetime::{Account, Claims, Lifetime, SOON};

/// Label of a ServiceAccount whose tokens may be renewed: `true`. `xregion kubeconfig` sets it.
pub const RENEW: &str = "xregion.oam.dev/renew";

/// The pause after a first failure, and the longest.
const PAUSES: (SignedDuration, SignedDuration) = (SignedDuration::from_secs(10), SignedDuration::from_mins(5));
/// After how many failures they are told, if it isn't late yet.
const TIMES: usize = 3;

/// The ServiceAccount that a token is of, and its lifetime, where it tells both: of others nobody knows when to renew them and how.
pub fn renewable(credentials: &Credentials) -> Option<(Account, Lifetime)> {
    let Credentials::Token(token) = credentials else { return None };
    let claims = Claims::of(token.expose_secret())?;
    Some((claims.account.clone()?, claims.lifetime()?))
}

/// Credentials that the hub has for a cluster, without what is secret of them.
#[derive(Clone, Debug)]
pub struct Held {
    /// The cluster, or the region whose proxy cluster it is.
    pub about: Subject,
    /// When they end.
    pub expires: Timestamp,
    /// What brings new ones.
    pub way_back: String,
    what: &'static str,
    lifetime: Option<Lifetime>,
    renewable: bool,
}

impl Held {
    /// None where they tell no end. Those of proxy clusters are nobody's to renew: they were not made by xregion.
    pub fn of(about: Subject, credentials: &Credentials, way_back: String) -> Option<Self> {
        let what = match credentials {
            Credentials::Token(_) => "token",
            Credentials::Certificate(..) => "client certificate",
        };
        let renewable = matches!(about, Subject::Cluster(_)) && renewable(credentials).is_some();
        Some(Self { about, expires: credentials.expires()?, way_back, what, lifetime: credentials.lifetime(), renewable })
    }

    /// Whether they may be renewed, as far as they tell themselves, and it is time.
    fn is_due(&self, now: Timestamp) -> bool {
        self.renewable && self.lifetime.is_some_and(|lifetime| lifetime.renewal() <= now)
    }

    fn is_late(&self, now: Timestamp) -> bool {
        self.lifetime.is_some_and(|lifetime| lifetime.late() <= now)
    }

    /// Whether people should know of their end.
    fn is_soon(&self, now: Timestamp) -> bool {
        self.soon() <= now
    }

    /// From when on people should know of their end: a week before, and of short ones when a third is left.
    fn soon(&self) -> Timestamp {
        let week = self.expires.checked_sub(SOON).unwrap_or(Timestamp::MIN);
        self.lifetime.map_or(week, |lifetime| lifetime.renewal().max(week))
    }

    /// From when on people should see to them. What can be renewed is not theirs to see to before that is late.
    pub fn attention(&self) -> Timestamp {
        match self.lifetime {
            Some(lifetime) if self.renewable => lifetime.late(),
            _ => self.soon(),
        }
    }
}

/// Why credentials were not renewed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Hindrance {
    /// Nobody has allowed it.
    Refused(Problem),
    /// It did not succeed.
    Failed(Problem),
    /// There is nothing to be had now: the cluster gives no token that ends later, or it takes the old one no more, and nobody has
    /// brought another.
    Nothing,
}

/// What the controller remembers of renewals.
#[derive(Default)]
pub struct Renewing(BTreeMap<Subject, Tried>);

struct Tried {
    /// The end of those that were to be renewed: others begin anew.
    of: Timestamp,
    failed: usize,
    pause: SignedDuration,
    next: Timestamp,
    last: Hindrance,
}

impl Renewing {
    /// Whether credentials are to be renewed now. Over or not: somebody may have brought new ones.
    pub fn is_due(&self, held: &Held, now: Timestamp) -> bool {
        held.is_due(now) && self.tried(held).is_none_or(|tried| tried.next <= now)
    }

    /// They were not renewed.
    pub fn hindered(&mut self, held: &Held, hindrance: Hindrance, now: Timestamp) {
        let (first, longest) = PAUSES;
        let before = self.tried(held);
        let failed = before.map_or(0, |tried| tried.failed) + usize::from(matches!(hindrance, Hindrance::Failed(_)));
        let pause = match hindrance {
            Hindrance::Failed(_) => before.map_or(first, |tried| (tried.pause * 2).min(longest)),
            Hindrance::Nothing if held.expires <= now => first,
            Hindrance::Nothing | Hindrance::Refused(_) => longest,
        };
        let next = now.checked_add(pause).unwrap_or(now);
        self.0.insert(held.about.clone(), Tried { of: held.expires, failed, pause, next, last: hindrance });
    }

    /// They were renewed.
    pub fn done(&mut self, held: &Held) {
        self.0.remove(&held.about);
    }

    /// Forgets those of clusters that are gone.
    pub fn keep(&mut self, all: &[Held]) {
        self.0.retain(|about, _| all.iter().any(|held| held.about == *about));
    }

    /// What people should know.
    pub fn troubles<'a>(&self, all: impl IntoIterator<Item = &'a Held>, now: Timestamp) -> Vec<Trouble> {
        let told = |held: &Held| Some(Trouble { about: held.about.clone(), problem: self.problem(held, now)? });
        all.into_iter().filter_map(told).collect()
    }

    fn problem(&self, held: &Held, now: Timestamp) -> Option<Problem> {
        let Held { what, expires, .. } = held;
        if *expires <= now {
            return Some(Problem::new(
                format!("its {what} expired at {expires}, and the hub is not let in any more"),
                &held.way_back,
            ));
        }
        let tried = self.tried(held);
        match tried.map(|tried| (&tried.last, tried.failed)) {
            Some((Hindrance::Failed(why), failed)) => (failed >= TIMES || held.is_late(now)).then(|| {
                Problem::new(format!("its {what} expires at {expires}, and could not be renewed: {}", why.cause), &why.fix)
            }),
            Some((Hindrance::Refused(why), _)) => held
                .is_soon(now)
                .then(|| Problem::new(format!("its {what} expires at {expires}, and may not be renewed: {}", why.cause), &why.fix)),
            Some((Hindrance::Nothing, _)) => held.is_late(now).then(|| {
                Problem::new(format!("its {what} expires at {expires}, and none that ends later is to be had"), &held.way_back)
            }),
            // What can be renewed is tried first.
            None => (!held.renewable && held.is_soon(now))
                .then(|| Problem::new(format!("its {what} expires at {expires}"), &held.way_back)),
        }
    }

    fn tried(&self, held: &Held) -> Option<&Tried> {
        self.0.get(&held.about).filter(|tried| tried.of == held.expires)
    }
}

/// What takes the place of a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Replacement {
    /// The one in the kubeconfig that it came from: somebody has brought it, or a controller died after it had written it there.
    Brought,
    /// A new one, which the cluster is asked for.
    Asked,
    /// Nothing: it is over, so that the cluster gives no other for it.
    None,
}

/// Decides what takes the place of the hub's token, with what its kubeconfig's Secret has now.
pub fn replacement(held: &Claims, source: Option<&Claims>, now: Timestamp) -> Replacement {
    let ends = |claims: &Claims| claims.expires.unwrap_or(Timestamp::MAX);
    match source {
        Some(source) if same_subject(held, source) && ends(source) > ends(held).max(now) => Replacement::Brought,
        _ if ends(held) > now => Replacement::Asked,
        _ => Replacement::None,
    }
}

/// Whether two tokens are known to be of one ServiceAccount or user.
pub fn same_subject(one: &Claims, other: &Claims) -> bool {
    one.subject.is_some() && one.subject == other.subject
}

/// The kubeconfig with the hub's own token in the place of one that is over, if that is of the same subject and is not. Where whoever keeps
/// the Secret of the kubeconfig puts back what it was, the token that it was brought with ends sooner or later.
pub fn outlived(kubeconfig: &[u8], context: Option<&str>, held: &SecretString, now: Timestamp) -> Option<Vec<u8>> {
    let brought = Claims::of(token_in(kubeconfig, context)?.expose_secret())?;
    let own = Claims::of(held.expose_secret())?;
    let lasts = |claims: &Claims| claims.expires.is_none_or(|expires| expires > now);
    if !same_subject(&brought, &own) || lasts(&brought) || !lasts(&own) {
        return None;
    }
    with_token(kubeconfig, context, held)
}

/// The token in a kubeconfig's context, whether it is over or not.
pub fn token_in(kubeconfig: &[u8], context: Option<&str>) -> Option<SecretString> {
    let config = document(kubeconfig, std::path::Path::new("")).ok()?;
    Chosen::of(&config, context).ok()?.user.token.clone()
}

/// The kubeconfig with another token in the place of the one in this context, and all the rest as it is. None where it isn't written in
/// one piece, as in UTF-16.
pub fn with_token(kubeconfig: &[u8], context: Option<&str>, token: &SecretString) -> Option<Vec<u8>> {
    let old = token_in(kubeconfig, context)?;
    let (old, new) = (old.expose_secret(), token.expose_secret());
    let changed = std::str::from_utf8(kubeconfig).ok()?.replace(old, new).into_bytes();
    (token_in(&changed, context)?.expose_secret() == new).then_some(changed)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use serde_json::{Value, json};

    use super::*;

    const DAY: i64 = 24 * 3600;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn jwt(payload: &Value) -> String {
        format!("e30.{}.c2lnbmF0dXJl", BASE64_URL_SAFE_NO_PAD.encode(payload.to_string()))
    }

    fn token(subject: &str, issued: i64, expires: i64) -> Credentials {
        Credentials::Token(jwt(&json!({"sub": subject, "iat": issued, "exp": expires})).into())
    }

    fn cluster() -> Subject {
        Subject::Cluster("a".parse().unwrap())
    }

    fn held(credentials: &Credentials) -> Held {
        Held::of(cluster(), credentials, "bring another".into()).unwrap()
    }

    const ACCOUNT: &str = "system:serviceaccount:vela-system:xregion";

    #[test]
    fn a_token_is_due_when_a_third_of_its_lifetime_is_left() {
        for (credentials, now, due, why) in [
            (token(ACCOUNT, 0, 30 * DAY), 20 * DAY - 1, false, "more than a third is left"),
            (token(ACCOUNT, 0, 30 * DAY), 20 * DAY, true, "a third is left"),
            (token(ACCOUNT, 0, 600), 399, false, "so it is with the shortest"),
            (token(ACCOUNT, 0, 600), 400, true, "so it is with the shortest"),
            (token(ACCOUNT, 0, 600), 700, true, "it is over, and another may have been brought"),
            (token("alice", 0, 600), 500, false, "a person's"),
        ] {
            assert_eq!(Renewing::default().is_due(&held(&credentials), at(now)), due, "{why}");
        }
        let proxy = Subject::Region("proxy-east".parse().unwrap());
        let proxy = Held::of(proxy, &token(ACCOUNT, 0, 600), String::new()).unwrap();
        assert!(!Renewing::default().is_due(&proxy, at(500)), "a proxy cluster's");
        let unknown = Credentials::Token(jwt(&json!({"sub": ACCOUNT, "exp": 600})).into());
        assert!(!Renewing::default().is_due(&held(&unknown), at(500)), "nobody knows how long it lasted");
        assert!(Held::of(cluster(), &Credentials::Token("opaque".to_owned().into()), String::new()).is_none());
    }

    #[test]
    fn what_fails_is_tried_less_and_less_often_and_told_after_three_times_or_when_it_is_late() {
        let held = held(&token(ACCOUNT, 0, 30 * DAY));
        let failure = || Hindrance::Failed(Problem::new("no answer", "look there"));
        let mut renewing = Renewing::default();
        let mut now = 20 * DAY;
        for (count, pause) in [10, 20, 40, 80, 160, 300, 300].into_iter().enumerate() {
            assert!(renewing.is_due(&held, at(now)), "{count}");
            assert_eq!(renewing.troubles([&held], at(now)).is_empty(), count < TIMES, "{count}");
            renewing.hindered(&held, failure(), at(now));
            assert!(!renewing.is_due(&held, at(now + pause - 1)), "{pause}");
            now += pause;
        }
        let told = renewing.troubles([&held], at(now));
        let want = Problem::new("its token expires at 1970-01-31T00:00:00Z, and could not be renewed: no answer", "look there");
        assert_eq!(told, [Trouble { about: cluster(), problem: want }]);
        // Another token begins anew.
        let next = self::held(&token(ACCOUNT, 20 * DAY, 50 * DAY));
        assert!(renewing.troubles([&next], at(now)).is_empty() && renewing.is_due(&next, at(40 * DAY)));
        renewing.done(&held);
        assert!(renewing.is_due(&held, at(now)) && renewing.troubles([&held], at(now)).is_empty());
        renewing.hindered(&held, failure(), at(27 * DAY));
        assert_eq!(renewing.troubles([&held], at(27 * DAY)).len(), 1, "once is enough when it is late");
        renewing.keep(&[]);
        assert!(renewing.troubles([&held], at(27 * DAY)).is_empty());
    }

    #[test]
    fn the_end_of_what_is_not_renewed_is_told_before() {
        let refusal = Hindrance::Refused(Problem::new("it is not marked", "mark it"));
        let told = |credentials: &Credentials, hindrance: Option<&Hindrance>, now: i64| {
            let (held, mut renewing) = (held(credentials), Renewing::default());
            hindrance.into_iter().for_each(|why| renewing.hindered(&held, why.clone(), at(now)));
            let told = renewing.troubles([&held], at(now)).pop();
            told.map(|trouble| (trouble.problem.cause, trouble.problem.fix))
        };
        let of = |cause: &str, fix: &str| Some((cause.to_owned(), fix.to_owned()));
        let month = token("alice", 0, 30 * DAY);
        assert_eq!(told(&month, None, 23 * DAY - 1), None);
        assert_eq!(told(&month, None, 23 * DAY), of("its token expires at 1970-01-31T00:00:00Z", "bring another"));
        let day = token("alice", 0, DAY);
        assert_eq!(told(&day, None, DAY / 2), None, "a day's is not told from its beginning on");
        assert!(told(&day, None, DAY * 2 / 3).is_some());
        let mine = token(ACCOUNT, 0, 30 * DAY);
        assert_eq!(told(&mine, None, 29 * DAY), None, "it is tried first");
        assert_eq!(told(&mine, Some(&refusal), 21 * DAY), None, "there is time");
        let refused = "its token expires at 1970-01-31T00:00:00Z, and may not be renewed: it is not marked";
        assert_eq!(told(&mine, Some(&refusal), 24 * DAY), of(refused, "mark it"));
        assert_eq!(told(&mine, Some(&Hindrance::Nothing), 24 * DAY), None, "it may pass");
        let nothing = "its token expires at 1970-01-31T00:00:00Z, and none that ends later is to be had";
        assert_eq!(told(&mine, Some(&Hindrance::Nothing), 27 * DAY), of(nothing, "bring another"));
        let over = of("its token expired at 1970-01-31T00:00:00Z, and the hub is not let in any more", "bring another");
        for hindrance in [None, Some(&refusal), Some(&Hindrance::Nothing)] {
            assert_eq!(told(&mine, hindrance, 30 * DAY), over);
        }
    }

    #[test]
    fn people_see_to_what_is_renewed_only_when_that_is_late() {
        for (credentials, want) in [
            (token(ACCOUNT, 0, DAY), DAY - DAY / 10),
            (token(ACCOUNT, 0, 30 * DAY), 27 * DAY),
            (token("alice", 0, DAY), DAY * 2 / 3),
            (token("alice", 0, 30 * DAY), 23 * DAY),
            (Credentials::Token(jwt(&json!({"sub": ACCOUNT, "exp": 30 * DAY})).into()), 23 * DAY),
        ] {
            assert_eq!(held(&credentials).attention(), at(want), "{want}");
        }
    }

    #[test]
    fn when_it_is_over_what_is_brought_is_looked_for_soon_again_and_permission_less_often() {
        let held = held(&token(ACCOUNT, 0, DAY));
        let next = |hindrance: Hindrance, now: i64| {
            let mut renewing = Renewing::default();
            (0..5).for_each(|_| renewing.hindered(&held, hindrance.clone(), at(now)));
            [10, 300].map(|pause| renewing.is_due(&held, at(now + pause)))
        };
        assert_eq!(next(Hindrance::Nothing, DAY), [true, true]);
        assert_eq!(next(Hindrance::Nothing, DAY - 10), [false, true]);
        assert_eq!(next(Hindrance::Refused(Problem::new("", "")), DAY - 100), [false, true]);
    }

    #[test]
    fn what_takes_the_place_of_a_token() {
        let claims = |uid: Option<&str>, expires: Option<i64>| {
            let mut payload = json!({"kubernetes.io": {"serviceaccount": {"uid": uid}}});
            expires.into_iter().for_each(|expires| payload["exp"] = json!(expires));
            Claims::of(&jwt(&payload)).unwrap()
        };
        let mine = claims(Some("1"), Some(100));
        for (source, now, want, why) in [
            (None, 50, Replacement::Asked, "it has no source"),
            (None, 100, Replacement::None, "it is over"),
            (Some(claims(Some("1"), Some(100))), 50, Replacement::Asked, "the source has the same"),
            (Some(claims(Some("1"), Some(90))), 50, Replacement::Asked, "the source has an earlier one"),
            (Some(claims(Some("1"), Some(200))), 50, Replacement::Brought, "a controller died before it wrote the cluster's"),
            (Some(claims(Some("1"), Some(200))), 150, Replacement::Brought, "it is over, and another was brought"),
            (Some(claims(Some("1"), None)), 150, Replacement::Brought, "one that never ends was brought"),
            (Some(claims(Some("1"), Some(200))), 200, Replacement::None, "both are over"),
            (Some(claims(Some("2"), Some(200))), 50, Replacement::Asked, "another's is a join's to take"),
            (Some(claims(Some("2"), Some(200))), 150, Replacement::None, "also then"),
            (Some(claims(None, Some(200))), 50, Replacement::Asked, "nobody's"),
        ] {
            assert_eq!(replacement(&mine, source.as_ref(), at(now)), want, "{why}");
        }
        assert!(!same_subject(&claims(None, None), &claims(None, None)));
    }

    #[test]
    fn the_hub_s_token_takes_the_place_of_one_that_is_over() {
        let token = |uid: &str, expires: i64| jwt(&json!({"kubernetes.io": {"serviceaccount": {"uid": uid}}, "exp": expires}));
        let kubeconfig = |token: &str| {
            json!({
                "clusters": [{"name": "k", "cluster": {}}], "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "users": [{"name": "u", "user": {"token": token}}], "current-context": "c",
            })
            .to_string()
        };
        for (brought, own, goes_on, why) in [
            (token("1", 40), token("1", 90), true, "the controller has renewed it"),
            (token("1", 60), token("1", 90), false, "a join decides which of two to keep"),
            (token("1", 40), token("1", 45), false, "both are over"),
            (token("1", 40), token("2", 90), false, "another's"),
            (token("1", 40), "opaque".to_owned(), false, "nothing is known of it"),
        ] {
            let own: SecretString = own.into();
            let with = outlived(kubeconfig(&brought).as_bytes(), None, &own, at(50));
            let want = goes_on.then(|| kubeconfig(own.expose_secret()).into_bytes());
            assert_eq!(with, want, "{why}");
        }
    }

    #[test]
    fn a_kubeconfig_gets_another_token_and_stays_as_it_is() {
        let text = "# ours\nkind: Config\nclusters: [{name: k, cluster: {server: https://a}}]\n\
            contexts:\n- {name: one, context: {cluster: k, user: u}} # mine\n- {name: two, context: {cluster: k, user: v}}\n\
            users:\n- {name: u, user: {token: old.old.old}}\n- {name: v, user: {token: 'other'}}\ncurrent-context: one\n";
        let new: SecretString = "new.new.new".to_owned().into();
        let changed = |text: &[u8], context| with_token(text, context, &new).map(|text| String::from_utf8(text).unwrap());
        assert_eq!(changed(text.as_bytes(), None), Some(text.replace("old.old.old", "new.new.new")));
        assert_eq!(changed(text.as_bytes(), Some("two")), Some(text.replace("other", "new.new.new")));
        assert_eq!(changed(text.as_bytes(), Some("three")), None);
        let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect();
        assert!(token_in(&utf16, None).is_some());
        assert_eq!(changed(&utf16, None), None);
        let folded = text.replace("old.old.old", "\"old.old\\\n   .old\"");
        assert_eq!(token_in(folded.as_bytes(), None).unwrap().expose_secret(), "old.old.old");
        assert_eq!(changed(folded.as_bytes(), None), None);
        assert_eq!(changed(b"no kubeconfig", None), None);
    }
}
