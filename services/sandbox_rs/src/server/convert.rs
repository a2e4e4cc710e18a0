//! Between the contract's messages and the supervisor's types. Requests are checked here, field by field; beyond this
//! file no protobuf type is seen.

use super::counts::MOST_CASES;
use super::refusal::BadField;
use crate::checkers::{Checker, Difference, Tolerance, Unit};
use crate::frames;
use crate::layers;
use crate::limits::{self, Asked, LARGEST_INSTRUCTION, LARGEST_SOURCE, LONGEST_NAME, Limits, Ranges};
use crate::proto;
use crate::supervisor::Isolation;
use crate::supervisor::code_tests::{self, CaseResult, Mode, Tests};
use crate::supervisor::judging::{CheckerProgram, Judge};
use crate::supervisor::slots::Turn;
use crate::supervisor::workflow::{self, AgentReply, Event, Said};
use crate::verdict::{ResourceUse, Verdict};

const DEFAULT_AGENT_CALLS: u32 = 256;
const MOST_AGENT_CALLS: u32 = 100_000;

fn text(field: &str, value: &str, most: usize) -> Result<(), BadField> {
    limits::fits(value, most).map_err(|complaint| BadField::new(field, complaint))?;
    if value.contains('\0') {
        return Err(BadField::new(field, "holds a NUL byte"));
    }
    Ok(())
}

fn source(field: &str, value: &str) -> Result<(), BadField> {
    if value.trim().is_empty() {
        return Err(BadField::new(field, "is empty; Python source is needed"));
    }
    text(field, value, LARGEST_SOURCE)
}

fn limits(field: &str, asked: Option<proto::Limits>, range: &limits::Range) -> Result<Limits, BadField> {
    let asked = asked.unwrap_or_default();
    let asked = Asked {
        cpu_seconds: asked.cpu_seconds,
        wall_seconds: asked.wall_seconds,
        memory_bytes: asked.memory_bytes,
        processes: asked.processes,
        open_files: asked.open_files,
        output_bytes: asked.output_bytes,
    };
    range.resolve(&asked).map_err(|bad| BadField::new(format!("{field}.{}", bad.field), bad.complaint))
}

fn required_layers(field: &str, names: &[String]) -> Result<(), BadField> {
    match names.iter().position(|name| !layers::is_known(name)) {
        None => Ok(()),
        Some(index) => {
            let known: Vec<&str> = layers::names().collect();
            let complaint = format!("{:?} is no layer; there are {}", names[index], known.join(", "));
            Err(BadField::new(format!("{field}[{index}]"), complaint))
        }
    }
}

pub fn workflow_job(start: proto::StartWorkflow, ranges: &Ranges, turn: Turn) -> Result<workflow::Job, BadField> {
    source("start.script", &start.script)?;
    text("start.execution_id", &start.execution_id, LONGEST_NAME)?;
    text("start.question", &start.question, LARGEST_SOURCE)?;
    text("start.delivery_instruction", &start.delivery_instruction, LARGEST_INSTRUCTION)?;
    required_layers("start.required_layers", &start.required_layers)?;
    let task_type = match proto::TaskType::try_from(start.task_type) {
        Ok(proto::TaskType::Math) => "math",
        Ok(proto::TaskType::Code) => "code",
        _ => return Err(BadField::new("start.task_type", "is neither TASK_TYPE_MATH nor TASK_TYPE_CODE")),
    };
    if start.max_agent_calls > MOST_AGENT_CALLS {
        let complaint = format!("is {}; at most {MOST_AGENT_CALLS}", start.max_agent_calls);
        return Err(BadField::new("start.max_agent_calls", complaint));
    }
    let job = workflow::Job {
        task_type,
        limits: limits("start.limits", start.limits, &ranges.workflow)?,
        tool_limits: limits("start.tool_limits", start.tool_limits, &ranges.tool)?,
        max_agent_calls: if start.max_agent_calls == 0 { DEFAULT_AGENT_CALLS } else { start.max_agent_calls },
        script: start.script,
        question: start.question,
        delivery_instruction: start.delivery_instruction,
        seed: start.seed,
        turn,
    };
    job.start_fits().map_err(|complaint| BadField::new("start.script", complaint))?;
    Ok(job)
}

/// A message of the caller's after the first.
pub fn said(message: Option<proto::run_workflow_request::Message>) -> Result<Said, BadField> {
    use proto::run_workflow_request::Message;
    let reply = match message {
        Some(Message::AgentReply(reply)) => reply,
        Some(Message::Start(_)) => return Err(BadField::new("start", "came twice; only the first message starts")),
        None => return Err(BadField::new("message", "is not set")),
    };
    let call_id = reply.call_id;
    let reply = match reply.reply {
        Some(proto::agent_reply::Reply::Text(text)) => Ok(text),
        Some(proto::agent_reply::Reply::Refusal(reason)) => Err(reason),
        None => return Err(BadField::new("agent_reply.reply", "is not set; give text or refusal")),
    };
    Ok(Said::Reply(AgentReply { call_id, reply }))
}

