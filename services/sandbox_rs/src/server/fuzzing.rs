//! A way in for the fuzz targets `requests` and `arrivals`: bytes of a caller's come in pieces, become messages, and messages
//! jobs.

use prost::Message;

use super::arriving::Messages;
use super::convert;
use super::counts::{Bounded, MOST_CASES, MOST_LAYERS, entries};
use super::refusal::BadField;
use crate::frames;
use crate::limits::{Limits, Ranges};
use crate::proto::{RunTestsRequest, RunWorkflowRequest, run_tests_request::Tests, run_workflow_request};
use crate::supervisor::slots::Turn;

/// The bytes as each message that the service takes.
///
/// # Panics
///
/// On a list that is longer than it was counted or bounded to be, a job beyond its limits, or a refusal that names no field.
pub fn request(bytes: &[u8]) {
    let ranges = Ranges::within(None);
    if let Ok(request) = RunTestsRequest::decode(bytes) {
        let (path, cases) = match &request.tests {
            Some(Tests::StdinTests(tests)) => ([3, 1], tests.cases.len()),
            Some(Tests::AssertionTests(tests)) => ([4, 2], tests.cases.len()),
            None => ([3, 1], 0),
        };
        let layers = request.required_layers.len();
        assert!(cases <= entries(bytes, &path) && layers <= entries(bytes, &[7]));
        match RunTestsRequest::bound(bytes) {
            Ok(()) => assert!(cases <= MOST_CASES && layers <= MOST_LAYERS),
            Err(refusal) => named(&refusal),
        }
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
        let layers = match &request.message {
            Some(run_workflow_request::Message::Start(start)) => start.required_layers.len(),
            _ => 0,
        };
        assert!(layers <= entries(bytes, &[1, 9]));
        match RunWorkflowRequest::bound(bytes) {
            Ok(()) => assert!(layers <= MOST_LAYERS),
            Err(refusal) => named(&refusal),
        }
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

/// A body that comes in pieces of these sizes, over and over.
///
/// # Panics
///
/// Where its messages are counted otherwise than they lie in it.
pub fn arrival(sizes: &[u8], body: &[u8]) {
    let ends = ends(body);
    let mut sizes = sizes.iter().filter(|&&size| size > 0).map(|&size| usize::from(size)).cycle();
    let mut messages = Messages::default();
    let mut come = 0;
    while come < body.len() {
        let size = sizes.next().unwrap_or(body.len()).min(body.len() - come);
        messages.pass(&body[come..][..size]);
        come += size;
        let whole = &ends[..ends.partition_point(|&end| end <= come)];
        assert_eq!(messages.first, whole.first().map(|&end| end as u64));
        assert_eq!(messages.of_next(), (come - whole.last().unwrap_or(&0)) as u64);
    }
    let mut uncut = Messages::default();
    uncut.pass(body);
    assert_eq!((messages.first, messages.of_next()), (uncut.first, uncut.of_next()));
}

/// Where each whole message of a body ends.
fn ends(body: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut rest = body;
    while let [_, a, b, c, d, after @ ..] = rest {
        let Some(left) = after.get(u32::from_be_bytes([*a, *b, *c, *d]) as usize..) else { break };
        ends.push(body.len() - left.len());
        rest = left;
    }
    ends
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
