//! A way in for the fuzz target `requests`: bytes of a caller's become messages, and messages jobs.

use prost::Message;

use super::convert;
use super::refusal::BadField;
use crate::frames;
use crate::limits::{Limits, Ranges};
use crate::proto::{RunTestsRequest, RunWorkflowRequest, run_workflow_request};
use crate::supervisor::slots::Turn;

/// The bytes as each message that the service takes.
///
/// # Panics
///
/// On a job beyond its limits, or a refusal that names no field.
pub fn request(bytes: &[u8]) {
    let ranges = Ranges::within(None);
    if let Ok(request) = RunTestsRequest::decode(bytes) {
        match convert::tests_job(request, &ranges, Turn::of("fuzz")) {
            Ok(job) => {
                assert!(job.tests.count() > 0, "no cases would pass");
                assert!(!job.solution.trim().is_empty());
                within(&job.limits, &ranges.test.most);
            }
            Err(refusal) => named(&refusal),
        }
    }
    if let Ok(request) = RunWorkflowRequest::decode(bytes) {
        if let Some(run_workflow_request::Message::Start(start)) = request.message.clone() {
            match convert::workflow_job(start, &ranges, Turn::of("fuzz")) {
                Ok(job) => {
                    assert!(frames::encode(&job.start_frame()).len() <= frames::LARGEST_FRAME);
                    assert!(job.max_agent_calls > 0);
                    within(&job.limits, &ranges.workflow.most);
                    within(&job.tool_limits, &ranges.tool.most);
                }
                Err(refusal) => named(&refusal),
            }
        }
        if let Err(refusal) = convert::said(request.message) {
            named(&refusal);
        }
    }
}

fn named(refusal: &BadField) {
    assert!(!refusal.field.is_empty() && !refusal.complaint.is_empty());
}

fn within(limits: &Limits, most: &Limits) {
    assert!(!limits.cpu.is_zero() && limits.cpu <= most.cpu);
    assert!(!limits.wall.is_zero() && limits.wall <= most.wall);
    assert!(limits.memory_bytes > 0 && limits.memory_bytes <= most.memory_bytes);
    assert!(limits.processes > 0 && limits.processes <= most.processes);
    assert!(limits.open_files > 0 && limits.open_files <= most.open_files);
    assert!(limits.output_bytes > 0 && limits.output_bytes <= most.output_bytes);
}