pub fn tests_job(request: proto::RunTestsRequest, ranges: &Ranges, turn: Turn) -> Result<code_tests::Job, BadField> {
    use proto::run_tests_request::Tests as Asked;
    source("solution", &request.solution)?;
    text("job_id", &request.job_id, LONGEST_NAME)?;
    required_layers("required_layers", &request.required_layers)?;
    let tests = match request.tests {
        None => return Err(BadField::new("tests", "is not set; give stdin_tests or assertion_tests")),
        Some(Asked::StdinTests(tests)) => {
            let judge = judge(&tests, ranges)?;
            number_of_cases("stdin_tests.cases", tests.cases.len())?;
            let cases = tests.cases.into_iter().map(|case| (case.stdin, case.expected_stdout)).collect();
            Tests::Stdin { cases, judge }
        }
        Some(Asked::AssertionTests(tests)) => {
            number_of_cases("assertion_tests.cases", tests.cases.len())?;
            text("assertion_tests.setup", &tests.setup, LARGEST_SOURCE)?;
            text("assertion_tests.entry_point", &tests.entry_point, LONGEST_NAME)?;
            for (index, case) in tests.cases.iter().enumerate() {
                source(&format!("assertion_tests.cases[{index}]"), case)?;
            }
            Tests::Assertions { setup: tests.setup, entry_point: tests.entry_point, cases: tests.cases }
        }
    };
    let mode = match proto::TestMode::try_from(request.mode) {
        Ok(proto::TestMode::Unspecified | proto::TestMode::Strict) => Mode::Strict,
        Ok(proto::TestMode::Batch) if matches!(tests, Tests::Stdin { .. }) => Mode::Batch,
        Ok(proto::TestMode::Batch) => {
            return Err(BadField::new("mode", "is TEST_MODE_BATCH, which is for stdin_tests; assertions run strictly"));
        }
        Err(_) => return Err(BadField::new("mode", format!("is {}, which is no mode", request.mode))),
    };
    Ok(code_tests::Job {
        mode,
        solution: request.solution,
        tests,
        limits: limits("limits", request.limits, &ranges.test)?,
        stop_at_first_failure: request.stop_at_first_failure,
        turn,
    })
}

/// How output is judged; an option that the checker would not look at is refused.
fn judge(tests: &proto::StdinTests, ranges: &Ranges) -> Result<Judge, BadField> {
    let checker = proto::Checker::try_from(tests.checker).unwrap_or(proto::Checker::Unspecified);
    if checker != proto::Checker::FloatTokens && tests.float_tolerance.is_some() {
        return Err(BadField::new("stdin_tests.float_tolerance", "is set and the checker is not CHECKER_FLOAT_TOKENS"));
    }
    if checker != proto::Checker::Program {
        for (field, set) in [
            ("stdin_tests.checker_program", !tests.checker_program.is_empty()),
            ("stdin_tests.checker_limits", tests.checker_limits.is_some()),
        ] {
            if set {
                return Err(BadField::new(field, "is set and the checker is not CHECKER_PROGRAM"));
            }
        }
    }
    Ok(Judge::Compare(match checker {
        proto::Checker::Unspecified => {
            return Err(BadField::new("stdin_tests.checker", "is not set; choose how output is compared"));
        }
        proto::Checker::Lines => Checker::Lines,
        proto::Checker::Tokens => Checker::Tokens,
        proto::Checker::FloatTokens => Checker::FloatTokens(tolerance(tests.float_tolerance.as_ref())?),
        proto::Checker::UnorderedLines => Checker::UnorderedLines,
        proto::Checker::Exact => Checker::Exact,
        proto::Checker::Program => {
            source("stdin_tests.checker_program", &tests.checker_program)?;
            let limits = limits("stdin_tests.checker_limits", tests.checker_limits, &ranges.checker)?;
            return Ok(Judge::Program(CheckerProgram { source: tests.checker_program.clone(), limits }));
        }
    }))
}

fn tolerance(asked: Option<&proto::FloatTolerance>) -> Result<Tolerance, BadField> {
    let Some(&proto::FloatTolerance { absolute, relative }) = asked else { return Ok(Tolerance::default()) };
    Tolerance::new(absolute, relative).map_err(|bad| {
        let figure = bad.figure.map_or(String::new(), |figure| format!(".{figure}"));
        BadField::new(format!("stdin_tests.float_tolerance{figure}"), bad.complaint)
    })
}

