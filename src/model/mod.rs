//! The rules, as pure functions over typed values: no client, no clock, no runtime.

pub mod aliases;
pub mod answering;
pub mod checkup;
pub mod drift;
pub mod joined;
pub mod kubeconfig;
pub mod labels;
pub mod left;
pub mod lifetime;
pub mod members;
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
<<<<<<< HEAD
pub mod services;
=======
pub mod service;
>>>>>>> c9344853734cff5da85d3a4892ba8d591ea02e45
pub mod traffic;
pub mod tree;
pub mod usage;
