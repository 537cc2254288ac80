//! The rules, as pure functions over typed values: no client, no clock, no runtime.

pub mod aliases;
pub mod checkup;
pub mod drift;
pub mod joined;
pub mod kubeconfig;
pub mod labels;
pub mod left;
pub mod lifetime;
pub mod membership;
pub mod mending;
pub mod names;
pub mod nginx;
pub mod nodes;
pub mod observed;
pub mod overview;
pub mod plan;
pub mod pods;
pub mod ports;
pub mod recorded;
pub mod region;
pub mod report;
pub mod rollout;
pub mod route;
pub mod traffic;
pub mod tree;
pub mod usage;