/// No cases would mean that everything passes.
fn number_of_cases(field: &str, count: usize) -> Result<(), BadField> {
    match count {
        0 => Err(BadField::new(field, "is empty; at least one case is needed")),
        1..=MOST_CASES => Ok(()),
        _ => Err(BadField::new(field, format!("has {count} cases; at most {MOST_CASES}"))),
    }
}

fn verdict(verdict: Verdict) -> i32 {
    let verdict = match verdict {
        Verdict::Ok => proto::Verdict::Ok,
        Verdict::WrongAnswer => proto::Verdict::WrongAnswer,
        Verdict::RuntimeError => proto::Verdict::RuntimeError,
        Verdict::CpuLimit => proto::Verdict::CpuLimit,
        Verdict::WallLimit => proto::Verdict::WallLimit,
        Verdict::MemoryLimit => proto::Verdict::MemoryLimit,
        Verdict::OutputLimit => proto::Verdict::OutputLimit,
        Verdict::ProcessLimit => proto::Verdict::ProcessLimit,
        Verdict::PolicyViolation => proto::Verdict::PolicyViolation,
        Verdict::Cancelled => proto::Verdict::Cancelled,
    };
    verdict.into()
}

fn resource_use(used: ResourceUse) -> proto::ResourceUse {
    proto::ResourceUse {
        cpu_seconds: used.cpu.as_secs_f64(),
        wall_seconds: used.wall.as_secs_f64(),
        waiting_seconds: used.waiting.as_secs_f64(),
        peak_memory_bytes: used.peak_memory_bytes,
    }
}

pub fn started(isolation: &Isolation) -> proto::RunWorkflowResponse {
    response(proto::run_workflow_response::Message::Started(proto::WorkflowStarted {
        profile: isolation.profile.name().to_owned(),
        profile_digest: isolation.digest.clone(),
    }))
}

fn response(message: proto::run_workflow_response::Message) -> proto::RunWorkflowResponse {
    proto::RunWorkflowResponse { message: Some(message) }
}

pub fn event(event: Event) -> proto::RunWorkflowResponse {
    use proto::run_workflow_response::Message;
    response(match event {
        Event::AgentCall(call) => Message::AgentCall(proto::AgentCall {
            call_id: call.call_id,
            conversation_id: call.conversation_id,
            agent: call.agent,
            messages: call.messages.into_iter().map(message).collect(),
            tool_run_ids: call.tool_run_ids,
        }),
        Event::ToolRun { tool_run_id, conversation_id, code, run } => Message::ToolRun(proto::ToolRun {
            tool_run_id,
            conversation_id,
            code,
            output: run.output,
            verdict: verdict(run.verdict),
            r#use: Some(resource_use(run.used)),
        }),
        Event::Node(event) => Message::NodeEvent(proto::NodeEvent {
            kind: match event.kind {
                frames::NodeEventKind::Enter => proto::node_event::Kind::Enter,
                frames::NodeEventKind::Exit => proto::node_event::Kind::Exit,
            }
            .into(),
            visit_id: event.visit_id,
            parent_visit_id: event.parent_visit_id,
            node: event.node,
            node_type: event.node_type,
            result_type: event.result_type,
        }),
    })
}

fn message(message: frames::Message) -> proto::ChatMessage {
    let role = match message.role {
        frames::Role::System => proto::MessageRole::System,
        frames::Role::User => proto::MessageRole::User,
        frames::Role::Tool => proto::MessageRole::Tool,
    };
    proto::ChatMessage { role: role.into(), content: message.content }
}

pub fn workflow_outcome(outcome: workflow::Outcome, isolation: &Isolation) -> proto::RunWorkflowResponse {
    let has_result = outcome.result.is_some();
    let (result, result_type, own_question) = match outcome.result {
        Some(result) => (result.content, result.result_type, result.own_question),
        None => Default::default(),
    };
    response(proto::run_workflow_response::Message::Outcome(proto::WorkflowOutcome {
        verdict: verdict(outcome.verdict),
        result,
        has_result,
        result_type,
        own_question,
        error: outcome.error,
        stdout: outcome.stdout,
        stderr: outcome.stderr,
        r#use: Some(resource_use(outcome.used)),
        outstanding_calls: outcome.outstanding_calls,
        agent_calls: outcome.agent_calls,
        profile: isolation.profile.name().to_owned(),
    }))
}

pub fn case_result(result: CaseResult) -> proto::RunTestsResponse {
    proto::RunTestsResponse {
        message: Some(proto::run_tests_response::Message::CaseResult(proto::CaseResult {
            index: result.index as u32,
            verdict: verdict(result.verdict),
            detail: result.detail,
            r#use: Some(resource_use(result.used)),
            difference: result.difference.map(difference),
        })),
    }
}

