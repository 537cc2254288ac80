//! xregion end to end: driven through the `vela` CLI as its users do, on real clusters. Run by `make test`, one test at a time and
//! in the order of their names: what one made, such as a joined cluster, later ones use.

// What long tests print is for people.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod addon;
mod changes;
mod controller;
mod deaths;
mod disturbed;
mod entries;
mod fixture;
mod identities;
mod joins;
mod kubeconfigs;
mod lab;
mod laptop;
mod leaves;
mod looking;
mod members;
mod policies;
mod refusals;
mod regions;
mod renewals;
mod rights;
mod secrets;
mod sni;
mod sources;
mod ways;
