//! One python tool call: code in a process of its own, and the output that the agent gets to see.

use std::sync::Arc;
use std::time::Duration;

use super::Supervisor;
use super::program::{Charged, Order};
use super::slots::Turn;
use super::stopwatch::Call;
use crate::inside::wire::Kind;
use crate::layers::descriptors;
use crate::limits::Limits;
use crate::verdict::{Fault, ResourceUse, Verdict};

/// Bytes of output that are kept: what fits a frame to the script, however it is escaped.
const LARGEST_OUTPUT: usize = 128 * 1024;
/// Bytes of a traceback's end that are shown.
const TRACEBACK_BYTES: usize = 2048;

/// What a tool call gave, as the supervisor saw it.
#[derive(Clone, Debug)]
pub struct ToolRun {
    pub output: String,
    pub verdict: Verdict,
    pub used: ResourceUse,
}

impl Supervisor {
    /// Runs `code`, charging its CPU time to `account`. `timeout` shortens the wall limit, which begins with the slot.
    pub async fn run_tool(
        &self,
        code: &str,
        timeout: Option<Duration>,
        mut limits: Limits,
        account: &Arc<Charged>,
        turn: &Turn,
    ) -> Result<ToolRun, Fault> {
        let mut call = account.stopwatch.start(Call::Queued);
        let slot = self.tool_slots.take(turn).await.map_err(|busy| Fault::Internal(format!("{busy:?}")))?;
        call.becomes(Call::Running);
        limits.wall = timeout.map_or(limits.wall, |timeout| timeout.min(limits.wall));
        let kept = (limits.output_bytes as usize).min(LARGEST_OUTPUT);
        let order = Order {
            kind: Kind::Tool,
            limits,
            stdin: descriptors::sealed_file(&[])?,
            extra: vec![descriptors::sealed_file(code.as_bytes())?],
            directory: true,
            kept,
            charged: Arc::default(),
        };
        let ended = self.launch(order, slot).await?.ended().await?;
        account.add(ended.used.cpu);
        self.counters.count(Kind::Tool, ended.verdict);
        let beyond = ended.verdict == Verdict::OutputLimit;
        let mut output = if beyond { ended.stdout.head(kept) } else { ended.stdout.text() };
        let complaint = match ended.verdict {
            Verdict::Ok => String::new(),
            Verdict::RuntimeError | Verdict::MemoryLimit if !ended.stderr.bytes.is_empty() => {
                ended.stderr.tail(TRACEBACK_BYTES)
            }
            _ => format!("[{}]", ended.error),
        };
        if !complaint.is_empty() {
            if !output.is_empty() && !output.ends_with('\n') {
                output.push('\n');
            }
            output.push_str(&complaint);
        }
        Ok(ToolRun { output, verdict: ended.verdict, used: ended.used })
    }
}