fn difference(difference: Difference) -> proto::Difference {
    let unit = match difference.unit {
        Unit::Byte => proto::difference::Unit::Byte,
        Unit::Line => proto::difference::Unit::Line,
        Unit::Token => proto::difference::Unit::Token,
    };
    proto::Difference {
        unit: unit.into(),
        place: difference.place as u64,
        line: difference.line as u64,
        column: difference.column as u64,
        got: difference.got,
        expected: difference.expected,
    }
}

pub fn tests_outcome(outcome: &code_tests::Outcome, isolation: &Isolation) -> proto::RunTestsResponse {
    proto::RunTestsResponse {
        message: Some(proto::run_tests_response::Message::Outcome(proto::TestsOutcome {
            passed: outcome.total > 0 && outcome.passed == outcome.total,
            cases_passed: outcome.passed as u32,
            cases_run: outcome.run as u32,
            cases_total: outcome.total as u32,
            profile: isolation.profile.name().to_owned(),
            first_failed_index: outcome.first_failed.map(|index| index as u32),
        })),
    }
}

pub fn layer(report: &layers::LayerReport) -> proto::Layer {
    let state = if report.active { proto::LayerState::Active } else { proto::LayerState::Unavailable };
    proto::Layer {
        name: report.name.to_owned(),
        state: state.into(),
        errno: report.errno,
        detail: report.detail.clone(),
        remedy: if report.active { String::new() } else { report.remedy.to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> proto::StartWorkflow {
        proto::StartWorkflow {
            script: "print(1)".to_owned(),
            task_type: proto::TaskType::Math.into(),
            ..Default::default()
        }
    }

    fn bad_field(start: proto::StartWorkflow) -> String {
        workflow_job(start, &Ranges::within(None), Turn::of("test")).map(|_| ()).unwrap_err().field
    }

    #[test]
    fn every_bad_field_is_named() {
        assert!(workflow_job(start(), &Ranges::within(None), Turn::of("test")).is_ok());
        assert_eq!(bad_field(proto::StartWorkflow { script: " \n".to_owned(), ..start() }), "start.script");
        assert_eq!(
            bad_field(proto::StartWorkflow { script: "a".repeat(LARGEST_SOURCE + 1), ..start() }),
            "start.script"
        );
        assert_eq!(bad_field(proto::StartWorkflow { script: "a\0".to_owned(), ..start() }), "start.script");
        assert_eq!(bad_field(proto::StartWorkflow { task_type: 7, ..start() }), "start.task_type");
        let layers = vec!["landlock".to_owned(), "prayer".to_owned()];
        assert_eq!(bad_field(proto::StartWorkflow { required_layers: layers, ..start() }), "start.required_layers[1]");
        let much = proto::Limits { memory_bytes: 1 << 50, ..Default::default() };
        assert_eq!(bad_field(proto::StartWorkflow { limits: Some(much), ..start() }), "start.limits.memory_bytes");
    }

    fn bad_tests(tests: proto::run_tests_request::Tests) -> String {
        let request = proto::RunTestsRequest { solution: "x = 1".to_owned(), tests: Some(tests), ..Default::default() };
        tests_job(request, &Ranges::within(None), Turn::of("test")).map(|_| ()).unwrap_err().field
    }

    #[test]
    fn an_option_of_another_checker_is_refused() {
        let stdin = |checker: proto::Checker, tests: proto::StdinTests| {
            let cases = vec![proto::StdinCase::default()];
            let tests = proto::StdinTests { checker: checker.into(), cases, ..tests };
            bad_tests(proto::run_tests_request::Tests::StdinTests(tests))
        };
        let tolerance = |absolute, relative| proto::StdinTests {
            float_tolerance: Some(proto::FloatTolerance { absolute, relative }),
            ..Default::default()
        };
        let program = proto::StdinTests { checker_program: "assert 1".to_owned(), ..Default::default() };
        assert_eq!(stdin(proto::Checker::Tokens, tolerance(1.0, 0.0)), "stdin_tests.float_tolerance");
        assert_eq!(stdin(proto::Checker::FloatTokens, tolerance(0.0, 0.0)), "stdin_tests.float_tolerance");
        assert_eq!(
            stdin(proto::Checker::FloatTokens, tolerance(0.0, f64::NAN)),
            "stdin_tests.float_tolerance.relative"
        );
        assert_eq!(stdin(proto::Checker::Lines, program), "stdin_tests.checker_program");
        assert_eq!(stdin(proto::Checker::Program, Default::default()), "stdin_tests.checker_program");
        assert_eq!(stdin(proto::Checker::Unspecified, Default::default()), "stdin_tests.checker");
    }

    #[test]
    fn an_empty_set_of_tests_is_no_pass() {
        let tests = proto::run_tests_request::Tests::AssertionTests(Default::default());
        assert_eq!(bad_tests(tests), "assertion_tests.cases");
    }
}
