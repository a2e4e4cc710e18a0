//! One execution of one workflow script: frames out of its pipe become events, replies go back in.
//!
//! The session trusts nothing from the script: call ids must count up, a conversation has one call at a time, tool runs
//! that a message names must have happened. A frame that breaks a rule ends the script with POLICY_VIOLATION.

use std::collections::{HashMap, HashSet};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;

use super::Supervisor;
use super::program::{Charged, Ended, Order, Program};
use super::slots::{Slot, Turn};
use super::stopwatch::{Call, GoingOn};
use super::tool::ToolRun;
use crate::frames::{
    self, FromScript, LARGEST_FRAME, MOST_CALLS_IN_FLIGHT, MOST_NODE_EVENTS, MOST_TOOL_CALLS, ScriptResult, ToScript,
};
use crate::inside::wire::Kind;
use crate::layers::{descriptors, weakened};
use crate::limits::Limits;
use crate::verdict::{Fault, Reason, ResourceUse, Verdict};

/// Bytes kept of standard output and of standard error.
const KEPT_OUTPUT: usize = 64 * 1024;
const ERROR_BYTES: usize = 4096;
/// Integers on the pipe stay below this.
const SEED_RANGE: u64 = 1 << 53;

pub struct Job {
    pub script: String,
    pub question: String,
    pub task_type: &'static str,
    pub delivery_instruction: String,
    pub limits: Limits,
    pub tool_limits: Limits,
    pub max_agent_calls: u32,
    pub seed: u64,
    /// Of its tool calls, in the queue for slots.
    pub turn: Turn,
}

impl Job {
    /// The first frame to the script.
    pub fn start_frame(&self) -> ToScript {
        ToScript::Start {
            script: self.script.clone(),
            question: self.question.clone(),
            task_type: self.task_type,
            delivery_instruction: self.delivery_instruction.clone(),
            seed: self.seed % SEED_RANGE,
        }
    }

    /// Whether the first frame is one that the script can be sent; what is said of the script else.
    pub fn start_fits(&self) -> Result<(), String> {
        let size = frames::encode(&self.start_frame()).len();
        if size > LARGEST_FRAME {
            return Err(format!(
                "makes a start frame of {size} bytes together with question and delivery_instruction; at most \
                 {LARGEST_FRAME}"
            ));
        }
        Ok(())
    }
}

/// What the caller is told while the script runs.
#[derive(Debug)]
pub enum Event {
    AgentCall(frames::AgentCall),
    ToolRun { tool_run_id: u64, conversation_id: String, code: String, run: ToolRun },
    Node(frames::NodeEvent),
}

#[derive(Debug)]
pub struct AgentReply {
    pub call_id: u64,
    /// The agent's turn, or why there is none.
    pub reply: Result<String, String>,
}

/// What the caller says while the script runs.
#[derive(Debug)]
pub enum Said {
    Reply(AgentReply),
    /// No reply will follow any more.
    NoMoreReplies,
    /// Something that the contract does not allow; the text begins with the field.
    Broken(String),
}

#[derive(Debug)]
pub struct Outcome {
    pub verdict: Verdict,
    pub result: Option<ScriptResult>,
    pub error: String,
    pub stdout: String,
    pub stderr: String,
    pub used: ResourceUse,
    pub outstanding_calls: u32,
    pub agent_calls: u32,
}

/// How a session can fail: by our fault, or because the caller broke the contract.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("{0}")]
    BadReply(String),
}

impl From<std::io::Error> for SessionError {
    fn from(error: std::io::Error) -> Self {
        SessionError::Fault(error.into())
    }
}

/// Ends a session from outside: the reason is that of `Switch::end`.
pub type Ending = tokio::sync::watch::Receiver<Option<Reason>>;

