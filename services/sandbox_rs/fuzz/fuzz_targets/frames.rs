//! What a script may write into its pipe: any bytes. They are frames within their caps, or refused with a text.

#![no_main]

use _native::frames::{self, FromScript};
use futures_util::FutureExt;
use libfuzzer_sys::fuzz_target;

const LARGEST_INTEGER: u64 = 1 << 53;

fuzz_target!(|bytes: &[u8]| {
    // Once as one body, once as a stream of frames with their prefixes.
    if let Ok(frame) = frames::decode(bytes) {
        check(&frame);
    }
    let mut stream = bytes;
    loop {
        let before = stream.len();
        // A slice is never pending.
        let read = frames::read(&mut stream).now_or_never().expect("a slice is always ready");
        match read {
            Ok(Some(frame)) => {
                assert!(stream.len() < before);
                check(&frame);
            }
            Ok(None) => break,
            Err(complaint) => {
                assert!(!complaint.is_empty());
                break;
            }
        }
    }
});

fn check(frame: &FromScript) {
    match frame {
        FromScript::AgentCall(call) => {
            assert!(call.call_id < LARGEST_INTEGER);
            assert!(call.tool_run_ids.iter().all(|&id| id < LARGEST_INTEGER));
        }
        FromScript::ToolCall(call) => {
            assert!(call.call_id < LARGEST_INTEGER);
            assert!(call.timeout_seconds.is_none_or(|seconds| seconds.is_finite() && seconds > 0.0));
        }
        FromScript::NodeEvent(event) => {
            assert!(event.visit_id < LARGEST_INTEGER && event.parent_visit_id < LARGEST_INTEGER);
        }
        FromScript::Result(_) => {}
    }
}
