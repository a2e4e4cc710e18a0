//! What runs on the inner side: the zygote, the keeper of a tree of processes, the process of a solution, and the
//! jail of a program.
//!
//! Everything here runs in single-threaded processes that were started for it, never in the service's own.

pub mod assertions;
pub mod ending;
pub mod immortal;
pub mod jail;
pub mod keeper;
mod large_pages;
mod names;
pub mod solution;
pub mod wire;
pub mod zygote;