impl Supervisor {
    /// Runs a script to its end. `slot` is held until all its processes are gone.
    pub async fn run_workflow(
        self: &Arc<Self>,
        job: Job,
        slot: Slot,
        events: mpsc::Sender<Event>,
        said: mpsc::Receiver<Said>,
        ending: Ending,
    ) -> Result<Outcome, SessionError> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let account = Arc::new(Charged::default());
        let order = Order {
            kind: Kind::Workflow,
            limits: job.limits,
            stdin: descriptors::sealed_file(&[])?,
            extra: vec![theirs.into()],
            directory: true,
            kept: KEPT_OUTPUT,
            charged: account.clone(),
        };
        let program = self.launch(order, slot).await?;
        let (read_half, mut write_half) = UnixStream::from_std(ours)?.into_split();
        let (to_script, mut outbox) = mpsc::channel::<ToScript>(MOST_CALLS_IN_FLIGHT);
        let start = job.start_frame();
        // Ends with the session, which owns the sender, or when the script closes its end.
        tokio::spawn(async move {
            let mut next = Some(start);
            while let Some(frame) = next {
                if write_half.write_all(&frames::encode(&frame)).await.is_err() {
                    return;
                }
                next = outbox.recv().await;
            }
        });
        let session = Session {
            supervisor: self.clone(),
            program,
            to_script,
            events,
            account,
            tool_limits: job.tool_limits,
            max_agent_calls: job.max_agent_calls,
            last_call_id: 0,
            waiting: HashMap::new(),
            turn: job.turn,
            agent_calls: 0,
            last_tool_run_id: 0,
            node_events: 0,
            attested: HashSet::new(),
            tools: JoinSet::new(),
            result: None,
            deaf: false,
        };
        session.run(inbox(read_half), said, ending).await
    }
}

/// Reads frames in a task of their own, because reading one cannot be interrupted in the middle.
fn inbox(mut stream: OwnedReadHalf) -> mpsc::Receiver<Result<FromScript, String>> {
    let (frames, inbox) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(frame) = frames::read(&mut stream).await.transpose() {
            let last = frame.is_err();
            if frames.send(frame).await.is_err() || last {
                return;
            }
        }
    });
    inbox
}

struct Session {
    supervisor: Arc<Supervisor>,
    program: Program,
    to_script: mpsc::Sender<ToScript>,
    events: mpsc::Sender<Event>,
    account: Arc<Charged>,
    tool_limits: Limits,
    max_agent_calls: u32,
    last_call_id: u64,
    /// Conversation of each agent call without a reply.
    waiting: HashMap<u64, (String, GoingOn)>,
    turn: Turn,
    agent_calls: u32,
    last_tool_run_id: u64,
    node_events: u64,
    attested: HashSet<u64>,
    tools: JoinSet<Result<Answered, Fault>>,
    result: Option<ScriptResult>,
    /// The caller has said that no reply will follow.
    deaf: bool,
}

/// Counts something of which a script may do only so much in all.
fn one_more(count: &mut u64, most: u64, what: &str) -> Result<(), String> {
    if *count >= most {
        return Err(format!("more than {most} {what}"));
    }
    *count += 1;
    Ok(())
}

struct Answered {
    call_id: u64,
    tool_run_id: u64,
    conversation_id: String,
    code: String,
    run: ToolRun,
}

