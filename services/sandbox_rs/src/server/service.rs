//! The three calls of `troupe.v1.Sandbox`.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use super::arriving::Arrived;
use super::caller::Caller;
use super::convert;
use super::refusal::{self, BadField};
use crate::proto;
use crate::proto::sandbox_server::Sandbox;
use crate::supervisor::Supervisor;
use crate::supervisor::slots::{Slot, Slots, Turn};
use crate::supervisor::workflow::{Said, SessionError};
use crate::verdict::{Fault, Reason};

const EVENTS_AHEAD: usize = 64;

/// How far the service is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Serving,
    /// Takes nothing new, finishes what runs.
    Draining,
    /// Ends what still runs.
    Halting,
}

pub struct Service {
    pub supervisor: Arc<Supervisor>,
    pub phase: watch::Receiver<Phase>,
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn admit(&self, required: &[String]) -> Result<(), Status> {
        if *self.phase.borrow() != Phase::Serving {
            return Err(refusal::draining());
        }
        let missing = self.supervisor.missing_layers(required);
        if missing.is_empty() { Ok(()) } else { Err(refusal::missing_layers(&missing)) }
    }

    /// Waits in the queue, unless the service shuts down meanwhile. Who cancels the call leaves the queue: the call is
    /// dropped with all that it waits for.
    async fn slot(&self, slots: &Slots, turn: &Turn, what: &str) -> Result<Slot, Status> {
        let mut phase = self.phase.clone();
        let slot = tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => return Err(refusal::draining()),
            slot = slots.take(turn) => slot,
        };
        slot.map_err(|busy| refusal::busy(&busy, what))
    }
}

/// Whose turn a call takes, and its bytes, which count as long as they are kept.
fn of_call<T>(request: &Request<T>) -> (Turn, Arrived) {
    let extensions = request.extensions();
    let caller = extensions.get::<Caller>().expect("the layer of arrivals has seen it");
    (Turn::of(&caller.name()), extensions.get::<Arrived>().expect("the layer of arrivals has seen it").clone())
}

fn session_status(supervisor: &Supervisor, error: &SessionError) -> Status {
    match error {
        SessionError::BadReply(complaint) => {
            let (field, complaint) = complaint.split_once(": ").unwrap_or(("message", complaint));
            BadField::new(field, complaint).into()
        }
        SessionError::Fault(fault) => fault_status(supervisor, fault),
    }
}

fn fault_status(supervisor: &Supervisor, fault: &Fault) -> Status {
    supervisor.counters.count_fault(fault);
    tracing::error!(%fault, "a program could not be run");
    refusal::fault(fault)
}

/// Passes the caller's messages on. A broken stream closes the channel, which ends the script; a closed side is said.
async fn listen(mut inbound: Streaming<proto::RunWorkflowRequest>, said: mpsc::Sender<Said>) {
    loop {
        let message = tokio::select! {
            biased;
            // Who does not end the call on its side either keeps nothing here.
            () = said.closed() => return,
            message = inbound.message() => message,
        };
        let words = match message {
            Ok(Some(request)) => match convert::said(request.message) {
                Ok(words) => words,
                Err(bad) => Said::Broken(format!("{}: {}", bad.field, bad.complaint)),
            },
            Ok(None) => {
                if said.send(Said::NoMoreReplies).await.is_ok() {
                    said.closed().await;
                }
                return;
            }
            Err(_) => return,
        };
        if said.send(words).await.is_err() {
            return;
        }
    }
}

#[tonic::async_trait]
impl Sandbox for Service {
    type RunWorkflowStream = ResponseStream<proto::RunWorkflowResponse>;
    type RunTestsStream = ResponseStream<proto::RunTestsResponse>;

