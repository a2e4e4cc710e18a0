//! Logs: a JSON line for each event on standard error, in the words of the Python services (`troupe_contracts.log`): `event`,
//! `level`, `timestamp`, `service`, and the ids that the caller had bound to what it does.

use std::fmt;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};
use tonic::codegen::http::HeaderMap;
use tracing::field::{Field, Visit};
use tracing::{Event, Span, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// Parts below ours, which log what they send and receive, metadata included, at the levels beneath this.
const BELOW: [&str; 4] = ["h2=info", "hyper=info", "rustls=info", "tonic=info"];
const LONGEST_ID: usize = 1024;
/// Of `00-TRACE-SPAN-FLAGS`.
const TRACE_DIGITS: usize = 32;

/// Logs from now on, in this process.
pub fn start(filter: &str) {
    // The later directive for a part is the one that counts.
    let filter = tracing_subscriber::EnvFilter::new([&[filter], &BELOW[..]].concat().join(","));
    let lines = tracing_subscriber::fmt().json().event_format(Lines).with_env_filter(filter);
    // A second call in one process keeps the first subscriber.
    let _ = lines.with_writer(std::io::stderr).try_init();
}

/// What is logged in a call says whose it is: run, step, task, execution and trace, where the caller sent them.
pub fn span_of(headers: &HeaderMap) -> Span {
    let sent = |key: &str| headers.get(key).and_then(|value| value.to_str().ok()).filter(|id| id.len() <= LONGEST_ID);
    let id = |key: &str| sent(key).map(|id| percent_decode_str(id).decode_utf8_lossy().into_owned());
    let trace = sent("traceparent").and_then(|parent| parent.split('-').nth(1)).filter(|id| id.len() == TRACE_DIGITS);
    // At the highest level, so that no filter leaves the ids out.
    tracing::error_span!(
        "call",
        run = id("troupe-run-id"),
        step = id("troupe-step"),
        task = id("troupe-task-id"),
        execution = id("troupe-execution-id"),
        trace
    )
}

struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = Map::new();
        event.record(&mut Fields(&mut line));
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            // Written by the formatter of JSON fields, so it can be read as such.
            let extensions = span.extensions();
            let ids = extensions.get::<FormattedFields<N>>().and_then(|fields| serde_json::from_str(fields).ok());
            line.extend(ids.unwrap_or_else(Map::new));
        }
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        line.insert("level".to_owned(), event.metadata().level().as_str().to_lowercase().into());
        line.insert("timestamp".to_owned(), timestamp.into());
        line.insert("service".to_owned(), "sandbox".into());
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// Puts an event's fields into a line.
struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        let name = if field.name() == "message" { "event" } else { field.name() };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(headers: &HeaderMap) -> Value {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = tracing_subscriber::fmt().json().event_format(Lines).with_writer(move || writer.clone());
        tracing::subscriber::with_default(lines.finish(), || {
            span_of(headers).in_scope(|| tracing::warn!(slots = 3, how = %"so", "a \"word\""));
        });
        let bytes = kept.0.lock().unwrap().clone();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn a_line_has_the_words_of_the_other_services_and_the_ids_of_its_call() {
        let mut headers = HeaderMap::new();
        headers.insert("troupe-run-id", "a%20run".parse().unwrap());
        headers.insert("troupe-step", "3".parse().unwrap());
        headers.insert("traceparent", format!("00-{}-{}-00", "4".repeat(32), "5".repeat(16)).parse().unwrap());
        let line = logged(&headers);
        assert_eq!(line["event"], "a \"word\"");
        assert_eq!((&line["level"], &line["service"]), (&"warn".into(), &"sandbox".into()));
        assert_eq!((&line["run"], &line["step"], &line["slots"]), (&"a run".into(), &"3".into(), &3.into()));
        assert_eq!((&line["trace"], &line["how"]), (&"4".repeat(32).into(), &"so".into()));
        assert!(line["timestamp"].as_str().is_some_and(|text| text.ends_with('Z')));
    }

    #[test]
    fn a_call_without_ids_or_with_what_are_none_has_a_line_without_them() {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", "00-short-5-00".parse().unwrap());
        headers.insert("troupe-run-id", "x".repeat(LONGEST_ID + 1).parse().unwrap());
        let line = logged(&headers);
        assert!(line.get("run").is_none() && line.get("trace").is_none(), "{line}");
    }
}
