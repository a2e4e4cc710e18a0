//! Errors as callers get them: the code, the field or the delay in the details, and the remedy in the text.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::supervisor::slots::Busy;
use crate::verdict::Fault;

/// A field that cannot be taken as it is.
#[derive(Debug, PartialEq, Eq)]
pub struct BadField {
    pub field: String,
    pub complaint: String,
}

impl BadField {
    pub fn new(field: impl Into<String>, complaint: impl Into<String>) -> Self {
        BadField { field: field.into(), complaint: complaint.into() }
    }
}

impl From<BadField> for Status {
    fn from(bad: BadField) -> Self {
        let text = format!("{}: {}", bad.field, bad.complaint);
        Status::with_error_details(
            Code::InvalidArgument,
            text,
            ErrorDetails::with_bad_request_violation(bad.field, bad.complaint),
        )
    }
}

/// All slots are taken and the queue is full.
pub fn busy(busy: &Busy, what: &str) -> Status {
    let text = format!(
        "all {} {what} slots are taken and {} requests wait; try again after {} ms",
        busy.slots,
        busy.waiting,
        busy.retry_after.as_millis()
    );
    retry_later(Code::ResourceExhausted, text, busy.retry_after)
}

fn retry_later(code: Code, text: String, after: Duration) -> Status {
    let mut status = Status::with_error_details(code, text, ErrorDetails::with_retry_info(Some(after)));
    status.metadata_mut().insert("grpc-retry-pushback-ms", (after.as_millis() as u64).into());
    status
}

pub fn missing_layers(missing: &[String]) -> Status {
    Status::failed_precondition(missing.join("; "))
}

pub fn draining() -> Status {
    Status::unavailable("the sandbox is shutting down; run it on another replica")
}

pub fn fault(fault: &Fault) -> Status {
    match fault {
        Fault::Internal(_) => Status::internal(fault.to_string()),
        Fault::Draining(_) => Status::unavailable(fault.to_string()),
    }
}