    async fn run_workflow(
        &self,
        request: Request<Streaming<proto::RunWorkflowRequest>>,
    ) -> Result<Response<Self::RunWorkflowStream>, Status> {
        let (turn, arrived) = of_call(&request);
        let mut inbound = request.into_inner();
        let start = match inbound.message().await?.and_then(|request| request.message) {
            Some(proto::run_workflow_request::Message::Start(start)) => start,
            _ => return Err(BadField::new("start", "must be the first message").into()),
        };
        let execution_id = start.execution_id.clone();
        let required = start.required_layers.clone();
        let job = convert::workflow_job(start, &self.supervisor.ranges, turn.clone())?;
        self.admit(&required)?;
        let slot = self.slot(&self.supervisor.workflow_slots, &turn, "workflow").await?;

        let (responses, stream) = mpsc::channel(EVENTS_AHEAD);
        let (events, mut coming) = mpsc::channel(EVENTS_AHEAD);
        let (said, words) = mpsc::channel(EVENTS_AHEAD);
        let (end, ending) = watch::channel(None);
        let supervisor = self.supervisor.clone();
        let mut phase = self.phase.clone();
        tokio::spawn(listen(inbound, said));
        let session = {
            let supervisor = supervisor.clone();
            let ended = async move {
                let _arrived = arrived;
                supervisor.run_workflow(job, slot, events, words, ending).await
            };
            tokio::spawn(ended.in_current_span())
        };
        // Ends the script at once when the caller cancels, or when the grace of a shutdown is over.
        let (finished, mut over) = watch::channel(());
        tokio::spawn({
            let responses = responses.clone();
            async move {
                tokio::select! {
                    () = responses.closed() => drop(end.send(Some(Reason::Cancelled("the caller went away".to_owned())))),
                    _ = phase.wait_for(|phase| *phase == Phase::Halting) => drop(end.send(Some(Reason::Draining))),
                    _ = over.changed() => {}
                }
                // Kept until the session is over: a closed channel would say nothing.
                let _ = over.changed().await;
            }
        });
        let answer = async move {
            // Whoever does not listen is noticed by the task above.
            let _ = responses.send(Ok(convert::started(&supervisor.isolation))).await;
            while let Some(event) = coming.recv().await {
                if responses.send(Ok(convert::event(event))).await.is_err() {
                    break;
                }
            }
            drop(coming);
            let last = match session.await {
                Ok(Ok(outcome)) => {
                    tracing::debug!(execution_id, verdict = outcome.verdict.name(), "workflow ended");
                    Ok(convert::workflow_outcome(outcome, &supervisor.isolation))
                }
                Ok(Err(error)) => Err(session_status(&supervisor, &error)),
                Err(error) => Err(fault_status(&supervisor, &Fault::Internal(error.to_string()))),
            };
            let _ = responses.send(last).await;
            drop(finished);
        };
        tokio::spawn(answer.in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn run_tests(
        &self,
        request: Request<proto::RunTestsRequest>,
    ) -> Result<Response<Self::RunTestsStream>, Status> {
        let (turn, arrived) = of_call(&request);
        let request = request.into_inner();
        let required = request.required_layers.clone();
        let job = Arc::new(convert::tests_job(request, &self.supervisor.ranges, turn.clone())?);
        self.admit(&required)?;
        let slot = self.slot(&self.supervisor.test_jobs, &turn, "test").await?;
        let (responses, stream) = mpsc::channel(EVENTS_AHEAD);
        let supervisor = self.supervisor.clone();
        let mut phase = self.phase.clone();
        let answer = async move {
            let _taken = (slot, arrived);
            let (results, mut coming) = mpsc::channel(EVENTS_AHEAD);
            let forward = async {
                while let Some(result) = coming.recv().await {
                    if responses.send(Ok(convert::case_result(result))).await.is_err() {
                        return;
                    }
                }
            };
            // Dropping the run ends its programs at once.
            let last = tokio::select! {
                (outcome, ()) = async { tokio::join!(supervisor.run_tests(job, results), forward) } => match outcome {
                    Ok(outcome) => Ok(convert::tests_outcome(&outcome, &supervisor.isolation)),
                    Err(fault) => Err(fault_status(&supervisor, &fault)),
                },
                () = responses.closed() => return,
                _ = phase.wait_for(|phase| *phase == Phase::Halting) => Err(refusal::draining()),
            };
            let _ = responses.send(last).await;
        };
        tokio::spawn(answer.in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn get_isolation(
        &self,
        _request: Request<proto::GetIsolationRequest>,
    ) -> Result<Response<proto::IsolationReport>, Status> {
        let supervisor = &self.supervisor;
        let isolation = &supervisor.isolation;
        Ok(Response::new(proto::IsolationReport {
            profile: isolation.profile.name().to_owned(),
            profile_digest: isolation.digest.clone(),
            layers: isolation.layers.iter().map(convert::layer).collect(),
            workflow_slots: supervisor.workflow_slots.total() as u32,
            test_slots: supervisor.case_slots.total() as u32,
            workflows_running: supervisor.workflow_slots.taken() as u32,
            tests_running: supervisor.case_slots.taken() as u32,
            python: isolation.python.clone(),
            outer_layers: isolation.outer.iter().map(convert::layer).collect(),
            workflows_queued: supervisor.workflow_slots.queued() as u32,
            tests_queued: supervisor.test_jobs.queued() as u32,
        }))
    }
}
