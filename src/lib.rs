//! Joins Kubernetes clusters that a KubeVela hub has no route to.
//!
//! ```text
//!  hub                                         region
//!  step xregion-join -> Job: xregion join      proxy cluster: nginx + xregion agent
//!    read      the kubeconfig, the region        |
//!    route     ------ through the gateway ----->  ConfigMap (route), Service (node port)
//!    apply     wait until every proxy serves it  |
//!    prove     node:port ---------------------->  nginx ------> the cluster's API server
//!    roll      host aliases of the gateway, without a failed request
//!    join      vela cluster join
//! ```
//!
//! Rules are pure functions in [`model`]; [`hub`], [`region`] and [`probe`] gather what they need and carry out what they say;
//! [`join`], [`leave`] and [`looking`] tell the stories; [`agent`] is what runs beside nginx in a region, [`controller`] what runs on the
//! hub, mends what is not as recorded, and joins what components declare.

pub mod agent;
pub mod cli;
pub mod connect;
pub mod controller;
pub mod endpoints;
pub mod error;
pub mod files;
pub mod hub;
pub mod job;
pub mod join;
pub mod leave;
pub mod lock;
pub mod looking;
pub mod mint;
pub mod model;
pub mod probe;
pub mod region;
pub mod rolling;
pub mod run;
pub mod sharing;
pub mod signals;
pub mod undo;
pub mod vela;
