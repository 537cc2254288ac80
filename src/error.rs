//! What can go wrong, as a user sees it: a kind (and its exit code), one cause, and the next step.

use std::fmt;

/// The result of everything a user can be told about.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $code:literal,)*) => {
        /// The kind of a [`Failure`]. Its exit code is stable: scripts may key on it.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        impl Kind {
            /// Every kind, in the order of the exit codes.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The exit code of a process that ends with this kind of failure.
            pub const fn exit_code(self) -> u8 {
                match self { $(Self::$kind => $code,)* }
            }

            /// The name documented in the README and shown in a log.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind),)* }
            }
        }
    };
}

kinds! {
    /// Something nobody foresaw; the cause is the error as it came.
    Unexpected = 1,
    /// The command line does not parse (clap's own exit code).
    Usage = 2,

    /// The cluster's name is no RFC 1123 label, or is `local`.
    ClusterName = 10,
    /// A label for the cluster is no Kubernetes label.
    Label = 11,
    /// The kubeconfig's Secret or its key does not exist.
    SecretMissing = 12,
    /// The kubeconfig's Secret does not carry the label that opts it in.
    SecretNotOptedIn = 13,
    /// The text is no kubeconfig, or names things it does not hold.
    Kubeconfig = 14,
    /// The kubeconfig has several contexts and none of them is current.
    Context = 15,
    /// The kubeconfig's user has no credentials a hub can use.
    Credentials = 16,
    /// The kubeconfig asks for a connection that can't be verified.
    Insecure = 17,
    /// The kubeconfig's server is no address that can be routed to.
    Server = 18,
    /// A file that was to be written exists already, or can't be written.
    Output = 19,

    /// A Secret of the cluster's name exists and is no cluster.
    NameTaken = 20,
    /// A cluster of that name is joined, and it is another cluster.
    OtherCluster = 21,
    /// The cluster is joined already, under another name.
    SecondName = 22,
    /// The host name is aliased on the gateway by somebody else.
    HostAliased = 23,
    /// The host name is taken by a cluster of another region, or by one that is joined without a region.
    HostTaken = 24,
    /// The certificate has no name that could be aliased.
    NoUsableName = 25,
    /// A line of the gateway's hosts file, or the record of host aliases on its Deployment, would get too long.
    AliasLimit = 26,
    /// Applications still have resources in the cluster that is to leave.
    InUse = 27,
    /// The cluster is not joined through a region.
    NotMember = 28,

    /// The region's proxy cluster is not joined to the hub.
    RegionNotJoined = 30,
    /// The region's proxy cluster carries no `xregion-proxy`.
    NoProxy = 31,
    /// No proxy of the region is ready.
    NoReadyProxy = 32,
    /// The region has no address to enter by: of a node that is ready, with a ready proxy where it needs one, or of its load balancer.
    NoReadyNode = 33,
    /// The node port asked for is taken, or outside the region's range.
    NodePortTaken = 34,
    /// The region's range has no free node port left.
    NodePortsExhausted = 35,
    /// The addon does not allow this step to write to that region.
    RegionForbidden = 36,
    /// The proxies did not take up the route.
    RouteNotApplied = 37,
    /// The region's settings can't be read.
    RegionSettings = 38,

    /// The upstream's name can't be resolved in the region.
    Unresolvable = 40,
    /// The region's proxies refuse to connect to that upstream.
    AddressRefused = 41,
    /// The upstream refuses the proxies' connections.
    UpstreamRefusing = 42,
    /// The upstream does not answer the proxies.
    UpstreamSilent = 43,
    /// A proxy node's port can't be reached from the hub.
    NodeUnreachable = 44,
    /// The certificate presented is signed by another authority than the kubeconfig's.
    WrongCa = 45,
    /// The certificate presented is for another name.
    WrongName = 46,
    /// The certificate presented can't be used (expired, malformed, ...).
    Certificate = 47,
    /// The credentials are not accepted (401).
    Unauthorized = 48,
    /// The credentials lack rights (403).
    Forbidden = 49,
    /// Two nodes lead to different clusters.
    CrossedRoute = 50,
    /// The cluster's API can't be reached from the machine of `xregion kubeconfig`.
    ClusterUnreachable = 51,

    /// The hub's cluster-gateway can't be found.
    GatewayMissing = 60,
    /// The cluster-gateway did not roll to the new host aliases.
    GatewayRollout = 61,
    /// `vela cluster join` or `detach` failed.
    Vela = 62,
    /// The cluster was joined but does not answer through the gateway.
    NotReachable = 63,

    /// The hub's API can't be reached.
    HubUnreachable = 70,
    /// The hub's API denies a request the command needs.
    HubForbidden = 71,
    /// The addon's Job template is missing on the hub.
    AddonMissing = 72,
    /// The region's API (through the gateway) can't be reached.
    RegionUnreachable = 73,
    /// The time given with `--timeout` is over.
    Timeout = 80,
    /// The process was asked to end (SIGINT, SIGTERM).
    Interrupted = 81,
    /// Of several clusters, some were not joined.
    SomeFailed = 82,

    /// A link of the way to a cluster is broken, which `doctor` names.
    Broken = 90,
}

/// An error with one cause and the next step, as shown in `vela status` and on a terminal.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What kind it is.
    pub kind: Kind,
    cause: String,
    hint: String,
}

impl Failure {
    /// A failure of a kind, with its cause (what is wrong, naming the object) and hint (what to do next).
    ///
    /// Double quotes become single ones: of a line with those, `vela workflow logs` shows only what stands between them.
    pub fn new(kind: Kind, cause: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind, cause: cause.into().replace('"', "'"), hint: hint.into().replace('"', "'") }
    }

    /// What is wrong.
    pub fn cause(&self) -> &str {
        &self.cause
    }

    /// What to do next.
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// The same failure with the object named that it is about.
    pub fn about(mut self, object: &str) -> Self {
        self.cause = format!("{}: {}", object.replace('"', "'"), self.cause);
        self
    }

    /// The same failure with more said after its cause.
    pub fn and(mut self, more: &str) -> Self {
        self.cause = format!("{}; {more}", self.cause);
        self
    }
}

/// Cause and hint on one line: `vela status` shows a step's message as one.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.cause, self.hint)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_an_exit_code_of_its_own() {
        let mut codes: Vec<u8> = Kind::ALL.iter().map(|kind| kind.exit_code()).collect();
        assert!(codes.iter().all(|code| (1..=125).contains(code)), "codes above 125 mean something to a shell");
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Kind::ALL.len());
    }
}
