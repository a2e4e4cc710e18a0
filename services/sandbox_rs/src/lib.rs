//! Runs model-written Python, isolated: workflow scripts that talk to agents, and solutions against tests.
//!
//! - `layers`: the kernel's means, one concept per file, and the table of which are in force.
//! - `inside`: what runs on the inner side: zygote, keeper, jail.
//! - `supervisor`: starts, watches and ends programs; the only source of verdicts.
//! - `server`: the gRPC service over the supervisor. `python`: the class for use in process.
//! - `frames`, `checkers`, `limits`, `verdict`, `printable`: pure.

pub mod checkers;
pub mod frames;
pub mod inside;
pub mod layers;
pub mod limits;
mod open_files;
mod printable;
mod python;
mod readiness;
pub mod server;
pub mod supervisor;
pub mod verdict;

// The contracts hold messages that other services use.
#[allow(dead_code, clippy::doc_markdown, clippy::large_enum_variant)]
mod proto {
    tonic::include_proto!("troupe.v1");

    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use super::python::{
        Job, Reply, Sandbox, execute_nothing, has_more_to_do, next_case, probe_layers, run_assertions, serve,
        serve_zygote,
    };
}