impl Session {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Result<FromScript, String>>,
        mut said: mpsc::Receiver<Said>,
        mut ending: Ending,
    ) -> Result<Outcome, SessionError> {
        let mut frames_open = true;
        let mut said_open = true;
        let mut ending_open = true;
        let ended = loop {
            tokio::select! {
                ended = self.program.ended() => break ended?,
                frame = inbox.recv(), if frames_open => match frame {
                    Some(Ok(frame)) => self.take_frame(frame).await,
                    Some(Err(complaint)) => self.violation(complaint),
                    None => frames_open = false,
                },
                words = said.recv(), if said_open => match words {
                    Some(Said::Reply(reply)) => self.take_reply(reply)?,
                    Some(Said::NoMoreReplies) => self.take_silence(),
                    Some(Said::Broken(complaint)) => return Err(SessionError::BadReply(complaint)),
                    None => {
                        said_open = false;
                        self.program.switch.end(Reason::Cancelled("the caller went away".to_owned()));
                    }
                },
                Some(answered) = self.tools.join_next() => {
                    let answered = answered.map_err(|error| Fault::Internal(error.to_string()))??;
                    self.take_tool_run(answered).await;
                }
                changed = ending.changed(), if ending_open => {
                    ending_open = changed.is_ok();
                    if let Some(reason) = ending.borrow_and_update().clone() {
                        self.program.switch.end(reason);
                    }
                }
            }
        };
        // What the script sent before it ended counts; every sender is gone, so the inbox ends too.
        while let Some(frame) = inbox.recv().await {
            if let Ok(FromScript::Result(result)) = frame {
                self.result = Some(result);
            }
        }
        self.tools.shutdown().await;
        self.supervisor.counters.count(Kind::Workflow, ended.verdict);
        Ok(self.outcome(ended))
    }

    fn outcome(self, ended: Ended) -> Outcome {
        let trace =
            if ended.verdict == Verdict::RuntimeError { ended.stderr.tail(ERROR_BYTES / 2) } else { String::new() };
        let error = [ended.error, trace].iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("\n");
        Outcome {
            verdict: ended.verdict,
            result: self.result,
            error: error[..error.floor_char_boundary(ERROR_BYTES)].to_owned(),
            stdout: match ended.verdict {
                Verdict::OutputLimit => ended.stdout.head(KEPT_OUTPUT),
                _ => ended.stdout.text(),
            },
            stderr: ended.stderr.text(),
            used: ResourceUse { waiting: ended.used.waiting + self.account.stopwatch.waited().in_all, ..ended.used },
            outstanding_calls: self.waiting.len() as u32,
            agent_calls: self.agent_calls,
        }
    }

    fn violation(&self, what: String) {
        self.program.switch.end(Reason::Violation(what));
    }

    /// Answers a call. There is room for the answers to as many as may be in flight: it is lacking where a script goes on to
    /// call and does not read. One that has ended needs none.
    fn answer(&self, frame: ToScript) {
        if let Err(TrySendError::Full(_)) = self.to_script.try_send(frame)
            && !weakened::is_off("supervisor:unread_answers")
        {
            self.violation(format!("more than {MOST_CALLS_IN_FLIGHT} answers that it does not read"));
        }
    }

    /// Tells the caller; a caller that does not listen any more ends the script.
    async fn tell(&self, event: Event) {
        if self.events.send(event).await.is_err() {
            self.program.switch.end(Reason::Cancelled("the caller went away".to_owned()));
        }
    }

    async fn take_frame(&mut self, frame: FromScript) {
        match frame {
            FromScript::AgentCall(call) => self.take_agent_call(call).await,
            FromScript::ToolCall(call) => self.take_tool_call(call),
            FromScript::NodeEvent(event) => match one_more(&mut self.node_events, MOST_NODE_EVENTS, "node events") {
                Ok(()) => self.tell(Event::Node(event)).await,
                Err(complaint) => self.violation(complaint),
            },
            FromScript::Result(result) => self.result = Some(result),
        }
    }

    /// Call ids count up from 1 and only so many calls are in flight.
    fn admit(&mut self, call_id: u64) -> Result<(), String> {
        if call_id != self.last_call_id + 1 && !weakened::is_off("supervisor:call_ids") {
            return Err(format!("call id {call_id} after {}", self.last_call_id));
        }
        self.last_call_id = call_id;
        if self.waiting.len() + self.tools.len() >= MOST_CALLS_IN_FLIGHT
            && !weakened::is_off("supervisor:calls_in_flight")
        {
            return Err(format!("more than {MOST_CALLS_IN_FLIGHT} calls in flight"));
        }
        Ok(())
    }

    async fn take_agent_call(&mut self, call: frames::AgentCall) {
        if let Err(complaint) = self.admit(call.call_id) {
            return self.violation(complaint);
        }
        if call.conversation_id.is_empty() {
            return self.violation("an agent call without a conversation id".to_owned());
        }
        let busy = self.waiting.values().any(|(conversation, _)| *conversation == call.conversation_id);
        if busy && !weakened::is_off("supervisor:conversations") {
            return self.violation(format!("two calls at once on conversation {}", call.conversation_id));
        }
        if let Some(unknown) =
            call.tool_run_ids.iter().find(|id| !self.attested.contains(id) && !weakened::is_off("supervisor:attested"))
        {
            return self.violation(format!("tool run {unknown} never happened"));
        }
        if self.agent_calls >= self.max_agent_calls && !weakened::is_off("supervisor:call_budget") {
            let reason = format!("the budget of {} agent calls is spent", self.max_agent_calls);
            return self.answer(ToScript::AgentRefusal { call_id: call.call_id, reason });
        }
        self.agent_calls += 1;
        self.waiting.insert(call.call_id, (call.conversation_id.clone(), self.account.stopwatch.start(Call::Agent)));
        if self.deaf {
            return self.take_silence();
        }
        self.tell(Event::AgentCall(call)).await;
    }

    fn take_tool_call(&mut self, call: frames::ToolCall) {
        let admitted = self.admit(call.call_id);
        if let Err(complaint) =
            admitted.and_then(|()| one_more(&mut self.last_tool_run_id, MOST_TOOL_CALLS, "tool calls"))
        {
            return self.violation(complaint);
        }
        let tool_run_id = self.last_tool_run_id;
        let frames::ToolCall { call_id, conversation_id, code, timeout_seconds } = call;
        let (supervisor, account, limits) = (self.supervisor.clone(), self.account.clone(), self.tool_limits);
        let turn = self.turn.clone();
        let timeout = timeout_seconds.map(|seconds| Duration::from_secs_f64(seconds.clamp(0.001, 1e6)));
        self.tools.spawn(async move {
            let run = supervisor.run_tool(&code, timeout, limits, &account, &turn).await?;
            Ok(Answered { call_id, tool_run_id, conversation_id, code, run })
        });
    }

    async fn take_tool_run(&mut self, answered: Answered) {
        let Answered { call_id, tool_run_id, conversation_id, code, run } = answered;
        self.attested.insert(tool_run_id);
        let output = run.output.clone();
        let verdict = run.verdict.name();
        // Attested before the script learns of it, so that no agent call can name it first.
        self.tell(Event::ToolRun { tool_run_id, conversation_id, code, run }).await;
        self.answer(ToScript::ToolResult { call_id, tool_run_id, output, verdict });
    }

    fn take_reply(&mut self, reply: AgentReply) -> Result<(), SessionError> {
        let AgentReply { call_id, reply } = reply;
        if self.waiting.remove(&call_id).is_none() {
            return Err(SessionError::BadReply(format!("agent_reply.call_id: {call_id} is not waiting for a reply")));
        }
        let frame = match reply {
            Ok(text) => ToScript::AgentReply { call_id, text },
            Err(reason) => ToScript::AgentRefusal { call_id, reason },
        };
        let length = frames::encode(&frame).len();
        if length > LARGEST_FRAME {
            let complaint = format!("agent_reply.text: makes a frame of {length} bytes; at most {LARGEST_FRAME}");
            return Err(SessionError::BadReply(complaint));
        }
        self.answer(frame);
        Ok(())
    }

    /// The caller closed its side: whoever waits for it, or will, waits for ever.
    fn take_silence(&mut self) {
        self.deaf = true;
        if !self.waiting.is_empty() {
            let why = format!("the caller closed its side with {} agent calls without a reply", self.waiting.len());
            self.program.switch.end(Reason::Cancelled(why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_ends_at_its_cap() {
        let mut calls = 0;
        let admitted: Vec<_> = (0..3).map(|_| one_more(&mut calls, 2, "tool calls")).collect();
        assert_eq!(admitted, [Ok(()), Ok(()), Err("more than 2 tool calls".to_owned())]);
        assert_eq!(calls, 2);
    }
}
