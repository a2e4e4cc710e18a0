//! Errors as callers get them: the code, the field or the delay in the details, and the remedy in the text.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::room::Full;
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
        "all {} {what} slots are taken and {} requests wait, {}; try again after {} ms",
        busy.slots,
        busy.waiting,
        if busy.own_share { "of yours as many as may" } else { "as many as may" },
        busy.retry_after.as_millis()
    );
    retry_later(Code::ResourceExhausted, text, busy.retry_after)
}

/// Requests hold all the bytes that they may.
pub fn no_room(full: &Full) -> Status {
    let text = format!(
        "requests{} that come, wait and run hold {} bytes of {}, and this one, of which {} have come, does not fit beside them; \
         try again after {} ms, or start the sandbox with a larger --request-memory",
        if full.own_share { " of yours" } else { "" },
        full.held,
        full.total,
        full.asked,
        AFTER_A_CROWD.as_millis()
    );
    retry_later(Code::ResourceExhausted, text, AFTER_A_CROWD)
}

/// A request is not whole after all this time.
pub fn late(after: Duration) -> Status {
    Status::deadline_exceeded(format!(
        "the request had not come whole after {} s; send it at once, or see what slows the way to the sandbox",
        after.as_secs()
    ))
}

fn retry_later(code: Code, text: String, after: Duration) -> Status {
    let mut status = Status::with_error_details(code, text, ErrorDetails::with_retry_info(Some(after)));
    push_back(&mut status, after);
    status
}

fn push_back(status: &mut Status, after: Duration) {
    status.metadata_mut().insert("grpc-retry-pushback-ms", (after.as_millis() as u64).into());
}

pub fn missing_layers(missing: &[String]) -> Status {
    Status::failed_precondition(missing.join("; "))
}

pub fn draining() -> Status {
    Status::unavailable("the sandbox is shutting down; run it on another replica")
}

/// After this some of the requests that wait may have ended.
const AFTER_A_CROWD: Duration = Duration::from_secs(1);
/// After this a fault of ours may be gone.
const AFTER_A_FAULT: Duration = Duration::from_secs(1);
const DOMAIN: &str = "sandbox.troupe.v1";

/// Name of a failure of ours, for machines.
pub fn reason(fault: &Fault) -> String {
    fault.name().to_uppercase()
}

/// Whether the same may be asked for again.
pub fn retriable(fault: &Fault) -> bool {
    !matches!(fault, Fault::Checker { .. })
}

/// A failure of ours: what it was for machines, what to do for people, and whether the same may be asked for again.
pub fn fault(fault: &Fault) -> Status {
    let retriable = retriable(fault);
    let (code, remedy) = match fault {
        // Refused before anything ran: the caller waits as for a slot.
        Fault::Exhausted { resource, before: true, .. } => (Code::ResourceExhausted, resource.remedy()),
        Fault::Exhausted { resource, before: false, .. } => (Code::Internal, resource.remedy()),
        Fault::Killed(_) => (Code::Internal, "see what kills processes of this machine; run it again"),
        Fault::Internal(_) => (Code::Internal, "a defect of the sandbox: its log has the cause"),
        Fault::Checker { .. } => (Code::FailedPrecondition, "mend the checker program"),
        Fault::Draining(_) => (Code::Unavailable, "run it on another replica"),
    };
    let metadata = [("retriable", retriable.to_string()), ("remedy", remedy.to_owned())];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
    let mut details = ErrorDetails::with_error_info(reason(fault), DOMAIN, metadata);
    if retriable {
        details.set_retry_info(Some(AFTER_A_FAULT));
    }
    let mut status = Status::with_error_details(code, fault.to_string(), details);
    if retriable {
        push_back(&mut status, AFTER_A_FAULT);
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Resource;

    fn described(problem: &Fault) -> (Code, String, String, bool) {
        let status = fault(problem);
        let details = status.get_error_details();
        let about = details.error_info().unwrap();
        (status.code(), about.reason.clone(), about.metadata["retriable"].clone(), details.retry_info().is_some())
    }

    #[test]
    fn a_fault_says_what_it_was_and_whether_to_try_again() {
        let disk = |before| Fault::Exhausted { resource: Resource::Disk, what: "mkdir".to_owned(), before };
        let text = |text: &str| text.to_owned();
        assert_eq!(described(&disk(true)), (Code::ResourceExhausted, text("DISK"), text("true"), true));
        assert_eq!(described(&disk(false)), (Code::Internal, text("DISK"), text("true"), true));
        assert_eq!(described(&Fault::Killed(text("x"))), (Code::Internal, text("KILLED"), text("true"), true));
        let checker = Fault::Checker { case: 3, text: text("NameError") };
        assert_eq!(described(&checker), (Code::FailedPrecondition, text("CHECKER"), text("false"), false));
    }
}
